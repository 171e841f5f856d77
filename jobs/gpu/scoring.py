"""The log-probabilities of pairs under whatever the model is at the moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from jobs.gpu.material import Material

#: What a batch brings beside the model's own arguments.
NOT_FOR_THE_MODEL = frozenset({"completion_mask", "ref_chosen_logps", "ref_rejected_logps"})


class PairScorer:
    """Takes places of pairs, gives the log-probabilities of their answers. No gradient, no dropout.

    Args:
        trainer: one of ours: its model, precision and device are used.
        collate: pairs of the material's data set → a batch.
    """

    def __init__(self, trainer: Any, material: Material, collate: Any) -> None:
        self._trainer = trainer
        self._collate = collate
        self._pairs = material.dataset([p for p, row in enumerate(material.rows) if "chosen" in row])
        self._where = {place: number for number, place in enumerate(self._pairs["place"])}

    def batch(self, places: Sequence[int]) -> dict[str, Any]:
        """The batch of these pairs, on the trainer's device."""
        return self._trainer._prepare_inputs(self._collate([self._pairs[self._where[place]] for place in places]))

    def __call__(self, places: Sequence[int]) -> tuple[list[float], list[float]]:
        """The summed log-probabilities of their chosen and of their rejected answers."""
        chosen, rejected = self.score(self.batch(places))
        return chosen.tolist(), rejected.tolist()

    def score(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a batch of B pairs, (B,) and (B,), in float32."""
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
        named = {name: value for name, value in batch.items() if name not in NOT_FOR_THE_MODEL}
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), self._trainer.accelerator.autocast():
                found = model(**named, use_cache=False, labels=labels, fused_lm_head=True).log_probs
        finally:
            model.train(training)
        chosen, rejected = found.float().sum(dim=1).chunk(2)
        return chosen, rejected
