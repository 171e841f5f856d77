"""The model card of an adapter: what it is, what it was made from, and how to make it again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from jobs.configs import DpoConfig, TrainConfig
from jobs.gpu.markdown import cell, code, facts_table, table
from jobs.gpu.profiles import UNCHANGED, Profile
from jobs.models import DEMO
from jobs.reporter import versions
from jobs.runs import JobFile, RunFolder
from jobs.steerlm import SENTENCE, attribute_string

#: Each method's name, and where it comes from.
METHODS = {
    "dpo": ("DPO", "direct preference optimisation, Rafailov et al. 2023, arXiv 2305.18290"),
    "steerlm": ("SteerLM", "attribute-conditioned fine-tuning, Dong et al. 2023, arXiv 2310.05344"),
    "rejection": (
        "rejection sampling",
        "fine-tuning on the best of several answers, Touvron et al. 2023, arXiv 2307.09288",
    ),
    "sft": ("standard SFT", "visual instruction tuning on reference answers, Liu et al. 2023, arXiv 2304.08485"),
}
COMPARED = "Li, Lin and Pei 2024, arXiv 2402.10884"  #: compares the four on one set of labels
MDPO = "mDPO, Wang et al. 2024, arXiv 2406.11839"

SPLITS = ("train", "heldout", "report")


def training_card(
    run: RunFolder,
    job: JobFile,
    config: TrainConfig,
    name: str,
    metrics: Mapping[str, float],
    revision: str | None = None,
    profile: Profile = UNCHANGED,
) -> str:
    """Markdown with the hub's front matter.

    Where the labels come from is read from data/lineage.json, the LoRA's shape from adapter/adapter_config.json;
    a run folder without them gets a card that says less.

    Args:
        metrics: the last value of each metric, under our names.
        revision: the commit of the base, where it came from a hub.
        profile: what was changed about the base's processor.
    """
    lineage = _read(run.lineage)
    saved = _read(run.adapter / "adapter_config.json")
    rows = _rows_in(run, lineage)
    title, source = METHODS[config.kind]
    settings = {key: value for key, value in config.model_dump(mode="json").items() if key != "kind"}
    facts = {
        "base model": f"{code(config.model)}{f', revision {code(revision)}' if revision else ''}",
        "method": f"{title} ({source}), as in {COMPARED}",
        "loss": loss_told(config),
        "trained parts": trained_told(config, saved, lineage.get("start_adapter")),
        "started from": start_told(lineage.get("start_adapter")),
        "job": f"{job.job_id}, asked for by {cell(job.user)} at {job.created_at}",
        "device": f"{cell(job.device)}, {_many(config.processes, 'process', 'processes')}",
    }
    return f"""---
{front_matter(config, name)}---

# {" ".join(name.split())}

A LoRA adapter for the vision-language model {code(config.model)}, trained by {title} with Plumb.

{facts_table(facts)}
## Data

{data_told(job, config, lineage)}
{rows_told(config, rows, lineage)}
## Metrics at the end

{table(metrics, "metric")}
{metrics_told(config, metrics)}

## Settings

{table(settings, "setting")}
## Versions

{table({**job.versions, **versions()}, "package")}
## How to repeat

{repeat_told(job, settings)}
## Use

{use_told(config, revision, profile)}
The adapter knows what the labels of its data set reward, no more.
"""


def front_matter(config: TrainConfig, name: str) -> str:
    front = {
        "library_name": "peft",
        "base_model": config.model,
        "base_model_relation": "adapter",
        "tags": ["plumb", config.kind, "lora", "preference-alignment"],
        "pipeline_tag": "image-text-to-text",
        "model_name": name,
    }
    return str(yaml.safe_dump(front, sort_keys=False, allow_unicode=True))


def loss_told(config: TrainConfig) -> str:
    """The loss in words, with its weights."""
    if not isinstance(config, DpoConfig):
        return "mean negative log-probability of the answer's tokens; the prompt is not learnt"
    told = f"{cell(config.loss)} (TRL's names), β {config.beta:g}, reference = what training started from"
    if config.label_smoothing:
        told += f", label smoothing {config.label_smoothing:g}"
    if config.image_weight:
        told += f", + {config.image_weight:g} × image-conditional term ({MDPO})"
    if config.anchor_weight:
        told += f", + {config.anchor_weight:g} × anchor of the chosen answer ({MDPO})"
    return told


def trained_told(config: TrainConfig, saved: Mapping[str, Any], start: Mapping[str, Any] | None) -> str:
    """Which weights were trained; an adapter's own file knows better than the form what its LoRA is."""
    rank, alpha = saved.get("r", config.lora_r), saved.get("lora_alpha", config.lora_alpha)
    dropout = saved.get("lora_dropout", config.lora_dropout)
    if start:
        where = "the layers of the adapter that it started from"
    elif config.targets:
        where = f"{cell(', '.join(config.targets))} of the language model"
    else:
        where = "all linear layers of the language model but its head"
    told = f"LoRA (rank {rank}, alpha {alpha}, dropout {dropout:g}) on {where}"
    if config.train_projector:
        return f"{told}; projector in full, learning rate {config.projector_learning_rate:g}; tower untouched"
    if saved.get("modules_to_save"):
        return f"{told}; projector as in the adapter that it started from; tower untouched"
    return f"{told}; projector and tower untouched"


