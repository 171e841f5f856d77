"""Each family, with its real processor, through the jobs: trains, loses nothing on the way, resumes, generates."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

import tiny
import tiny_vlms
from jobs.gpu.loading import load
from jobs.gpu.prompts import encode
from jobs.gpu.trainers import Common
from jobs.reporter import Reporter
from jobs.runs import RunFolder
from jobs.worker import work

pytestmark = pytest.mark.slow  # as a whole: see the marker in pyproject.toml

FAMILIES = list(tiny_vlms.FAMILIES)
FAST = {
    "dataset": "pairs",
    "dtype": "float32",
    "batch_size": 4,
    "global_batch": 4,
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "learning_rate": 5e-3,
    "epochs": 100.0,
    "max_steps": 8,
    "evaluations": 0,
    "watched_samples": 0,
    "watched_prompts": "",
    "keep_checkpoints": 0,
    "report_to": "",
}
SHARED = "Each pair runs as one sequence"
STOCK = "Each pair runs as two sequences"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(folder: Path) -> list[tuple[str, Path]]:
    """Of several shapes, so that tiles and patches differ in number."""
    shapes = [("red", (40, 20)), ("blue", (24, 24)), ("green", (16, 40))]
    return [
        tiny.store(folder, tiny.picture(colour, 60).resize(size))  # a picture with structure
        for colour, size in shapes
    ]


def training_run(folder: Path, name: str, kind: str = "dpo", **changes: Any) -> RunFolder:
    """Rows without an image, with one and with two, side by side in a batch."""
    images = pictures(folder.parent / "images")
    names = [image for image, _ in images]
    rows = []
    for number in range(8):
        shown = (names[number % 3 :] + names)[: number % 3]
        answer = f"It is a {'red' if number % 2 else 'blue'} thing."
        row = {"sample_id": number, "messages": tiny.ask(f"what is {number}?", *shown), "split": "train"}
        if kind == "dpo":
            rows.append({**row, "kind": "pair", "pair_id": number, "chosen": answer, "rejected": "no"})
        else:
            rows.append({**row, "kind": "answer", "answer": answer})
    config = {**FAST, "model": str(tiny_vlms.folder(name)), **changes}
    return tiny.frozen_run(folder, kind, config, rows, images)


def losses(run: RunFolder) -> list[float]:
    return [event["values"]["loss"] for event in tiny.events(run, "metric") if "loss" in event["values"]]


def notes(run: RunFolder) -> str:
    return "\n".join(event["text"] for event in tiny.events(run, "note"))


class Watched:
    """What processors make and what a model gets of it while it trains.

    A shared prefix hands images to `get_image_features` and token types to `get_rope_index`, and the backbone
    gets what they return: so all three count.
    """

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from transformers import AutoModelForImageTextToText

        self.made: set[str] = set()
        self.reached: set[str] = set()
        self.training = False
        model = AutoModelForImageTextToText.from_pretrained(tiny_vlms.folder(name))
        backbone = type(model.base_model)
        assert backbone is not type(model)
        for method in ("forward", "get_image_features", "get_rope_index"):
            if hasattr(backbone, method):
                monkeypatch.setattr(backbone, method, self.spied(getattr(backbone, method)))
        monkeypatch.setattr(Common, "training_step", self.flagged(Common.training_step))
        owner = next(kind for kind in type(tiny_processor(name)).__mro__ if "__call__" in vars(kind))
        monkeypatch.setattr(owner, "__call__", self.making(owner.__call__))

    def spied(self, real: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(real)

        @functools.wraps(real)
        def spy(*given: Any, **named: Any) -> Any:
            if self.training:
                bound = signature.bind(*given, **named)
                arguments = {**bound.arguments, **bound.arguments.get("kwargs", {})}
                self.reached |= {key for key, value in arguments.items() if value is not None}
            return real(*given, **named)

        return spy

    def flagged(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any, **named: Any) -> Any:
            self.training = True
            try:
                return real(*given, **named)
            finally:
                self.training = False

        return step

    def making(self, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def call(*given: Any, **named: Any) -> Any:
            made = real(*given, **named)
            self.made |= {key for key, value in made.items() if isinstance(value, torch.Tensor)}
            return made

        return call


def tiny_processor(name: str) -> Any:
    from transformers import AutoConfig

    from jobs.gpu.processors import read_processor

    folder = str(tiny_vlms.folder(name))
    return read_processor(folder, AutoConfig.from_pretrained(folder))


#: What each family's processor makes of a batch with images: a test that watched nothing would pass without these.
KEYS = {
    "llava": {"pixel_values"},
    "llava_next": {"pixel_values", "image_sizes"},
    "qwen2_5_vl": {"pixel_values", "image_grid_thw", "mm_token_type_ids"},
    "smolvlm": {"pixel_values", "pixel_attention_mask"},
    "gemma3": {"pixel_values", "token_type_ids"},
}


@pytest.mark.parametrize("kind", ["dpo", "sft"])
@pytest.mark.parametrize("prepared", [True, False], ids=["prepared", "stock"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_key_of_the_processor_reaches_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, prepared: bool, kind: str
) -> None:
    """trl#4071 lost `image_grid_thw` between the two, and a Qwen2-VL trained on nonsense."""
    if not prepared and kind == "sft":
        # There the path isn't a setting: a model that can't share a prefix takes it.
        monkeypatch.setattr("jobs.gpu.material.why_not", lambda model: "the test asks for it")
    changes = {"max_steps": 2, **({"shared_prefix": prepared} if kind == "dpo" else {})}
    run = training_run(tmp_path / "run", name, kind, **changes)
    watched = Watched(name, monkeypatch)
    assert work(run.path) == 0, tiny.events(run, "end")
    assert watched.made == KEYS[name] | {"input_ids", "attention_mask"}
    packed = prepared and tiny_vlms.FAMILIES[name].shared
    # Rows alone, padded on the right, need no mask: jobs/gpu/shared_prefix.py, `_score_alone`.
    unneeded = {"attention_mask"} if kind == "sft" and packed else set()
    assert watched.made - unneeded <= watched.reached
    if kind == "dpo":
        assert (SHARED if packed else STOCK) in notes(run)
    else:
        assert ("the stock way" in notes(run)) is not packed


