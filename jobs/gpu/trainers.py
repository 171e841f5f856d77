"""What our two trainers have in common: the order of rows, optimizer, checkpoints, means, and no card of TRL's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from jobs.configs import TrainConfig
from jobs.gpu.loading import Loaded
from jobs.gpu.policy import POLICY
from jobs.gpu.sampling import LengthBatches
from jobs.gpu.shared_prefix import SharedPrefix
from jobs.runs import RunFolder


class Common:
    """Mixed into TRL's trainers, before them.

    Attributes:
        prefix: the shared prefix in the model's place of `forward`; None on the stock path.
        collate_pairs: pairs → a batch, whatever is trained on.
    """

    prefix: SharedPrefix | None = None
    collate_pairs: Any = None

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Ours is written at the end."""

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthBatches:
        trainer: Any = self
        lengths = (trainer.train_dataset if train_dataset is None else train_dataset)["length"]
        return LengthBatches(lengths, trainer.args.train_batch_size, trainer.args.data_seed)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """A checkpoint's weights: the policy alone. The reference can be made again from where it came."""
        trainer: Any = self
        if not trainer.args.should_save:
            return
        folder = Path(output_dir or trainer.args.output_dir)
        model = trainer.accelerator.unwrap_model(trainer.model)
        save_adapter(model, folder, state_dict)


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
        "lr_scheduler_type": config.schedule,
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
        "save_total_limit": max(1, config.keep_checkpoints),
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would show the mean in place of a NaN
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": loaded.device.type == "cuda",
    }


def last_checkpoint(run: RunFolder) -> Path | None:
    """The newest whole checkpoint of the run; those that a crash tore are removed.

    trainer_state.json is the last file that is written.
    """
    while run.checkpoints.is_dir():
        found = get_last_checkpoint(str(run.checkpoints))
        if found is None:
            return None
        try:
            json.loads((Path(found) / "trainer_state.json").read_text(encoding="utf-8"))
            return Path(found)
        except (OSError, ValueError):
            shutil.rmtree(found)
    return None


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))