def start_told(start: Mapping[str, Any] | None) -> str:
    if not start:
        return "the base"
    method = METHODS.get(start["method"], (start["method"],))[0]
    on = f" on the data set {cell(start['dataset'])}" if start.get("dataset") else ""
    told = f"adapter {start['id']}, {cell(start['name'])} ({method}{on}, job {start['job']})"
    return f"{told}, files {code(start['sha256'])}"


def data_told(job: JobFile, config: TrainConfig, lineage: Mapping[str, Any]) -> str:
    """Data set, hash, rule, raters and rubrics, as one table."""
    dataset = lineage.get("dataset", {})
    rule = dataset.get("rule", {})
    facts = {"data set": cell(config.dataset), "hash": code(job.dataset_hash or dataset.get("hash") or "none")}
    if dataset:
        facts["frozen"] = f"by {cell(dataset['user'])} at {dataset['created_at']}"
        facts["rule"] = rule_told(rule)
        made = [f"{entry['pairs']:,} by {code(_compact(entry['rule']))}" for entry in rule.get("pair_rules", [])]
        if made:
            facts["pairs made"] = "; ".join(made)
        facts["raters"] = raters_told(lineage.get("raters", []))
        facts["rubrics"] = ", ".join(map(code, lineage.get("rubrics", []))) or "none"
    learnt = {
        "dpo": "the preference in each pair",
        "steerlm": "every scored answer, after its own five values",
        "rejection": "of each sample's scored answers the best by helpfulness + correctness + coherence, "
        "the first on ties",
        "sft": "the samples' reference answers; the raters' scores are in the pairs that it is measured on",
    }
    facts["learnt from"] = learnt[config.kind]
    return facts_table(facts)


def rule_told(rule: Mapping[str, Any]) -> str:
    """Which rows a data set took, and how it was split."""
    told = f"pairs that are {cell(' or '.join(rule.get('statuses', [])))}"
    if "whose_scores" in rule:
        judge = f", of judges {cell(' · '.join(filter(None, rule['judge'])))} alone" if rule.get("judge") else ""
        told += f"; answers scored by {cell(rule['whose_scores'])}{judge}"
    if "heldout_percent" in rule:
        told += f"; {rule['heldout_percent']:g} % held out by image, seed {rule.get('seed')}"
    return told


def raters_told(raters: Sequence[Mapping[str, Any]]) -> str:
    """Who judged, and how much; a judge is its model, its rubric and its mode."""
    told = []
    for rater in raters:
        words = " · ".join(str(rater[key]) for key in ("name", "version", "mode") if rater.get(key))
        number = f"{rater['judgements']:,} judgements" if "judgements" in rater else f"{rater['pairs']:,} pairs"
        told.append(f"{cell(words)} ({rater['kind']}, {number})")
    return "; ".join(told) or "not recorded"


