"""DPO on TRL's DPOTrainer (paper.md, section 4).

Loss: Rafailov et al. 2023 (arXiv 2305.18290), equation 7, on summed log-probabilities. A pair runs as one sequence
(shared_prefix.py) where the model allows, from tensors made once (prepared.py), against a reference whose
log-probabilities were taken once (references.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from jobs.configs import DpoConfig
from jobs.gpu.loading import Loaded
from jobs.gpu.material import Material
from jobs.gpu.policy import keep_reference
from jobs.gpu.shared_prefix import SharedPrefix
from jobs.gpu.trainers import Common, common_settings
from jobs.losses import parse_losses
from jobs.runs import RunFolder


class Preferences(Common, DPOTrainer):
    """TRL's trainer, with held-out means that weigh every pair alike."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._batches: list[int] = []
        super().__init__(*arguments, **named)

    def prediction_step(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        self._batches.append(len(inputs["input_ids"]) // 2)
        return super().prediction_step(model, inputs, *arguments, **named)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # TRL averages the batches' means, which gives the pairs of a short last batch more weight.
        if not self.model.training and self._batches:
            for name, values in self._metrics["eval"].items():
                if len(values) == len(self._batches):
                    total = sum(value * size for value, size in zip(values, self._batches, strict=True))
                    self._metrics["eval"][name] = [total / sum(self._batches)]
            self._batches.clear()
        super().log(logs, start_time)


def make_dpo(
    run: RunFolder,
    config: DpoConfig,
    loaded: Loaded,
    policy: Any,
    material: Material,
    collator: Any,
    callbacks: list[Any],
    shared: bool,
) -> Preferences:
    """TRL's trainer with all its settings.

    Args:
        shared: pairs run as one sequence each.
    """
    losses = parse_losses(config.loss)
    settings = TrlConfig(
        **common_settings(run, config, loaded),
        beta=config.beta,
        loss_type=[name for name, _ in losses],
        loss_weights=[weight for _, weight in losses],
        label_smoothing=config.label_smoothing,
        disable_dropout=False,
    )
    trainer = Preferences(
        model=policy,
        args=settings,
        train_dataset=material.dataset(material.training),
        eval_dataset=material.dataset(material.held_out) if material.held_out else None,
        processing_class=loaded.processor,
        data_collator=collator,
        callbacks=callbacks,
    )
    keep_reference(policy, config.start_adapter is not None)
    if shared:
        trainer.prefix = SharedPrefix(policy.get_base_model(), images_once=True).install()
    return trainer


@contextlib.contextmanager
def answers_alone() -> Iterator[None]:
    """Within it TRL takes log-probabilities at the answers' tokens alone, on every device.

    TRL 1.16 does so where Triton runs, and elsewhere multiplies the vocabulary with every token of image and
    prompt, to throw the result away: half of the demo's step on a CPU. The choice hangs on one private function;
    where a later TRL has none of that name, its own way is taken.
    """
    from trl.trainer import utils

    real = getattr(utils, "_use_triton", None)
    if real is None:
        yield
        return
    utils._use_triton = lambda device: True
    try:
        yield
    finally:
        utils._use_triton = real
