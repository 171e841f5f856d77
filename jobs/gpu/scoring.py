"""The log-probabilities of pairs under whatever the model is at the moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from jobs.gpu.material import Material

#: Of each pair's place the reference's log-probabilities of its chosen and its rejected answer.
References = Mapping[int, tuple[float, float]]

#: What a batch brings beside the model's own arguments.
NOT_FOR_THE_MODEL = frozenset({"completion_mask", "ref_chosen_logps", "ref_rejected_logps"})

#: Far below what a pixel tells, and no zero in bfloat16 either.
NEARLY_ZERO = 1e-6


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


def blanked(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with every image replaced by a plain one of the processor's mean colour.

    Processors subtract the mean, so that zero is its colour. The SmolVLM family and LLaVA-NeXT fill rows up with
    images, or tiles, of zeros alone, and SmolVLM drops such: there they stay zero, and the real ones don't.
    """
    changed = dict(batch)
    for name, value in batch.items():
        if name.startswith("pixel_values"):
            changed[name] = torch.full_like(value, NEARLY_ZERO)
            if value.dim() == 5:  # rows, images or tiles, colours, height, width
                changed[name][(value == 0).flatten(2).all(dim=2)] = 0.0
    return changed


def reward_metrics(
    places: Sequence[int],
    scores: tuple[Sequence[float], Sequence[float]],
    references: References,
    beta: float,
) -> dict[str, float]:
    """What pairs say of a policy, as means over them, each weighing alike.

    An answer's reward is β (log π(y|x) − log π_ref(y|x)), which a policy is trained to by DPO (Rafailov et al.
    2023, arXiv 2305.18290, section 4). A pair counts as right where its chosen answer has more of it.

    Args:
        scores: of each place the policy's log-probabilities of its chosen and of its rejected answer.
    """
    count = len(places)
    rewards = [
        [beta * (score - references[place][side]) for place, score in zip(places, scores[side], strict=True)]
        for side in (0, 1)
    ]
    margins = [chosen - rejected for chosen, rejected in zip(*rewards, strict=True)]
    return {
        "reward_chosen": sum(rewards[0]) / count,
        "reward_rejected": sum(rewards[1]) / count,
        "reward_margin": sum(margins) / count,
        "reward_accuracy": sum(margin > 0 for margin in margins) / count,
        "logp_chosen": sum(scores[0]) / count,
        "logp_rejected": sum(scores[1]) / count,
    }
