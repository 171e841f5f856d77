"""Measure an assembled demo VLM: ``python -m jobs.gpu.demo.evaluate FOLDER --questions 500``.

Greedy free generation on questions of easy-VQA's test split (a seeded choice), scored by
``scoring.is_right``; the same questions with another image each; a sample at temperature 1, for the mix of
styles; and answers to text-only prompts before and after visual tuning. Prints one JSON line last.
"""

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from jobs.gpu.demo.build import load_language_model
from jobs.gpu.demo.data import Question, load_questions
from jobs.gpu.demo.scoring import is_right, is_sentence

PROBES = (
    "Write two sentences about the sea.",
    "What is the capital of France?",
    "Explain in one sentence why the sky is blue.",
    "Name three fruits.",
    "What is 2+2?",
    "Hi!",
)
BATCH = 50
LONGEST_ANSWER = 24
LONGEST_TEXT = 80
SAMPLED = 200


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the assembled model")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = AutoModelForImageTextToText.from_pretrained(options.folder).eval()
    processor = AutoProcessor.from_pretrained(options.folder)
    choose = random.Random(options.seed)
    questions = choose.sample(load_questions("test"), options.questions)
    images = [question.image_path for question in questions]
    replies = answer(model, processor, questions, images)
    shuffled = answer(model, processor, questions, _other_images(questions, choose))
    few = questions[:SAMPLED]
    sampled = answer(model, processor, few, images[:SAMPLED], temperature=1.0)
    wrong = [
        {"question": question.text, "expected": question.answer, "reply": reply}
        for question, reply in zip(questions, replies, strict=True)
        if not is_right(question, reply)
    ]
    print(json.dumps({"wrong": wrong}, indent=1))
    figures = {
        "questions": len(questions),
        "seed": options.seed,
        "accuracy": accuracy(questions, replies),
        "accuracy_shuffled": accuracy(questions, shuffled),
        "sentences_greedy": _share([is_sentence(reply) for reply in replies]),
        "sampled": {
            "questions": len(few),
            "accuracy": accuracy(few, sampled),
            "sentences": _share([is_sentence(reply) for reply in sampled]),
        },
        "text_before": text_answers(load_language_model(), processor),
        "text_after": text_answers(model, processor),
    }
    print(json.dumps(figures))


@torch.inference_mode()
def answer(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    questions: Sequence[Question],
    images: Sequence[Path],
    temperature: float = 0.0,
) -> list[str]:
    """One reply a question, generated in batches; greedy at temperature 0."""
    # Rows of a batch end together, where the answers begin: generation needs the padding on the left.
    processor.tokenizer.padding_side = "left"
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    replies: list[str] = []
    for start in range(0, len(questions), BATCH):
        prompts = [_prompt(processor, question.text) for question in questions[start : start + BATCH]]
        pictures = [[_open(path)] for path in images[start : start + BATCH]]
        inputs = processor(text=prompts, images=pictures, padding=True, return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        tokens = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, **sampling)
        fresh = tokens[:, inputs["input_ids"].shape[1] :]
        replies += [reply.strip() for reply in processor.batch_decode(fresh, skip_special_tokens=True)]
    return replies


def accuracy(questions: Sequence[Question], replies: Sequence[str]) -> dict[str, float | int]:
    """Share of right replies: all, open, yes/no; and how many questions of the last two kinds there are."""
    right = [is_right(question, reply) for question, reply in zip(questions, replies, strict=True)]
    closed = [hit for question, hit in zip(questions, right, strict=True) if question.kind == "yes/no"]
    opened = [hit for question, hit in zip(questions, right, strict=True) if question.kind != "yes/no"]
    return {
        "all": _share(right),
        "open": _share(opened),
        "yes_no": _share(closed),
        "open_questions": len(opened),
        "yes_no_questions": len(closed),
    }


@torch.inference_mode()
def text_answers(
    model: LlavaForConditionalGeneration | LlamaForCausalLM, processor: LlavaProcessor
) -> dict[str, str]:
    """Greedy answers to the text-only probes, without a system prompt."""
    answers = {}
    for probe in PROBES:
        text = processor.apply_chat_template([{"role": "user", "content": probe}], add_generation_prompt=True)
        inputs = processor.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        tokens = model.generate(**inputs, max_new_tokens=LONGEST_TEXT, do_sample=False)
        fresh = tokens[0, inputs["input_ids"].shape[1] :]
        answers[probe] = processor.decode(fresh, skip_special_tokens=True).strip()
    return answers


def _other_images(questions: Sequence[Question], choose: random.Random) -> list[Path]:
    """Each question gets the image of another one, never its own; every image is used as often as before.

    Sorted by image and turned by half the list, no question meets its image, as long as no image has half of
    them.
    """
    order = sorted(range(len(questions)), key=lambda place: (questions[place].image_id, choose.random()))
    half = len(order) // 2
    images: list[Path] = [questions[0].image_path] * len(questions)
    for place, other in zip(order, order[half:] + order[:half], strict=True):
        images[place] = questions[other].image_path
    return images


def _prompt(processor: LlavaProcessor, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return prompt


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _share(hits: Sequence[bool]) -> float:
    return round(sum(hits) / len(hits), 4) if hits else 0.0


if __name__ == "__main__":
    main()
