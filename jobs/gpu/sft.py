"""Supervised fine-tuning on TRL's SFTTrainer: SteerLM, rejection sampling and SFT differ in their rows alone.

Loss: the mean negative log-probability of the answers' tokens, over all of a step's, however they are spread over
batches and processes. The prompt isn't learned (TRL's `completion_only_loss`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from trl import SFTConfig as TrlConfig
from trl import SFTTrainer

from jobs.configs import SteerlmConfig, TrainConfig
from jobs.gpu.collate import kindred
from jobs.gpu.loading import Loaded
from jobs.gpu.material import Material
from jobs.gpu.policy import keep_reference, keeping_precision
from jobs.gpu.sampling import KinBatches, LengthBatches
from jobs.gpu.shared_prefix import SharedPrefix
from jobs.gpu.trainers import Common, common_settings
from jobs.runs import RunFolder


class Supervised(Common, SFTTrainer):
    """TRL's trainer on rows with one answer each; held-out means weigh every token of an answer alike.

    Attributes:
        kin: of each row to train on, the number of those that it shares a sequence with; empty: it shares none.
        kin_lengths: tokens that each of them adds to its sequence.
    """

    kin: list[int]
    kin_lengths: list[int]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.kin, self.kin_lengths = [], []
        self._seen: list[torch.Tensor] = []
        super().__init__(*arguments, **named)
        # Qwen2.5-VL and Gemma 3 say that their own loss can't be divided by a step's tokens. TRL takes the loss
        # from log-probabilities, and can: without this its mean would be one of the batches' means there.
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthBatches:
        if self.kin:
            return KinBatches(self.kin_lengths, self.kin, self.args.train_batch_size, self.args.data_seed)
        return super()._get_train_sampler(train_dataset)

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, None, None]:
        """The batch's loss; what `evaluation_loop` divides at the end is kept row by row, as it is gathered."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            found = model(**inputs, use_cache=False, fused_lm_head=True)
        kept = (found.label_mask, -found.log_probs, found.is_top1, found.entropy)
        sums = torch.stack([each.float().sum(dim=1) for each in kept], dim=1)
        totals = self.accelerator.gather_for_metrics(sums).sum(dim=0)
        self._seen.append(totals.cpu().double())
        return totals[1] / totals[0].clamp(min=1), None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Means over all tokens: transformers' own is over the batches' means, whatever their tokens are."""
        self._seen.clear()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        if self._seen:
            tokens, loss, right, entropy = torch.stack(self._seen).sum(dim=0).tolist()
            means = {"loss": loss, "mean_token_accuracy": right, "entropy": entropy}
            output.metrics.update(
                {f"{metric_key_prefix}_{name}": value / max(tokens, 1) for name, value in means.items()}
            )
        return output


class Labelled:
    """A collator's batches with labels: the answers' tokens, −100 elsewhere.

    Args:
        packed: a shared prefix stands in the model's place of `forward`, and must be told what the rows share.
    """

    def __init__(self, collate: Any, packed: bool) -> None:
        self.collate = collate
        self.packed = packed

    def __call__(self, examples: Any) -> dict[str, Any]:
        batch = self.collate(examples)
        answers = batch.pop("completion_mask")
        batch["labels"] = batch["input_ids"].masked_fill(answers == 0, -100)
        if self.packed and "groups" not in batch:
            batch["alone"] = True
        return batch


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
    """TRL's trainer with all its settings.

    Args:
        collator: the one for pairs and single answers alike.
        shared: the model can share a prefix.
    """
    kin: list[int] = []
    held_out = material.held_out
    if shared and isinstance(config, SteerlmConfig) and config.shared_prefix:
        kin = kindred(material.rows, material.prepared.entries, loaded.model.config.image_token_id)
        collator = dataclasses.replace(collator, kin=kin)
        held_out = by_kin(held_out, kin, material.lengths)
    with keeping_precision(policy):
        trainer = Supervised(
            model=policy,
            args=TrlConfig(**common_settings(run, config, loaded)),
            train_dataset=material.dataset(material.training),
            eval_dataset=material.dataset(held_out) if held_out else None,
            processing_class=loaded.processor,
            data_collator=Labelled(collator, shared),
            callbacks=callbacks,
        )
    if kin:
        trainer.kin = [kin[place] for place in material.training]
        trainer.kin_lengths = added_tokens(material, kin)
    keep_reference(policy, config.start_adapter is not None)
    if shared:
        trainer.prefix = SharedPrefix(policy.get_base_model(), images_once=True).install()
    return trainer


def by_kin(places: Sequence[int], kin: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """Kin side by side, those with like lengths near each other."""
    longest: dict[int, int] = {}
    for place in places:
        longest[kin[place]] = max(longest.get(kin[place], 0), lengths[place])
    return sorted(places, key=lambda place: (longest[kin[place]], kin[place]))


def added_tokens(material: Material, kin: Sequence[int]) -> list[int]:
    """Of each row to train on, what it adds to its kin's sequence: the first all it has, the others their answer.

    The ends of their prompts, which differ too, are about as long in every row.
    """
    known: set[int] = set()
    found = []
    for place in material.training:
        entry = material.prepared.entries[place]
        found.append(sum(map(len, entry.answers)) if kin[place] in known else entry.length)
        known.add(kin[place])
    return found
