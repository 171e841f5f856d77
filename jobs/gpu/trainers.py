"""What our two trainers have in common: the order of rows, optimizer, checkpoints, means, and no card of TRL's."""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy
import torch

from jobs.checkpoints import checkpoint_folder, cleared_up, seal, unseal
from jobs.configs import TrainConfig
from jobs.gpu.loading import Loaded
from jobs.gpu.policy import POLICY
from jobs.gpu.sampling import LengthBatches
from jobs.gpu.shared_prefix import SharedPrefix
from jobs.gpu.trackers import others
from jobs.runs import RunFolder

#: transformers' names of schedules where they aren't ours: its own "constant" leaves the warm-up out.
SCHEDULES = {"constant": "constant_with_warmup"}


class Common:
    """Mixed into TRL's trainers, before them.

    Attributes:
        prefix: the shared prefix in the model's place of `forward`; None on the stock path.
        collate_pairs: pairs → a batch, whatever is trained on.
        step_places: of each batch of the step so far, its rows' places among the run's.
        step_losses: of each of them the loss, on the device: nobody waits for it within a step.
    """

    prefix: SharedPrefix | None = None
    collate_pairs: Any = None
    step_places: list[list[int]]
    step_losses: list[torch.Tensor]
    _coming: deque[list[int]]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        # Before there is a loader of batches: a benchmark takes steps by hand.
        self.step_places, self.step_losses, self._coming = [], [], deque()
        super().__init__(*arguments, **named)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Ours is written at the end."""

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthBatches:
        trainer: Any = self
        lengths = (trainer.train_dataset if train_dataset is None else train_dataset)["length"]
        return LengthBatches(lengths, trainer.args.train_batch_size, trainer.args.data_seed)

    def create_optimizer(self, model: Any = None) -> Any:
        """transformers' optimizer, with the projector's parameters in groups of their own learning rate.

        They come last: the learning rate that is told is the first group's, LoRA's.
        """
        trainer: Any = self
        optimizer = cast(Any, super()).create_optimizer(model)
        rate = trainer.accelerator.unwrap_model(trainer.model).projector_rate
        apart_already = any(group.get("projector") for group in optimizer.param_groups)
        if apart_already:
            return optimizer
        named = (trainer.model if model is None else model).named_parameters()
        apart = {id(parameter) for name, parameter in named if "modules_to_save" in name}
        for group in list(optimizer.param_groups):
            moved = [parameter for parameter in group["params"] if id(parameter) in apart]
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in apart]
            if moved and rate is not None:
                optimizer.add_param_group({**group, "params": moved, "lr": rate, "projector": True})
        return optimizer

    def get_train_dataloader(self) -> Any:
        """The collator's, which tells what is in each batch: accelerate fetches one ahead, in order."""
        trainer: Any = self
        collate, self._coming = trainer.data_collator, deque()
        self.step_places, self.step_losses = [], []
        trainer.data_collator = Remembering(collate, self._coming)
        try:
            return cast(Any, super()).get_train_dataloader()
        finally:
            trainer.data_collator = collate

    def training_step(self, *arguments: Any, **named: Any) -> torch.Tensor:
        self.step_places.append(self._coming.popleft() if self._coming else [])
        loss: torch.Tensor = cast(Any, super()).training_step(*arguments, **named)
        self.step_losses.append(loss)
        return loss

    def evaluate(self, eval_dataset: Any = None, *arguments: Any, **named: Any) -> dict[str, float]:
        """As transformers' own, without a trace in the training; where there are no rows, callbacks are called.

        Were noise not put back, the mere iterator over held-out rows would change the dropout that follows.
        """
        trainer: Any = self
        with undisturbed(trainer.model):
            if eval_dataset is None and trainer.eval_dataset is None:
                trainer.control = trainer.callback_handler.on_evaluate(
                    trainer.args, trainer.state, trainer.control, {}
                )
                return {}
            found: dict[str, float] = cast(Any, super()).evaluate(eval_dataset, *arguments, **named)
            return found

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """transformers' own; it counts once all processes have written their parts, and these are on the disk."""
        trainer: Any = self
        folder = checkpoint_folder(Path(trainer.args.output_dir), trainer.state.global_step)
        with cleared_up(folder.parent, alone=trainer.args.should_save):
            if trainer.args.should_save:
                unseal(folder)
            cast(Any, super())._save_checkpoint(model, trial)
            trainer.accelerator.wait_for_everyone()
            if trainer.args.should_save:
                seal(folder)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A checkpoint's weights: the policy alone. The reference can be made again from where it came."""
        trainer: Any = self
        if not trainer.args.should_save:
            return
        folder = Path(output_dir or trainer.args.output_dir)
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_adapter(model, folder, state_dict)


