"""Columns in one batch say what each says alone, from turn to turn, and read nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import tiny
from test_merge import make_adapter
from tiny import ask, picture

torch = pytest.importorskip("torch")

from torch.overrides import TorchFunctionMode  # noqa: E402

from jobs.gpu.columns import Asked, Columns  # noqa: E402
from jobs.gpu.decoding import Decoding, Sampling, noise_seed  # noqa: E402
from jobs.gpu.kept_prompts import KeptPrompts, Prompt, image_spans, shared  # noqa: E402
from jobs.gpu.loading import Loaded  # noqa: E402
from jobs.gpu.lora import attach, speaking  # noqa: E402
from jobs.gpu.prompts import encode  # noqa: E402
from jobs.gpu.row_adapters import RowAdapters, is_lora, spans_of  # noqa: E402

GREEDY = Sampling(temperature=0.0, max_new_tokens=12, min_new_tokens=12)
DRAWN = Sampling(temperature=0.9, top_p=0.9, max_new_tokens=12, seed=3)
SEED = noise_seed(3, "chat", 0)
ENDS = frozenset({2})
Chat = list[dict[str, Any]]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.set_num_threads(1)
    folder = tiny.tiny_llava()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    base = Loaded(str(folder), model, AutoProcessor.from_pretrained(folder), torch.device("cpu"))
    made = {
        f"a{seed}": (make_adapter(tmp_path_factory.mktemp("adapters") / str(seed), seed=seed), str(seed))
        for seed in (1, 2)
    }
    return attach(base, made), base.processor


def alone(loaded: Any, adapter: str | None, chat: Chat, sampling: Sampling = GREEDY) -> list[int]:
    model, processor = loaded
    decoding = Decoding(model, encode(processor, [chat]), [SEED], sampling, ENDS)
    with speaking(model, adapter):
        while not decoding.finished:
            decoding.step()
    return decoding.answers[0].tokens


def together(
    loaded: Any,
    asked: Sequence[tuple[str | None, Chat]],
    kept: KeptPrompts | None = None,
    sampling: Sampling = GREEDY,
    meanwhile: Callable[[Columns, int], None] = lambda columns, step: None,
) -> Columns:
    model, processor = loaded
    columns = Columns(
        model,
        RowAdapters(model),
        [Asked(adapter, encode(processor, [chat])) for adapter, chat in asked],
        kept or KeptPrompts(),
        sampling,
        SEED,
        ENDS,
    )
    step = 0
    with speaking(model, None):
        while not columns.finished:
            columns.step()
            step += 1
            meanwhile(columns, step)
    return columns


def tokens(columns: Columns) -> list[list[int]]:
    return [answer.tokens for answer in columns.answers]


CHATS: dict[str, Chat] = {
    "text": ask("what is it?"),
    "image": ask("what is it?", picture("red")),
    "two images": ask("which one?", picture("red"), picture("blue")),
}


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
def test_each_row_says_what_it_says_alone(loaded: Any, chat: Chat, sampling: Sampling) -> None:
    names = ["a2", None, "a1", None]
    columns = together(loaded, [(name, chat) for name in names], sampling=sampling)
    assert tokens(columns) == [alone(loaded, name, chat, sampling) for name in names]
    assert len({tuple(one) for one in tokens(columns)}) == 3


def test_rows_of_different_prompts(loaded: Any) -> None:
    asked = [("a1", CHATS["image"]), (None, CHATS["text"]), ("a2", CHATS["two images"]), (None, ask("so?"))]
    assert tokens(together(loaded, asked)) == [alone(loaded, name, chat) for name, chat in asked]


def turn(chat: Chat, answer: str, text: str, *images: Any) -> Chat:
    return [*chat, {"role": "assistant", "content": [{"type": "text", "text": answer}]}, *ask(text, *images)]


@pytest.mark.parametrize("images", [(), (picture("green"),)], ids=["text", "another image"])
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
def test_the_second_turn_is_the_same_and_reads_only_what_is_new(loaded: Any, chat: Chat, images: Any) -> None:
    kept, names = KeptPrompts(), [None, "a1"]
    together(loaded, [(name, chat) for name in names], kept)
    # Each side goes on with an answer of its own; one is longer.
    second = [turn(chat, "a red circle", "sure?", *images), turn(chat, "no", "sure?", *images)]
    columns = together(loaded, list(zip(names, second, strict=True)), kept)
    assert tokens(columns) == [alone(loaded, name, one) for name, one in zip(names, second, strict=True)]
    first = encode(loaded[1], [chat])["input_ids"].shape[1]
    assert all(known >= first - 1 for known in columns.known), "what was read is known"


def test_an_edited_turn_keeps_what_stands_before_it(loaded: Any) -> None:
    kept = KeptPrompts()
    talk = turn(CHATS["image"], "a circle", "sure?")
    together(loaded, [(None, talk)], kept)
    edited = turn(CHATS["image"], "a circle", "which colour?")
    columns = together(loaded, [(None, edited)], kept)
    assert tokens(columns) == [alone(loaded, None, edited)]
    assert 0 < columns.known[0] < encode(loaded[1], [talk])["input_ids"].shape[1]


@pytest.mark.parametrize("other", [ask("what is it?", picture("blue")), ask("what is it?")])
def test_another_image_or_adapter_is_never_known(loaded: Any, other: Chat) -> None:
    kept = KeptPrompts()
    together(loaded, [(None, CHATS["image"])], kept)
    columns = together(loaded, [(None, other)], kept)
    assert tokens(columns) == [alone(loaded, None, other)]
    assert together(loaded, [("a1", CHATS["image"])], kept).known == [0]


def test_the_image_is_encoded_once_for_all_columns(loaded: Any) -> None:
    inner = loaded[0].get_base_model().model
    seen: list[int] = []
    encoded = inner.get_image_features

    def counting(pixel_values: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(pixel_values))
        return encoded(pixel_values, *args, **kwargs)

    inner.get_image_features = counting
    try:
        kept = KeptPrompts()
        together(loaded, [(name, CHATS["two images"]) for name in (None, "a1", "a2")], kept)
        together(loaded, [(name, turn(CHATS["two images"], "red", "sure?")) for name in (None, "a1")], kept)
    finally:
        del inner.get_image_features
    assert seen == [2]


def test_a_column_that_stops_leaves_the_batch_and_the_others_go_on(loaded: Any) -> None:
    model, _ = loaded
    widths: list[int] = []
    handle = model.get_base_model().lm_head.register_forward_hook(lambda m, i, o: widths.append(len(o)))
    chat, kept = CHATS["image"], KeptPrompts()

    def stop(columns: Columns, step: int) -> None:
        if step == 4:
            columns.stop(0)

    try:
        columns = together(loaded, [("a1", chat), (None, chat)], kept, meanwhile=stop)
    finally:
        handle.remove()
    assert widths == [2] * 4 + [1] * 8
    assert tokens(columns) == [alone(loaded, "a1", chat)[:4], alone(loaded, None, chat)]
    again = together(loaded, [("a1", turn(chat, "x", "go on"))], kept)
    assert again.known[0] > 0, "what it had read is known"


def test_the_model_is_left_as_it_was(loaded: Any) -> None:
    model, _ = loaded
    before = alone(loaded, "a1", CHATS["image"])
    with pytest.raises(ValueError, match="no adapter 'a9' is loaded"):
        together(loaded, [("a9", CHATS["image"])])
    assert alone(loaded, "a1", CHATS["image"]) == before
    assert not [module for module in model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize("finer", [True, False], ids=["adapter in 32 bits", "adapter in 16 bits"])
def test_in_16_bits_one_row_is_rounded_as_pefts(loaded: Any, tmp_path: Path, finer: bool) -> None:
    from transformers import AutoModelForImageTextToText

    folder = tiny.tiny_llava()
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16).eval()
    base = Loaded(str(folder), model, loaded[1], torch.device("cpu"))
    peft = attach(base, {"a1": (make_adapter(tmp_path / "one", seed=1), "one")})
    if not finer:
        peft.to(torch.bfloat16)
    layer = next(module for module in peft.modules() if is_lora(module))
    assert layer.lora_A["a1"].weight.dtype == (torch.float32 if finer else torch.bfloat16)
    inputs = encode(loaded[1], [CHATS["text"]])
    given = torch.randn(1, 50, layer.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.inference_mode():
        with speaking(peft, "a1"):
            single, whole = layer(given), peft(**inputs).logits
        with speaking(peft, None), RowAdapters(peft).speaking(["a1"]):
            assert torch.equal(layer(given), single)
            assert torch.equal(peft(**inputs).logits, whole)
        with speaking(peft, None):
            assert not torch.equal(peft(**inputs).logits, whole)


class Multiplied(TorchFunctionMode):
    """Collects what was the first factor of a `torch.mm`."""

    def __init__(self) -> None:
        super().__init__()
        self.first: list[Any] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.mm:
            self.first.append(args[0])
        return function(*args, **(kwargs or {}))


def test_two_rows_are_asked_the_quick_way_with_and_without_lora(loaded: Any) -> None:
    model, _ = loaded
    base = model.get_base_model()
    quick = {id(base.lm_head.weight)}
    quick |= {id(module.base_layer.weight) for module in model.modules() if is_lora(module)}
    with Multiplied() as multiplied:
        together(loaded, [(None, CHATS["text"]), ("a1", CHATS["text"])])
    assert {id(one) for one in multiplied.first} >= quick
    with Multiplied() as multiplied:
        together(loaded, [("a1", CHATS["text"])])
    assert not {id(one) for one in multiplied.first} & quick
    with Multiplied() as multiplied:
        together((base_without_adapters(), loaded[1]), [(None, CHATS["text"])] * 2)
    assert len({id(one) for one in multiplied.first}) == len(quick)


def base_without_adapters() -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(tiny.tiny_llava(), dtype=torch.float32).eval()


def test_a_layer_that_somebody_listens_to_is_called(loaded: Any) -> None:
    model, _ = loaded
    base = next(module for module in model.modules() if is_lora(module)).base_layer
    heard: list[int] = []
    handle = base.register_forward_hook(lambda *_: heard.append(1))
    try:
        columns = together(loaded, [(None, CHATS["text"]), ("a1", CHATS["text"])])
    finally:
        handle.remove()
    assert len(heard) == 12
    assert tokens(columns) == [alone(loaded, name, CHATS["text"]) for name in (None, "a1")]


def test_rows_of_one_adapter_lie_together() -> None:
    assert spans_of([None, "a", "a", None, "b"]) == [("a", slice(1, 3)), ("b", slice(4, 5))]
    with pytest.raises(ValueError, match="beside each other"):
        spans_of(["a", None, "a"])


def test_what_is_kept_has_an_end() -> None:
    def layers(length: int) -> list[Any]:
        return [(torch.zeros(1, 2, length, 4), torch.zeros(1, 2, length, 4))]

    def prompt(*ids: int) -> Prompt:
        return Prompt(torch.tensor(ids))

    kept = KeptPrompts(most_bytes=2 * 2 * 4 * 4 * 5)  # five tokens
    kept.keep(None, prompt(1, 2, 3), layers(3))
    kept.keep(None, prompt(1, 2, 3, 4), layers(4))
    assert kept.bytes == 2 * 2 * 4 * 4 * 4, "what goes on replaces what it began with"
    found = kept.find(None, prompt(1, 2, 9, 9))
    assert found
    assert found.length == 2
    kept.keep("a", prompt(7, 8, 9), layers(3))
    assert kept.find(None, prompt(1, 2, 3)) is None, "the oldest goes"
    assert kept.find("a", prompt(7, 8, 9)).length == 2  # type: ignore[union-attr]  # one is left to read


def test_a_longer_conversation_outlives_an_edit_of_its_beginning() -> None:
    def layers(length: int) -> list[Any]:
        return [(torch.zeros(1, 2, length, 4), torch.zeros(1, 2, length, 4))]

    kept, long = KeptPrompts(), Prompt(torch.tensor([1, 2, 3, 4, 5, 6]))
    kept.keep(None, long, layers(6))
    kept.keep(None, Prompt(torch.tensor([1, 2, 3, 9])), layers(4))
    kept.keep(None, Prompt(torch.tensor([1, 2, 3])), layers(3))
    found = kept.find(None, Prompt(torch.tensor([1, 2, 3, 4, 5, 6, 7])))
    assert found
    assert found.length == 6
    kept.keep(None, long, layers(6))
    assert kept.bytes == 2 * 2 * 4 * 4 * (6 + 4), "the same one, and what it begins with, go"


def test_images_count_as_a_whole() -> None:
    def prompt(ids: list[int], *images: str) -> Prompt:
        spans = image_spans(torch.tensor(ids), 9, len(images))
        last = max((place for place, one in enumerate(ids) if one == 9), default=-1)
        return Prompt(torch.tensor(ids), images, spans, last + 1)

    known = prompt([1, 9, 9, 2, 9, 9, 3], "red", "blue")
    assert shared(known, prompt([1, 9, 9, 2, 9, 9, 3, 4], "red", "blue")) == 7
    assert shared(known, prompt([1, 9, 9, 2, 9, 9, 3, 4], "red", "green")) == 4
    assert shared(known, prompt([1, 9, 9, 2, 9, 9, 3, 4], "green", "blue")) == 1
    assert shared(known, prompt([1, 9, 9, 9, 2], "red")) == 1
    assert shared(known, prompt([1, 2])) == 1
    assert image_spans(torch.tensor([9, 9, 9, 9]), 9, 2) == (slice(0, 2), slice(2, 4))
    assert image_spans(torch.tensor([9, 9, 9, 1, 9]), 9, 2) == (slice(0, 3), slice(4, 5))
    assert image_spans(torch.tensor([9, 9, 9, 1, 9]), 9, 3) == ()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_an_adapter_with_a_projector_of_its_own_is_told_apart(loaded: Any, tmp_path: Path) -> None:
    model, _ = loaded
    rows = RowAdapters(model)
    assert [rows.refusal(name) for name in (None, "a1")] == ["", ""]
    model.peft_config["a1"].modules_to_save = ["multi_modal_projector"]
    try:
        assert "projector" in RowAdapters(model).refusal("a1")
    finally:
        model.peft_config["a1"].modules_to_save = None
