"""What is exported for TRL trains with stock TRL, as it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import tiny
from factories import USER, open_world
from jobs.freezing import freeze
from storage.exports.writing import export_dataset
from storage.pairs import choose_by_hand


@pytest.mark.slow
def test_stock_trl_trains_on_the_export(tmp_path: Path) -> None:
    from datasets import load_dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig, DPOTrainer

    world = open_world(tmp_path / "data")
    for number in range(6):
        better, worse = world.candidates(world.sample(number), ["it is a circle", "a square"])
        choose_by_hand(world.db, USER, better.id, worse.id)
    freeze(world.db, USER, "shapes", heldout_percent=20)
    export_dataset(world.db, world.folder, "shapes", "trl", tmp_path / "out")
    world.db.close()

    rows = load_dataset(
        "parquet", data_files=str(tmp_path / "out" / "train.parquet"), cache_dir=str(tmp_path / "c")
    )
    model: Any = AutoModelForImageTextToText.from_pretrained(tiny.tiny_llava())
    seen: list[Any] = []
    model.model.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["pixel_values"]), with_kwargs=True
    )
    config = DPOConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        max_length=None,
    )
    processor = AutoProcessor.from_pretrained(tiny.tiny_llava())
    trainer = DPOTrainer(model=model, args=config, train_dataset=rows["train"], processing_class=processor)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3), "the policy begins as the reference"
    assert losses[1] != losses[0]
    assert seen, "the pictures reach the vision tower"
    assert all(pixels.shape[1] == 3 for pixels in seen)
