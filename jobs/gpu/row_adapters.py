"""Each row of a batch speaks with an adapter of its own, or as the base: side by side in one forward.

PEFT can do this too (`adapter_names`), through hooks that it hangs on every layer at every forward. Here the LoRA
layers get another `forward` once, and rows with the same adapter lie beside each other, so that an adapter costs
its own two small products on a slice of the batch and the base's rows cost nothing more.

The numbers are PEFT's: W x + s B A x (Hu et al. 2021, arXiv 2106.09685, section 4.1), in the order in which PEFT's
own forward takes them. On a CPU the layers are asked as few rows like it (jobs/gpu/few_rows.py), those without
LoRA too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch

from jobs.gpu.few_rows import Forward, forward_of, helps

Span = tuple[str, slice]


class RowAdapters:
    """The LoRA layers of a model, for batches whose rows differ in their adapter. Not thread-safe.

    Args:
        model: a PeftModel in `eval` mode, or a base without adapters.
    """

    def __init__(self, model: Any) -> None:
        self._peft = hasattr(model, "peft_config")
        self._layers = [module for module in model.modules() if is_lora(module)] if self._peft else []
        self._bases = [_base(layer) for layer in self._layers]
        inside = {part for layer in self._layers for part in layer.modules()}
        self._others = [
            (module, forward_of(module)) for module in model.modules() if module not in inside and helps(module)
        ]
        self._whole = {name for name in getattr(model, "peft_config", {}) if keeps_modules(model, name)}

    def refusal(self, name: str | None) -> str:
        """Why this adapter can't share a batch with others, or ""."""
        if name in self._whole:
            return "it trained the projector too, so that it sees the image in its own way"
        for layer in self._layers:
            if name in layer.lora_A and (getattr(layer, "use_dora", {}).get(name) or layer.merged):
                return "its layers aren't plain LoRA"
        return ""

    @contextlib.contextmanager
    def speaking(self, names: Sequence[str | None]) -> Iterator[None]:
        """Within it, row i of every batch speaks with `names[i]`; None is the base.

        Raises:
            ValueError: rows of one adapter that don't lie beside each other, or an adapter that isn't there.
        """
        spans = spans_of(names)
        known = {name for layer in self._layers for name in layer.lora_A}
        if unknown := sorted({name for name, _ in spans} - known):
            raise ValueError(f"no adapter {unknown[0]!r} is loaded")
        patched = []
        try:
            for layer, base in zip(self._layers, self._bases, strict=True):
                layer.forward = _forward(layer, base, [span for span in spans if span[0] in layer.lora_A])
                patched.append(layer)
            for layer, forward in self._others:
                layer.forward = forward
                patched.append(layer)
            yield
        finally:
            for layer in patched:
                del layer.forward


def spans_of(names: Sequence[str | None]) -> list[Span]:
    """The rows of each adapter, as slices; the base's are left out.

    Raises:
        ValueError: rows of one adapter that don't lie beside each other.
    """
    spans: list[Span] = []
    start = 0
    for name, rows in groupby(names):
        stop = start + len(list(rows))
        if name is not None:
            if any(name == other for other, _ in spans):
                raise ValueError(f"the rows of adapter {name!r} must lie beside each other")
            spans.append((name, slice(start, stop)))
        start = stop
    return spans


def is_lora(module: Any) -> bool:
    """Whether it is a layer that PEFT put LoRA weights on."""
    from peft.tuners.lora.layer import LoraLayer

    return isinstance(module, LoraLayer)


def keeps_modules(model: Any, name: str) -> bool:
    """Whether an adapter brings whole modules of its own (a trained projector)."""
    return bool(getattr(model.peft_config[name], "modules_to_save", None))


def _base(layer: Any) -> Forward:
    """What a LoRA layer lies over, quick for few rows; through its call where somebody listens to it."""
    base = layer.base_layer
    listened = base._forward_hooks or base._forward_pre_hooks
    return base if listened or not helps(base) else forward_of(base)


def _forward(layer: Any, base: Forward, spans: Sequence[Span]) -> Forward:
    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = base(x, *args, **kwargs)
        for name, rows in spans:
            down, up = layer.lora_A[name], layer.lora_B[name]
            given = x[rows].to(down.weight.dtype)
            # Added before it is rounded, as PEFT does where the adapter is finer than the base.
            result[rows] = (result[rows] + up(down(given)) * layer.scaling[name]).to(result.dtype)
        return result

    return forward
