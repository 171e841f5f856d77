"""What held-out pairs say of the policy: rewards, the use of images, the distance from the reference.

Nothing here changes the training: it runs within `trainers.undisturbed`, without gradients. With several processes
each of them looks at all pairs, so that the numbers are those of one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from jobs.configs import DpoConfig, TrainConfig
from jobs.gpu.material import Material, find_references, with_references
from jobs.gpu.policy import as_reference
from jobs.gpu.prompts import chunks, image_names
from jobs.gpu.references import ReferenceBook
from jobs.gpu.scoring import NOT_FOR_THE_MODEL, PairScorer, References, blanked, reward_metrics
from jobs.gpu.shared_prefix import RESCALED, images_of
from jobs.gpu.token_scores import TILE
from jobs.gpu.trainers import first_ones, undisturbed
from jobs.reporter import Reporter
from jobs.runs import RunFolder

BETA = 0.1  # of rewards where the method has none of its own (paper.md, section 4)
MOST_BLANK, MOST_KL = 64, 32
#: Part of the keys that blanked pairs have in the book of references.
BLANK = "image blanked"

#: What a language model may do to its logits that `logits_of` does, too.
FOLLOWED = ("final_logit_softcapping", "logit_scale")


class Watcher:
    """Looks at the run's held-out pairs, and once at those kept for the report.

    Args:
        references: of all pairs.
        check: called between batches; may raise to stop.
    """

    def __init__(
        self,
        config: TrainConfig,
        trainer: Any,
        material: Material,
        scorer: PairScorer,
        references: References,
        reporter: Reporter,
        check: Callable[[], None],
    ) -> None:
        self._config, self._trainer, self._material, self._scorer = config, trainer, material, scorer
        self._references, self._reporter, self._check = references, reporter, check
        self._beta = config.beta if isinstance(config, DpoConfig) else BETA
        shown = [place for place in material.pairs if image_names(material.rows[place]["messages"])]
        self._blank = some(shown, MOST_BLANK, material.seed)
        self._near = some(material.pairs, MOST_KL, material.seed)
        self._blank_references: References = {}
        reason = no_kl(trainer)
        if reason and self._near and config.evaluations:
            reporter.note(f"The distance from the reference (heldout_kl) isn't measured: {reason}.")
            self._near = []

    def prepare(self, run: RunFolder, book: ReferenceBook) -> None:
        """What the reference thinks of the pairs without their images: from the book, or computed once for it.

        Raises:
            Stopped: asked to stop.
        """
        if not (self._blank and self._config.evaluations):
            return

        def compute(places: Sequence[int]) -> Any:
            with as_reference(self._policy):
                chosen, rejected = self._scorer.score(blanked(self._scorer.batch(places)))
            return chosen.tolist(), rejected.tolist()

        self._blank_references, _ = find_references(
            run, self._material, book, compute, self._config.batch_size, self._reporter, self._blank, BLANK
        )

    def look(self) -> dict[str, float]:
        """The metrics of the held-out pairs as the policy is now; empty where there are none.

        Raises:
            Stopped: asked to stop.
        """
        pairs = self._material.pairs
        if not pairs:
            return {}
        found: dict[str, float] = {}
        with undisturbed(self._trainer.model):
            self._trainer.model.eval()
            # DPO's own evaluation brings these with its loss. Several processes share its rows, and fill up with
            # some of them twice: these numbers take the place of those.
            dpo, several = isinstance(self._config, DpoConfig), self._trainer.accelerator.num_processes > 1
            if several or not dpo:
                found |= self._rewards(pairs)
            if several and dpo:
                found |= self._losses(pairs)
            found |= self._lengths(pairs)
            if self._blank:
                found["blank_margin"] = self._rewards(self._blank, blank=True)["reward_margin"]
                # Of the same pairs: those that show no image, and those not drawn, are in reward_margin alone.
                if self._blank != pairs:
                    found["shown_margin"] = self._rewards(self._blank)["reward_margin"]
            if self._near:
                found["kl"] = self._kl()
        # Devices round differently, and all processes must think the same evaluation the best one.
        return first_ones({f"heldout_{name}": value for name, value in found.items()})

    def report(self) -> dict[str, float]:
        """The metrics of the pairs kept for the report; empty where there are none.

        Raises:
            Stopped: asked to stop.
        """
        pairs = self._material.report
        if not pairs:
            return {}
        with undisturbed(self._trainer.model):
            self._trainer.model.eval()
            found = self._rewards(pairs) | self._lengths(pairs)
            if isinstance(self._config, DpoConfig):
                found["loss"] = self._losses(pairs)["loss"]
        return {f"report_{name}": value for name, value in found.items()}

    @property
    def _policy(self) -> Any:
        return self._trainer.accelerator.unwrap_model(self._trainer.model)

    def _batches(self, places: Sequence[int]) -> Any:
        """Groups of places, with an ear for the stop between them."""
        for group in chunks(places, self._config.batch_size):
            self._check()
            yield group

    def _rewards(self, places: Sequence[int], blank: bool = False) -> dict[str, float]:
        chosen: list[float] = []
        rejected: list[float] = []
        for group in self._batches(places):
            batch = self._scorer.batch(group)
            scores = self._scorer.score(blanked(batch) if blank else batch)
            chosen += scores[0].tolist()
            rejected += scores[1].tolist()
        references = self._blank_references if blank else self._references
        return reward_metrics(places, (chosen, rejected), references, self._beta)

    def _lengths(self, places: Sequence[int]) -> dict[str, float]:
        """Mean tokens of the answers, with what the template puts after them."""
        entries = [self._material.prepared.entries[place] for place in places]
        chosen, rejected = (sum(len(entry.answers[side]) for entry in entries) / len(entries) for side in (0, 1))
        return {"chosen_tokens": chosen, "rejected_tokens": rejected}

    def _losses(self, places: Sequence[int]) -> dict[str, float]:
        """DPO's loss and, with mDPO's term, the margin it looks at, each pair weighing alike."""
        trainer, total = self._trainer, 0.0
        trainer.forget_means()
        rows = with_references(self._material.dataset(places), dict(self._references))
        for group in self._batches(range(len(rows))):
            inputs = trainer._prepare_inputs(trainer.data_collator([rows[place] for place in group]))
            with torch.no_grad(), trainer.accelerator.autocast():
                total += float(trainer.compute_loss(trainer.model, inputs)) * len(group)
        margin = trainer.mean_image_margin()
        trainer.forget_means()
        return {"loss": total / len(rows), **({} if margin is None else {"image_margin": margin})}

    def _kl(self) -> float:
        """Mean nats a token of KL(policy ‖ reference) at the tokens of the chosen answers.

        At each of them the whole vocabulary is summed over, Σ p (log p − log q): exact, where the usual estimate
        from the sampled token alone (Schulman's k1) is noisy, and wrong on text that the policy did not write.
        """
        total, tokens = 0.0, 0
        for group in self._batches(self._near):
            batch = self._scorer.batch(group)
            policy = self._hidden(batch)
            with as_reference(self._policy):
                reference = self._hidden(batch)
            base = self._policy.get_base_model()
            found = divergence(policy, reference, base.get_output_embeddings(), base.config.get_text_config())
            total += float(found.double().sum())
            tokens += len(found)
        return total / max(tokens, 1)

    def _hidden(self, batch: dict[str, Any]) -> torch.Tensor:
        """What the language model hands to its head where it predicts the chosen answers, (tokens, width)."""
        pairs = len(batch["input_ids"]) // 2
        images = images_of(batch)
        stacked = self._trainer.prefix is None or not self._trainer.prefix.images_once
        rows: dict[str, Any] = {}
        for name, value in batch.items():
            if name in NOT_FOR_THE_MODEL:
                continue
            if name in images:
                rows[name] = value[: len(value) // 2] if stacked else value
            else:
                rows[name] = value[:pairs]
        answers = batch["completion_mask"][:pairs, 1:].bool()
        with torch.no_grad(), self._trainer.accelerator.autocast():
            hidden = self._policy.get_base_model().base_model(**rows, use_cache=False).last_hidden_state
        return hidden[:, :-1][answers]


def some(places: Sequence[int], most: int, seed: str) -> list[int]:
    """At most so many of them, drawn by the seed, in their order."""
    if len(places) <= most:
        return list(places)
    drawn = set(random.Random(f"watched/{seed}").sample(list(places), most))
    return [place for place in places if place in drawn]


def no_kl(trainer: Any) -> str:
    """Why the divergence can't be taken from the language model's hidden states, or ""."""
    base = trainer.accelerator.unwrap_model(trainer.model).get_base_model()
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return "the weights are spread over processes"
    if base.base_model is base:
        return "the model has no part before its head"
    text = base.config.get_text_config()
    strange = [
        name for name in RESCALED if name not in FOLLOWED and getattr(text, name, None) not in (None, 1, 1.0)
    ]
    return f"the model rescales its logits ({', '.join(strange)})" if strange else ""


def divergence(policy: torch.Tensor, reference: torch.Tensor, head: Any, text: Any = None) -> torch.Tensor:
    """KL(policy ‖ reference) at each token, in nats, over the whole vocabulary; tile by tile, as token_scores.py.

    Args:
        policy, reference: hidden states, (tokens, width).
        head: the `nn.Linear` of the vocabulary, the same for both.
        text: the language model's config, for what it does to logits.

    Returns:
        (tokens,), float32.
    """
    found = torch.empty(len(policy), dtype=torch.float32, device=policy.device)
    size = max(1, TILE // len(head.weight))
    with torch.no_grad(), torch.autocast(policy.device.type, enabled=False):
        for start in range(0, len(policy), size):
            part = slice(start, start + size)
            ours, theirs = (logits_of(one[part], head, text).log_softmax(dim=1) for one in (policy, reference))
            found[part] = (ours.exp() * (ours - theirs)).sum(dim=1)
    return found


def logits_of(hidden: torch.Tensor, head: Any, text: Any) -> torch.Tensor:
    logits = torch.nn.functional.linear(hidden.to(head.weight.dtype), head.weight, head.bias).float()
    scale, cap = (getattr(text, name, None) for name in ("logit_scale", "final_logit_softcapping"))
    if scale is not None:
        logits = logits * scale
    return torch.tanh(logits / cap) * cap if cap else logits
