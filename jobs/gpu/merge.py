"""The `merge` job: an adapter merged into its base, as a folder that plain `from_pretrained` loads.

W' = W + (α / r) · B · A for every layer that LoRA sits on (Hu et al. 2021, arXiv 2106.09685, section 4.1); a
projector that was trained in full takes the base's place. Everything else is the base's, bit for bit.
"""

from __future__ import annotations

import errno
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from jobs.configs import MergeConfig
from jobs.gpu.devices import claim_device
from jobs.gpu.loading import Loaded, load_for
from jobs.gpu.lora import FrozenAdapter, attach, frozen_adapter
from jobs.merged import FILE, Merged, check_name, merged_root, name_for, read_merged
from jobs.places import models_folder
from jobs.reporter import Reporter
from jobs.runs import JobFile, RunFolder
from storage.errors import Conflict, PlumbError, UserError

ADAPTER = "merged"
STEPS = 4
#: Beside the weights: tokenizer, processor, card; and some air, since others write to the same disk.
SPARE_BYTES = 200_000_000


def merge(run: RunFolder, job: JobFile, config: MergeConfig, reporter: Reporter) -> None:
    """Write models/merged/NAME: weights as safetensors, the processor, plumb.json and a card.

    The folder gets its name when it is whole. The same adapter in the same base under the same name is there
    already: that is told, and nothing is written.

    Raises:
        Stopped: asked to stop; nothing is left.
        Conflict: the name is taken by something else, or another job is writing it.
        UserError: a 4-bit base; an adapter that doesn't fit; no room on the disk.
    """
    if config.quantization != "none":
        raise UserError(_no_quantization(config.model))
    adapter = frozen_adapter(run, config.adapter)
    target = merged_root(models_folder(run, job)) / check_name(config.name or name_for(adapter.name, adapter.id))
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(target.with_name(f".{target.name}.lock"), timeout=0):
            _merge(run, job, config, adapter, target, reporter)
    except Timeout:
        raise Conflict(
            f"Another job is writing merged weights named {target.name!r}; choose another name."
        ) from None


def _merge(
    run: RunFolder,
    job: JobFile,
    config: MergeConfig,
    adapter: FrozenAdapter,
    target: Path,
    reporter: Reporter,
) -> None:
    for left in target.parent.glob(f".{target.name}.draft-*"):  # of a worker that was killed
        shutil.rmtree(left, ignore_errors=True)
    _progress(reporter, 0)
    loaded = load_for(config, claim_device(job.device), models_folder(run, job), reporter)
    _refuse_quantized(loaded)
    dtype = loaded.model.dtype
    made = Merged(
        base_model=config.model,
        adapter=adapter.id,
        adapter_name=adapter.name,
        adapter_sha256=adapter.sha256,
        dtype=str(dtype).removeprefix("torch."),
        job=job.job_id,
        created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        method=adapter.method,
        revision=loaded.revision or "",
        **loaded.profile.settings,
    )
    if target.exists():
        _same_or_refuse(target, made)
        reporter.note(f"The merged weights are there already: {target}.")
        _progress(reporter, STEPS)
        return
    _progress(reporter, 1)
    reporter.phase("merging")
    model = merged_model(loaded, adapter)
    _progress(reporter, 2)
    check_room(target.parent, weights_bytes(model))
    reporter.phase("writing the weights")
    draft = target.with_name(f".{target.name}.draft-{job.job_id}")
    try:
        save_whole(model, draft, reporter)
        reporter.check_stop()
        _progress(reporter, 3)
        loaded.processor.save_pretrained(draft)
        (draft / FILE).write_text(made.text(), encoding="utf-8")
        (draft / "README.md").write_text(merged_card(target.name, made, adapter.folder), encoding="utf-8")
        reporter.check_stop()
        os.rename(draft, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"The disk is full: {target.name!r} could not be written. Free some space.") from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _progress(reporter, STEPS)
    reporter.note(f"The merged weights are in {target}: give this folder as a base model, or push it to a hub.")


