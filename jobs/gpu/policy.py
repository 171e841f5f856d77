"""The policy: the base with the adapter that is trained, and the reference, which is what it was at first.

From the base, the policy is a fresh LoRA and the reference is the base without it. From an adapter, the policy
goes on from that adapter's weights, and a frozen copy of it, named `ref` as TRL does, is the reference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import set_seed
from trl.trainer.utils import disable_dropout_in_model, use_adapter

from jobs.configs import TrainConfig
from jobs.gpu.loading import Loaded
from jobs.gpu.lora import check_adapter, frozen_adapter, language_linears
from jobs.runs import RunFolder

POLICY, REFERENCE = "default", "ref"


def start_folder(run: RunFolder, config: TrainConfig) -> Path | None:
    """The files of the adapter that training starts from; None for the base.

    Raises:
        UserError: it was not frozen into the run folder.
    """
    return None if config.start_adapter is None else frozen_adapter(run, config.start_adapter).folder


def make_policy(config: TrainConfig, loaded: Loaded, start: Path | None) -> Any:
    """The model in `loaded` with the adapter to train on it, all else frozen.

    Raises:
        UserError: the starting adapter is another base's, or is no LoRA in safetensors.
    """
    # The base's own dropout would make the reference noisy. TRL's switch would turn LoRA's off, too.
    disable_dropout_in_model(loaded.model)
    set_seed(config.seed)  # LoRA's first weights are drawn here
    if start is not None:
        check_adapter(start, loaded.name, str(config.start_adapter))
        policy = PeftModel.from_pretrained(loaded.model, str(start), is_trainable=True)
    else:
        policy = get_peft_model(
            loaded.model,
            LoraConfig(
                r=config.lora_r,
                lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout,
                target_modules=language_linears(loaded.model),
                task_type="CAUSAL_LM",
            ),
        )
    policy.peft_config[POLICY].base_model_name_or_path = config.model
    return policy


def keep_reference(policy: Any, started: bool) -> None:
    """Give the policy the frozen copy that is its reference where it started from an adapter, and none else.

    TRL's DPO trainer makes such a copy of any adapter it is given; of a fresh one it would only take memory.
    """
    there = REFERENCE in policy.peft_config
    if there and not started:
        policy.delete_adapter(REFERENCE)
    elif started and not there:
        policy.add_adapter(REFERENCE, policy.peft_config[POLICY])
        for name, parameter in policy.named_parameters():
            if f".{POLICY}." in name:
                policy.get_parameter(name.replace(f".{POLICY}.", f".{REFERENCE}.")).data.copy_(parameter.data)
    policy.set_adapter(POLICY)


@contextlib.contextmanager
def as_reference(policy: Any) -> Iterator[None]:
    """Within it the model is the reference."""
    with use_adapter(policy, adapter_name=REFERENCE if REFERENCE in policy.peft_config else None):
        yield