@pytest.mark.parametrize("name", FAMILIES)
def test_another_picture_is_another_answer(tmp_path: Path, name: str) -> None:
    """Alone and in a batch with text alone and with two pictures; padding changes nothing."""
    loaded = load(str(tiny_vlms.folder(name)), "float32", torch.device("cpu"), tmp_path, MagicMock())

    def after(*conversations: Any) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = loaded.model(**encode(loaded.processor, list(conversations))).logits[:, -1]
        return logits

    red, blue = tiny.picture("red", 48), tiny.picture("blue", 48).resize((48, 24))
    asked = [tiny.ask("what?"), tiny.ask("what?", red), tiny.ask("what?", blue), tiny.ask("what?", red, blue)]
    alone = [after(one)[0] for one in asked]
    torch.testing.assert_close(after(*asked), torch.stack(alone), atol=2e-4, rtol=2e-4)
    assert all((one - other).abs().max() > 0.01 for one, other in itertools.combinations(alone, 2))


@functools.cache
def trained(parent: Path, name: str, kind: str) -> RunFolder:
    changes = {"learning_rate": 5e-2} if kind == "sft" else {}
    run = training_run(parent / f"{name}-{kind}" / "run", name, kind, **changes)
    assert work(run.path) == 0, tiny.events(run, "end")
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], RunFolder]:
    return functools.partial(trained, tmp_path_factory.mktemp("families"))


@pytest.mark.parametrize("name", FAMILIES)
def test_it_trains_by_dpo(runs: Any, name: str) -> None:
    run = runs(name, "dpo")
    found = losses(run)
    assert len(found) == 8
    assert found[0] == pytest.approx(math.log(2), abs=1e-3)  # policy = reference before the first step
    assert found[-1] < found[0] / 2
    assert (SHARED if tiny_vlms.FAMILIES[name].shared else STOCK) in notes(run)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_trains_by_sft(runs: Any, name: str) -> None:
    found = losses(runs(name, "sft"))
    assert len(found) == 8
    assert found[-1] < found[0] * 0.7


@pytest.mark.parametrize("name", FAMILIES)
def test_its_adapter_changes_its_answers(runs: Any, tmp_path: Path, name: str) -> None:
    """The generate job with the adapter, images and all; the base beside it answers otherwise."""
    adapter = runs(name, "dpo").adapter
    images = pictures(tmp_path / "images")
    names = [image for image, _ in images]
    rows = [{"sample_id": count, "messages": tiny.ask("what is 1?", *names[:count])} for count in (0, 1, 2)]
    config = {
        "model": str(tiny_vlms.folder(name)),
        "dtype": "float32",
        "max_new_tokens": 12,
        "temperature": 1.0,
        "candidates": 2,
    }
    texts = {}
    for chosen in (None, 3):
        run = tiny.frozen_run(
            tmp_path / f"run-{chosen}",
            "generate",
            {**config, "adapter": chosen},
            rows,
            images,
            {3: adapter} if chosen else None,
        )
        assert work(run.path) == 0, tiny.events(run, "end")
        alone = "answers one sample at a time, through transformers' generate" in notes(run)
        assert alone is (name in ("qwen2_5_vl", "gemma3"))  # the others by our own loop
        found = tiny.events(run, "candidate")
        assert [event["sample_id"] for event in found] == [0, 0, 1, 1, 2, 2], notes(run)
        texts[chosen] = [event["text"] for event in found]
    assert sum(base != other for base, other in zip(texts[None], texts[3], strict=True)) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_it_goes_on_from_a_checkpoint(
    runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Stopped in the middle and run again, it ends where the run without a stop ended."""
    from safetensors.torch import load_file

    whole = training_run(tmp_path / "whole", name, max_steps=6, keep_checkpoints=1)
    assert work(whole.path) == 0, tiny.events(whole, "end")
    run = training_run(tmp_path / "run", name, max_steps=6, keep_checkpoints=1)
    told = Reporter.progress

    def stop_after_three(self: Reporter, done: float, total: float, unit: str = "items") -> None:
        told(self, done, total, unit)
        if unit == "steps" and done == 3:
            run.ask_to_stop()

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "progress", stop_after_three)
        assert work(run.path) == 0
    assert tiny.events(run, "end")[-1]["status"] == "stopped"
    assert not run.adapter.exists()
    run.control.unlink()
    assert work(run.path) == 0, tiny.events(run, "end")
    assert "Going on from the checkpoint of step 3" in notes(run)
    assert len(losses(run)) == 6
    ours, theirs = (load_file(one.adapter / "adapter_model.safetensors") for one in (run, whole))
    assert ours.keys() == theirs.keys()
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-6, rtol=0)