class Remembering:
    """A collator that tells which rows it was given.

    Args:
        coming: gets the places of each batch's rows.
    """

    def __init__(self, collate: Any, coming: deque[list[int]]) -> None:
        self._collate, self._coming = collate, coming

    def __call__(self, examples: Sequence[dict[str, Any]]) -> Any:
        self._coming.append([example["place"] for example in examples])
        return self._collate(examples)


Noise = tuple[Any, Any, torch.Tensor, list[torch.Tensor]]


def noise() -> Noise:
    """The state of everything that draws at random."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), numpy.random.get_state(), torch.get_rng_state(), cuda


def set_noise(state: Noise) -> None:
    """Go on drawing from there."""
    python, arrays, torchs, cuda = state
    random.setstate(python)
    numpy.random.set_state(arrays)
    torch.set_rng_state(torchs)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


@contextlib.contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """After it, noise and each module's mode are as they were: looking at a model doesn't change its training."""
    before, modes = noise(), [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        set_noise(before)
        for module, training in modes:
            module.training = training


def any_process(holds: bool) -> bool:
    """Whether it holds in one of the run's processes. All of them must ask at the same point."""
    spread = torch.distributed
    if not (spread.is_available() and spread.is_initialized() and spread.get_world_size() > 1):
        return holds
    told = torch.tensor(int(holds), device="cuda" if spread.get_backend() == "nccl" else "cpu")
    spread.all_reduce(told, op=spread.ReduceOp.MAX)
    return bool(told.item())


def first_ones(values: dict[str, float]) -> dict[str, float]:
    """The first process's numbers, in all of the run's processes. All of them must ask at the same point."""
    spread = torch.distributed
    if not (spread.is_available() and spread.is_initialized() and spread.get_world_size() > 1):
        return values
    told: list[Any] = [values]
    spread.broadcast_object_list(told, src=0)
    found: dict[str, float] = told[0]
    return found


def whole_weights(trainer: Any) -> Any:
    """The weights as one dictionary where they are spread over processes (all of them must ask), else None."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return None
    return trainer.accelerator.get_state_dict(trainer.model_wrapped)


def save_adapter(model: Any, folder: Path, state_dict: Any = None) -> None:
    """The policy's adapter as safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(
        str(folder),
        state_dict=state_dict,
        safe_serialization=True,
        save_embedding_layers=False,
        selected_adapters=[POLICY],
    )


def common_settings(run: RunFolder, config: TrainConfig, loaded: Loaded) -> dict[str, Any]:
    """What TRL's two settings classes have in common."""
    return {
        "output_dir": str(run.checkpoints),
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_checkpointing": config.gradient_checkpointing,
        "lr_scheduler_type": SCHEDULES.get(config.schedule, config.schedule),
        "warmup_steps": config.warmup_ratio,  # below 1: a share of the steps
        "weight_decay": config.weight_decay,
        "bf16": loaded.model.dtype == torch.bfloat16,
        "fp16": loaded.model.dtype == torch.float16,
        "use_cpu": loaded.device.type == "cpu",
        "seed": config.seed,
        "data_seed": config.seed,
        "max_length": None,  # cutting could take image tokens away
        "remove_unused_columns": False,
        "eval_strategy": "no",  # Telling asks for it at its points, and for checkpoints
        "save_strategy": "no",
        "save_total_limit": None,  # Telling keeps the newest by their steps (jobs/checkpoints.py)
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would show the mean in place of a NaN
        "report_to": others(config) or "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": loaded.device.type == "cuda",
    }
