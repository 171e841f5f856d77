"""Supervised fine-tuning on TRL's SFTTrainer: SteerLM, rejection sampling and SFT differ in their rows alone."""

from __future__ import annotations

from typing import Any

from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from jobs.configs import TrainConfig
from jobs.gpu.loading import Loaded
from jobs.gpu.material import Material
from jobs.gpu.policy import keep_reference
from jobs.gpu.shared_prefix import SharedPrefix
from jobs.gpu.trainers import Common, common_settings
from jobs.runs import RunFolder


class Supervised(Common, SFTTrainer):
    """TRL's trainer on rows with one answer each; the loss is the mean over the answers' tokens."""


class Labelled:
    """A collator's batches with labels: the answers' tokens, −100 elsewhere.

    Args:
        packed: a shared prefix stands in the model's place of `forward`, and must share nothing here.
    """

    def __init__(self, collate: Any, packed: bool) -> None:
        self.collate = collate
        self.packed = packed

    def __call__(self, examples: Any) -> dict[str, Any]:
        batch = self.collate(examples)
        answers = batch.pop("completion_mask")
        labels = batch["input_ids"].masked_fill(answers == 0, -100)
        return {**batch, "labels": labels, **({"alone": True} if self.packed else {})}


def make_sft(
    run: RunFolder,
    config: TrainConfig,
    loaded: Loaded,
    policy: Any,
    material: Material,
    collator: Any,
    callbacks: list[Any],
    shared: bool,
) -> Supervised:
    """TRL's trainer with all its settings."""
    trainer = Supervised(
        model=policy,
        args=TrlConfig(**common_settings(run, config, loaded)),
        train_dataset=material.dataset(material.training),
        eval_dataset=material.dataset(material.held_out) if material.held_out else None,
        processing_class=loaded.processor,
        data_collator=Labelled(collator, shared),
        callbacks=callbacks,
    )
    keep_reference(policy, config.start_adapter is not None)
    if shared:
        trainer.prefix = SharedPrefix(policy.get_base_model(), images_once=True).install()
    return trainer