def rows_told(config: TrainConfig, rows: Mapping[str, Mapping[str, int]], lineage: Mapping[str, Any]) -> str:
    """How many rows this run had, by kind and split."""
    lines = ["| rows | to train on | held-out | for the report |", "|---|---|---|---|"]
    names = {"pair": "pairs", "answer": "answers"}
    for kind, counts in rows.items():
        if any(counts.values()):
            lines.append(
                f"| {names[kind]} | " + " | ".join(f"{counts.get(split, 0):,}" for split in SPLITS) + " |"
            )
    notes = []
    own = rows["pair" if isinstance(config, DpoConfig) else "answer"].get("train", 0)
    seen = config.max_steps * config.global_batch
    if 0 < seen < own:
        notes.append(f"{_many(config.max_steps, 'step', 'steps')} saw {seen:,} of the rows to train on.")
    if config.fraction < 1:
        whole = lineage.get("training_rows")
        of = f" of {whole:,}" if whole else ""
        notes.append(f"The rows to train on are a fraction, {config.fraction:g}{of}.")
    if lineage.get("flipped"):
        turned = _many(lineage["flipped"], "pair", "pairs")
        notes.append(f"In {turned} to train on, chosen and rejected were swapped on purpose.")
    if lineage.get("left_out"):
        notes.append(f"{_many(lineage['left_out'], 'row was', 'rows were')} left out: there is no answer in them.")
    return "\n".join([*lines, "", *notes, ""] if notes else [*lines, ""])


def metrics_told(config: TrainConfig, metrics: Mapping[str, float]) -> str:
    """How to read the metrics: which split was chosen by, and which was not."""
    beta = config.beta if isinstance(config, DpoConfig) else 0.1
    told = [
        f"Rewards are β ({beta:g}) times the log-probability ratio of policy and reference, on pairs.",
        "`heldout_` metrics were looked at along the run: whatever was chosen (a checkpoint, a setting, the best "
        "of several runs) was chosen by them. `report_` metrics were looked at once, at the end, on pairs that "
        "share no image with the others: quote these.",
    ]
    if "best_step" in metrics:
        told.append(
            f"The weights are those of step {metrics['best_step']:g}, which had the best held-out accuracy."
        )
    if not any(key.startswith("report_") for key in metrics):
        told.append("This run had no pairs for the report.")
    if config.asked_as == "steerlm":
        told.append("Pairs were asked with all five values at 4.")
    return "\n".join(told)


def repeat_told(job: JobFile, settings: Mapping[str, Any]) -> str:
    submit = {"kind": job.kind, "config": dict(settings)}
    start = ""
    if settings.get("start_adapter") is not None:
        start = "`start_adapter` is the number of the adapter above in your data folder.\n"
    return f"""Freeze the same rows (their hash must be the one above), save this as `job.json` and submit it.
{start}
```json
{json.dumps(submit, indent=2, ensure_ascii=False)}
```

```
python -m jobs submit job.json
```
"""


def use_told(config: TrainConfig, revision: str | None, profile: Profile) -> str:
    """How the adapter is loaded, and what it is asked with."""
    base = json.dumps(config.model, ensure_ascii=False) + (
        f", revision={json.dumps(revision)}" if revision else ""
    )
    told = ""
    if config.model == DEMO:
        told = (
            "The demo VLM is assembled by Plumb, in the data folder's `models/`: give its folder as the base.\n\n"
        )
    told += f"""```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = AutoModelForImageTextToText.from_pretrained({base})
processor = AutoProcessor.from_pretrained({base})
model = PeftModel.from_pretrained(base, "path/of/this/folder")
```
"""
    if profile != UNCHANGED:
        told += f"\n{profile_told(profile)}\n"
    if config.asked_as == "steerlm":
        told += f"""
It was trained to be told what to answer like. End the last user turn with a newline and these two lines; Plumb's
own jobs and chat do so by themselves:

```
{SENTENCE}
{attribute_string()}
```
"""
    return told


def profile_told(profile: Profile) -> str:
    """What the base's own processor does otherwise than it did in training."""
    told = []
    if profile.image_fit == "square":
        told.append(
            "images were padded to a square with the mean colour, where the base's own processor crops them"
        )
    if profile.system_prompt:
        told.append(
            "conversations began with the system prompt "
            f"{json.dumps(profile.system_prompt, ensure_ascii=False)}, which the base's chat template leaves out"
        )
    return f"In training {', and '.join(told)}. Plumb's own jobs, chat and merged weights do so by themselves."


def _read(file: Any) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def _rows_in(run: RunFolder, lineage: Mapping[str, Any]) -> dict[str, Mapping[str, int]]:
    """kind → split → rows, as the lineage tells, else counted."""
    if "rows" in lineage:
        return {"pair": {}, "answer": {}, **lineage["rows"]}
    counted: dict[str, Counter[str]] = {"pair": Counter(), "answer": Counter()}
    for row in run.rows():
        counted[row.get("kind", "pair")][row["split"]] += 1
    return dict(counted)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _many(number: int, one: str, several: str) -> str:
    return f"{number:,} {one if number == 1 else several}"
