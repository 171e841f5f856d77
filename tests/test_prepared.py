"""Prepared pairs: the same tensors as the processor makes for a batch; and the order of batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from jobs.gpu.answering import end_tokens
from jobs.gpu.collate import PreparedCollator, StockCollator, as_dataset, batch_images
from jobs.gpu.prepared import Entry, Shelf, prepare
from jobs.gpu.sampling import LengthBatches
from jobs.runs import RunFolder


def rows_with_images(folder: Path) -> tuple[RunFolder, list[dict[str, Any]]]:
    images = [tiny.store(folder / "images", tiny.picture(colour)) for colour in ("red", "blue", "green")]
    names = [name for name, _ in images]
    rows = [
        {
            "split": "train",
            "pair_id": number,
            "messages": tiny.ask(f"what is {number}? <image>" * number, *names[: number % 4]),
            "chosen": "It is <|im_end|> red." * number + "yes",
            "rejected": "no",
        }
        for number in range(5)
    ]
    return tiny.frozen_run(folder / "run", "dpo", {"dataset": "pairs"}, rows, images), rows


def processor_and_model() -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = tiny.tiny_llava()
    return AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.parametrize("bound", [1 << 30, 0])
def test_batches_are_those_that_the_processor_makes(
    tmp_path: Path, bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.gpu.prepared.IN_MEMORY", bound)
    monkeypatch.setattr(Shelf.__init__, "__defaults__", (bound,))
    run, rows = rows_with_images(tmp_path)
    processor, model = processor_and_model()
    ends = end_tokens(model, processor.tokenizer)
    prepared = prepare(run, processor, ends, rows, torch.float32, True, lambda done: None)
    stock = StockCollator(run, processor, ends)
    ours = PreparedCollator(prepared, processor.tokenizer.pad_token_id, row_wise=False)
    everything = as_dataset(rows, range(len(rows)), prepared.entries)
    for places in ([0], [1, 3], [4, 0, 2], [3, 3]):
        examples = [everything[place] for place in places]
        wanted, found = stock(examples), ours(examples)
        assert wanted.keys() == found.keys()
        for name in ("input_ids", "attention_mask", "completion_mask"):
            assert torch.equal(wanted[name], found[name]), name
        if "pixel_values" in wanted:
            half = len(wanted["pixel_values"]) // 2
            assert torch.equal(wanted["pixel_values"][:half], found["pixel_values"])
            assert torch.equal(wanted["pixel_values"][half:], found["pixel_values"])


def test_no_image_is_opened_after_preparing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, rows = rows_with_images(tmp_path)
    processor, model = processor_and_model()
    ends = end_tokens(model, processor.tokenizer)
    done: list[int] = []
    prepared = prepare(run, processor, ends, rows, torch.bfloat16, True, done.append)
    assert done == list(range(len(rows)))
    monkeypatch.setattr("PIL.Image.open", lambda *_: pytest.fail("an image was opened"))
    batch = PreparedCollator(prepared, 0, row_wise=False)([{"place": 1}, {"place": 3}])
    assert batch["pixel_values"].dtype == torch.bfloat16  # as the model would take it to
    assert prepared.shelf.bytes == (1 + 2 + 3) * 3 * 16 * 16 * 2  # each list of images once


def test_images_of_several_sizes_are_filled_up() -> None:
    wide, tall = torch.ones(1, 2, 3), torch.ones(2, 4, 1)
    batch = batch_images([{"x": wide}, {}, {"x": tall}], row_wise=False)["x"]
    assert batch.shape == (3, 4, 3)
    assert batch.sum() == wide.sum() + tall.sum()
    assert torch.equal(batch[0, :2, :3], wide[0])
    by_row = batch_images([{}, {"x": tall[:1]}], row_wise=True)["x"]
    assert by_row.shape == (2, 4, 1)
    assert not by_row[0].any()
    assert batch_images([{}, {}], row_wise=True) == {}


def test_a_pair_knows_its_lengths() -> None:
    pair = Entry([1] * 10, ([2] * 3, [3] * 7), {}, ())
    assert (pair.length, pair.longest) == (20, 17)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 99), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 3))
def test_each_item_comes_once_an_epoch(lengths: list[int], batch: int, seed: int) -> None:
    sampler = LengthBatches(lengths, batch, seed)
    first, again = list(sampler), list(sampler)
    assert first == again
    assert sorted(first) == list(range(len(lengths)))
    assert len(sampler) == len(lengths)
    sampler.set_epoch(1)
    assert sorted(sampler) == sorted(first)


def test_batches_hold_like_lengths_in_an_order_of_their_own() -> None:
    lengths = [(place * 37) % 100 for place in range(400)]
    sampler = LengthBatches(lengths, 4, seed=0)
    batches = [[lengths[place] for place in list(sampler)[at : at + 4]] for at in range(0, 400, 4)]
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 4
    means = [sum(batch) / 4 for batch in batches]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)
    # No drift along the epoch: the halves are alike.
    assert abs(sum(means[:50]) - sum(means[50:])) / 50 < 15
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_the_trainer_walks_epochs_in_different_orders(tmp_path: Path) -> None:
    from jobs.configs import DpoConfig
    from jobs.gpu.callbacks import Telling
    from jobs.gpu.dpo import Preferences
    from jobs.gpu.loading import load
    from jobs.gpu.material import read_material
    from jobs.gpu.training import make_trainer
    from jobs.reporter import Reporter

    run, rows = rows_with_images(tmp_path)
    short = {
        "dataset": "pairs",
        "dtype": "float32",
        "batch_size": 1,
        "accumulation": 1,
        "lora_r": 2,
        "epochs": 3.0,
    }
    config = DpoConfig.model_validate({**short, "model": str(tiny.tiny_llava())})
    seen: list[int] = []
    with Reporter(run) as reporter, pytest.MonkeyPatch.context() as patch:
        loaded = load(config.model, "float32", torch.device("cpu"), tmp_path, reporter)
        material = read_material(run, loaded, rows, True, reporter)
        trainer = make_trainer(run, config, loaded, material, Telling(reporter, config, 0), shared=True)
        collate = trainer.data_collator

        def watch(examples: Any) -> Any:
            seen.append(examples[0]["place"])
            return collate(examples)

        trainer.data_collator = watch
        patch.setattr(Preferences, "_save_checkpoint", lambda *_: None)
        trainer.train()
    epochs = [seen[at : at + 5] for at in (0, 5, 10)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]