def merged_model(loaded: Loaded, adapter: FrozenAdapter) -> Any:
    """The base with the adapter in its weights, in the base's precision, as the base's own class.

    Raises:
        UserError: the adapter is another base's, or no LoRA in safetensors.
        PlumbError: a merged weight is not a number.
    """
    policy = attach(loaded, {ADAPTER: (adapter.folder, adapter.name)})
    try:
        model = policy.merge_and_unload(safe_merge=True, adapter_names=[ADAPTER])
    except ValueError as error:
        raise PlumbError(f"The adapter {adapter.name!r} cannot be merged: {error}") from error
    return model.eval()


def weights_bytes(model: Any) -> int:
    """Bytes of the weights as they will be written; shared ones count once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())


def check_room(folder: Path, needed: int) -> None:
    """Raise UserError where the disk has no room for so many bytes of weights."""
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise UserError(
            f"The merged weights take {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free where models "
            "are kept. Free some space, or move the data folder to a larger disk."
        )


def save_whole(model: Any, folder: Path, reporter: Reporter) -> None:
    """`save_pretrained`, which refuses a base whose own defaults for sampling contradict each other."""
    settings = getattr(model, "generation_config", None)
    if settings is not None:
        try:
            settings.validate(strict=True)
        except ValueError:
            settings.do_sample = True
            reporter.note("The base's settings for generation contradicted each other; sampling is switched on.")
    model.save_pretrained(folder, max_shard_size="5GB")


def merged_card(name: str, made: Merged, adapter: Path) -> str:
    """Markdown with the hub's front matter: how the weights were made, then the adapter's own card."""
    front = yaml.safe_dump(
        {
            "library_name": "transformers",
            "base_model": made.base_model,
            "tags": ["plumb", "merged", "preference-alignment"],
            "pipeline_tag": "image-text-to-text",
        },
        sort_keys=False,
    )
    return f"""---
{front}---

# {name}

Full weights: the adapter `{made.adapter_name}` merged into `{made.base_model}` by Plumb.

| | |
|---|---|
| base model | `{made.base_model}`{f", revision `{made.revision}`" if made.revision else ""} |
| adapter | {made.adapter_name} (#{made.adapter}) |
| adapter's files | `{made.adapter_sha256}` |
| precision | {made.dtype} |
| merged | by job {made.job} at {made.created_at} |

## Use

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("path/of/this/folder")
processor = AutoProcessor.from_pretrained("path/of/this/folder")
```

## The adapter's card

{_demoted(_body(adapter / "README.md"))}"""


def _body(card: Path) -> str:
    """A card without its front matter."""
    try:
        text = card.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return "The adapter came without a card.\n"
    if text.startswith("---\n") and "\n---\n" in text[4:]:
        text = text[4:].split("\n---\n", 1)[1]
    return text.strip() + "\n"


def _demoted(markdown: str) -> str:
    """Headings two levels lower, outside code: the card stands under a heading of its own."""
    lines, fenced = [], False
    for line in markdown.splitlines():
        fenced ^= line.startswith("```")
        lines.append(f"##{line}" if line.startswith("#") and not fenced else line)
    return "\n".join(lines) + "\n"


def _same_or_refuse(target: Path, made: Merged) -> None:
    there = read_merged(target)
    if there is not None and there.same_content(made):
        return
    what = f"adapter {there.adapter} ({there.adapter_name}) in {there.dtype}" if there else "something else"
    raise Conflict(
        f"name = {target.name!r} is taken: models/merged/{target.name} holds {what}. Choose another name."
    )


def _refuse_quantized(loaded: Loaded) -> None:
    config = loaded.model.config
    text = config.get_text_config()
    if getattr(config, "quantization_config", None) or getattr(text, "quantization_config", None):
        raise UserError(_no_quantization(loaded.name))
    if any(parameter.dtype in (torch.int8, torch.uint8) for parameter in loaded.model.parameters()):
        raise UserError(_no_quantization(loaded.name))


def _no_quantization(name: str) -> str:
    return (
        f"The base {name!r} is quantized: merging into 4-bit weights would round the adapter away. Merge into the "
        "base in its full precision (quantization = none)."
    )


def _progress(reporter: Reporter, step: int) -> None:
    reporter.check_stop()
    reporter.progress(step, STEPS, "steps")
