"""The model card of an adapter: what it is, what it was made from, and how to make it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml

from jobs.configs import DpoConfig
from jobs.reporter import versions
from jobs.runs import JobFile


def dpo_card(
    job: JobFile, config: DpoConfig, name: str, counts: Mapping[str, int], metrics: Mapping[str, float]
) -> str:
    """Markdown with the hub's front matter.

    Args:
        counts: pairs in each split.
        metrics: the last value of each metric, under our names.
    """
    front = yaml.safe_dump(
        {
            "library_name": "peft",
            "base_model": config.model,
            "tags": ["plumb", "dpo", "lora", "preference-alignment"],
            "pipeline_tag": "image-text-to-text",
        },
        sort_keys=False,
    )
    settings = {key: value for key, value in config.model_dump(mode="json").items() if key != "kind"}
    submit = {"kind": job.kind, "config": settings}
    pairs = ", ".join(f"{count} {split}" for split, count in counts.items())
    found = {**job.versions, **versions()}
    return f"""---
{front}---

# {name}

A LoRA adapter for the vision-language model `{config.model}`, aligned to preferences by Plumb.

| | |
|---|---|
| base model | `{config.model}` |
| method | DPO (Rafailov et al. 2023, arXiv 2305.18290): sigmoid loss, β {config.beta}, reference = the base |
| trained parts | LoRA on the language model's linear layers but its head; tower and projector untouched |
| data set | {config.dataset} |
| data set hash | `{job.dataset_hash or "none"}` |
| pairs | {pairs} |
| job | {job.job_id}, asked for by {job.user} at {job.created_at} |
| device | {job.device} |

## Metrics at the end

{table(metrics, "metric")}
Rewards are β times the log-probability ratio of policy and reference; held-out pairs were not trained on.

## Settings

{table(settings, "setting")}
## Versions

{table(found, "package")}
## How to repeat

Freeze the same pairs (the hash above must be the same), save this as `job.json` and submit it:

```json
{json.dumps(submit, indent=2, ensure_ascii=False)}
```

```
python -m jobs submit job.json
```

## Use

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText

base = AutoModelForImageTextToText.from_pretrained({json.dumps(config.model)})
model = PeftModel.from_pretrained(base, "path/of/this/folder")
```

The adapter knows what the labels of its data set reward, no more: read the data set's own notes for who judged,
and by which rule the pairs were made.
"""


def table(values: Mapping[str, Any], head: str) -> str:
    if not values:
        return "none\n"
    lines = [f"| {head} | value |", "|---|---|"]
    for key, value in values.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        lines.append(f"| {key} | {shown} |")
    return "\n".join(lines) + "\n"


def training_card(run: Any, job: JobFile, config: Any, name: str, metrics: Mapping[str, float]) -> str:
    return dpo_card(job, config, name, {}, metrics)
