"""DPO on TRL's DPOTrainer (paper.md, section 4).

Loss: Rafailov et al. 2023 (arXiv 2305.18290), equation 7, on summed log-probabilities. A pair runs as one sequence
(shared_prefix.py) where the model allows, from tensors made once (prepared.py), against a reference whose
log-probabilities were taken once (references.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from trl import DPOConfig as TrlConfig
from trl import DPOTrainer

from jobs.configs import DpoConfig
from jobs.gpu.image_term import SCRAPS, Heard, anchor_loss, image_loss, image_margins, score_scraps
from jobs.gpu.loading import Loaded
from jobs.gpu.material import Material
from jobs.gpu.policy import keep_reference, keeping_precision
from jobs.gpu.shared_prefix import SharedPrefix
from jobs.gpu.trainers import Common, common_settings
from jobs.losses import parse_losses
from jobs.runs import RunFolder

#: What a batch, and its scraps, bring of the reference.
REFERENCES = frozenset({"ref_chosen_logps", "ref_rejected_logps", "references"})


class Preferences(Common, DPOTrainer):
    """TRL's trainer, with mDPO's terms (image_term.py) and held-out means that weigh every pair alike.

    Attributes:
        image_weight, anchor_weight: of mDPO's terms, which are added to TRL's loss; 0 leaves them out.
    """

    def __init__(
        self, *arguments: Any, image_weight: float = 0.0, anchor_weight: float = 0.0, **named: Any
    ) -> None:
        self.image_weight, self.anchor_weight = image_weight, anchor_weight
        self._batches: list[int] = []
        self._shown: list[int] = []
        super().__init__(*arguments, **named)

    def _prepare_inputs(self, inputs: Any) -> Any:
        """transformers' own, but for the reference's log-probabilities, which stay in float32.

        With DeepSpeed it casts every float of a batch to the precision of training: at −150 bfloat16's neighbours
        are 1 apart, as much as many a margin.
        """
        ready = super()._prepare_inputs(inputs)
        for given, made in ((inputs, ready), (inputs.get(SCRAPS, {}), ready.get(SCRAPS, {}))):
            for name in REFERENCES & given.keys():
                made[name] = given[name].to(made[name].device)
        return ready

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """TRL's loss and, with their weights, the image's term and the anchor."""
        scraps = inputs.get(SCRAPS)
        inputs = {name: value for name, value in inputs.items() if name != SCRAPS}
        if not (self.image_weight or self.anchor_weight):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        heard = Heard(model)
        found = super().compute_loss(heard, inputs, return_outputs, num_items_in_batch)
        loss, outputs = found if return_outputs else (found, None)
        ratios = heard.chosen - inputs["ref_chosen_logps"]
        if self.anchor_weight:
            loss = loss + self.anchor_weight * anchor_loss(ratios, self.beta)
        if self.image_weight:
            margins = self._image_margins(model, ratios, scraps)
            loss = loss + self.image_weight * image_loss(margins, len(ratios))
            self._tell_margins(margins.detach())
        return (loss, outputs) if return_outputs else loss

    def _image_margins(self, model: Any, ratios: torch.Tensor, scraps: Any) -> torch.Tensor:
        """Of the pairs of the batch that show an image; empty where none does."""
        if scraps is None:
            return ratios.new_zeros(0)
        # A second call of DDP's wrapper before the backward would start its count of gradients anew.
        alone = model.module if isinstance(model, DistributedDataParallel) else model
        scrap = score_scraps(self, alone, scraps) - scraps["references"]
        return image_margins(ratios[scraps["shown"]], scrap, self.beta)

    def _tell_margins(self, margins: torch.Tensor) -> None:
        """Keep their mean over all processes as the metric `image_margin`, where there is any."""
        own = torch.stack([margins.sum(), margins.new_tensor(float(len(margins)))])
        total, count = self.accelerator.gather(own).view(-1, 2).sum(dim=0).tolist()
        if count:
            mode = "train" if self.model.training else "eval"
            self._metrics[mode]["image_margin"].append(total / count)
            if mode == "eval":
                self._shown.append(int(count))

    def prediction_step(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        self._batches.append(len(inputs["input_ids"]) // 2)
        return super().prediction_step(model, inputs, *arguments, **named)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # TRL averages the batches' means, which gives the pairs of a short last batch more weight.
        # With several processes these are weighed by this one's batches: `Watcher.look` tells the exact ones.
        if not self.model.training and self._batches:
            for name, values in self._metrics["eval"].items():
                sizes = self._shown if name == "image_margin" else self._batches
                if len(values) == len(sizes):
                    self._metrics["eval"][name] = [weighed(values, sizes)]
            self._batches.clear()
            self._shown.clear()
        super().log(logs, start_time)

    def mean_image_margin(self) -> float | None:
        """The mean of `image_margin` over the pairs looked at since `forget_means`; None where none has one."""
        values = self._metrics["eval"].get("image_margin", [])
        return weighed(values, self._shown) if values else None

    def forget_means(self) -> None:
        """Drop what was kept of evaluation batches."""
        self._metrics["eval"].clear()
        self._batches.clear()
        self._shown.clear()


def weighed(values: Sequence[float], sizes: Sequence[int]) -> float:
    """The mean of batches' means, each weighing as much as its batch has pairs."""
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


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
    with keeping_precision(policy):
        trainer = Preferences(
            model=policy,
            args=settings,
            train_dataset=material.dataset(material.training),
            eval_dataset=material.dataset(material.held_out) if material.held_out else None,
            processing_class=loaded.processor,
            data_collator=collator,
            callbacks=callbacks,
            image_weight=config.image_weight,
            anchor_weight=config.anchor_weight,
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
