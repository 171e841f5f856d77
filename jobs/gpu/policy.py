"""The policy: the base with the adapter that is trained, and the reference, which is what it was at first.

From the base, the policy is a fresh LoRA and the reference is the base without it. From an adapter, the policy
goes on from that adapter's weights, and a frozen copy of it, named `ref` as TRL does, is the reference.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from transformers import set_seed
from trl.trainer.utils import disable_dropout_in_model, use_adapter

from jobs.configs import TrainConfig
from jobs.gpu.loading import Loaded
from jobs.gpu.lora import WEIGHTS, check_adapter, check_loaded, fitting, frozen_adapter, language_linears
from jobs.gpu.projector import copies, find_projector, prepare_copies, projector_of
from jobs.lora_settings import differences
from jobs.runs import RunFolder
from storage.errors import UserError

POLICY, REFERENCE = "default", "ref"


def start_folder(
    run: RunFolder, config: TrainConfig, note: Callable[[str], None] = lambda text: None
) -> Path | None:
    """The files of the adapter that training starts from; None for the base. Called before the base is loaded.

    Args:
        note: told which LoRA settings are the adapter's and not the form's.

    Raises:
        UserError: it was not frozen into the run folder, is another base's, or is no LoRA in safetensors.
    """
    if config.start_adapter is None:
        return None
    found = frozen_adapter(run, config.start_adapter)
    check_adapter(found.folder, config.model, found.name)
    others = differences(config, json.loads((found.folder / "adapter_config.json").read_text(encoding="utf-8")))
    if others:
        note(f"Training goes on with the settings of the adapter {found.name!r}: {'; '.join(others)}.")
    return found.folder


def make_policy(config: TrainConfig, loaded: Loaded, start: Path | None) -> Any:
    """The model in `loaded` with the adapter to train on it, all else frozen.

    `projector_rate` of what is returned is the projector's learning rate; None where it isn't trained.

    Raises:
        UserError: the starting adapter doesn't fit the base; a target or a projector that isn't there.
    """
    # The base's own dropout would make the reference noisy. TRL's switch would turn LoRA's off, too.
    disable_dropout_in_model(loaded.model)
    projector = projector_of(loaded) if config.train_projector else None
    set_seed(config.seed)  # LoRA's first weights are drawn here
    if start is None:
        settings = LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=language_linears(loaded.model, config.targets),
            modules_to_save=[projector] if projector else None,
            task_type="CAUSAL_LM",
        )
        policy = get_peft_model(loaded.model, settings)
        prepare_copies(policy, POLICY, frozen=False)
    else:
        policy = _go_on(config, loaded, start, projector)
    policy.projector_rate = config.projector_learning_rate if projector else None
    policy.peft_config[POLICY].base_model_name_or_path = config.model
    policy.peft_config[POLICY].revision = loaded.revision
    return policy


def _go_on(config: TrainConfig, loaded: Loaded, start: Path, projector: str | None) -> Any:
    """The policy with the weights of the adapter in `start`.

    A projector that the adapter brings is the policy's in any case, and stays as it is unless it is to be trained.
    """
    label = str(config.start_adapter)
    check_adapter(start, loaded.name, label)
    with fitting(label, loaded.name):
        settings = LoraConfig.from_pretrained(str(start))
        brought = list(settings.modules_to_save or ())
        base_own = find_projector(loaded.model) or ""
        strange = [name for name in brought if not f".{base_own}".endswith(f".{name}")]
        if strange:
            raise UserError(
                f"The adapter {label!r} brings {strange[0]} trained in full; of such modules Plumb goes on with a "
                "projector alone. Merge the adapter, and start from the merged model."
            )
        lacking = projector if projector and not brought else None
        settings.modules_to_save = [lacking] if lacking else brought or None
        settings.inference_mode = False
        settings.init_lora_weights = True  # some ways to begin change the base's weights
        policy = get_peft_model(loaded.model, settings)
        if isinstance(policy.get_base_model().get_output_embeddings(), BaseTunerLayer):
            raise UserError(
                f"The adapter {label!r} has LoRA on the vocabulary's head, which can't be trained: "
                "log-probabilities are taken with the head's weights as they are. Merge it, and start from the "
                "merged model."
            )
        prepare_copies(policy, POLICY, frozen=projector is None)
        weights = load_file(start / WEIGHTS)
        if lacking:
            own = get_peft_model_state_dict(policy, save_embedding_layers=False)
            weights |= {name: value for name, value in own.items() if "lora_" not in name}
        result = set_peft_model_state_dict(policy, weights)
    check_loaded(result, POLICY, label, loaded.name)
    return policy


@contextlib.contextmanager
def keeping_precision(policy: Any) -> Iterator[None]:
    """After it, what is trained has the numbers that it had, in the precision that it had them in.

    TRL's trainers cast the adapter of a 4-bit base to bfloat16 when they are made. At 0.02, where LoRA's first
    weights are, its numbers are 1.2e-4 apart: steps of 5e-5 would all be lost.
    """
    before = [(parameter, parameter.data) for parameter in policy.parameters() if parameter.requires_grad]
    yield
    for parameter, data in before:
        if parameter.dtype != data.dtype:
            parameter.data = data


def keep_reference(policy: Any, started: bool) -> None:
    """Give the policy the frozen copy that is its reference where it started from an adapter, and none else.

    TRL's DPO trainer makes such a copy of any adapter it is given; of a fresh one it would only take memory. Of
    another it is made anew here: TRL copies float32 into the base's dtype where the projector is concerned.
    """
    if REFERENCE in policy.peft_config:
        policy.delete_adapter(REFERENCE)
    if started:
        policy.add_adapter(REFERENCE, policy.peft_config[POLICY])
        prepare_copies(policy, REFERENCE, frozen=True)
        for name, parameter in policy.named_parameters():
            if f".{POLICY}." in name:
                copy = policy.get_parameter(name.replace(f".{POLICY}.", f".{REFERENCE}."))
                copy.data = parameter.data.clone()
    policy.set_adapter(POLICY)
    _settle(policy)


def _settle(policy: Any) -> None:
    """PEFT's switches ask gradients of all that the active adapter has: not of a projector that isn't trained."""
    if policy.projector_rate is None:
        for _, copy in copies(policy, POLICY):
            copy.requires_grad_(False)


@contextlib.contextmanager
def as_reference(policy: Any) -> Iterator[None]:
    """Within it the model is the reference."""
    try:
        with use_adapter(policy, adapter_name=REFERENCE if REFERENCE in policy.peft_config else None):
            yield
    finally:
        _settle(policy)
