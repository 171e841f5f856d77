"""What evaluations and gradings name, resolved into the rows, images and files of their run folders.

A row of `evaluate` is an item: {number, id, unit, categories, reference, temperature, extra, messages, following,
method}; of `grade` a request to a judge: {sample_id, request, item, system, prompt}, where `sample_id` is its
number. What is graded lies beside these as data/evaluation.json: {benchmark, items, answers}.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from sqlite_utils import Database

from jobs.as_trained import asked_as
from jobs.benchmarks.contract import Answers, Benchmark, Item
from jobs.benchmarks.registry import BENCHMARKS, half_of
from jobs.config_evaluation import EvaluateConfig, GradeConfig
from jobs.item_rows import EVALUATION, FIELDS, fields_of, item_of, stored
from jobs.merged import method_of
from jobs.outside import check_outside
from jobs.packing_training import Freight, adapter_of
from jobs.rows import Row, with_addresses, with_file_names
from jobs.settings import Settings
from storage.errors import UserError
from storage.evaluations import answers_of, begin_evaluation, get_evaluation, items_of
from storage.images import ensure_image_file
from storage.records import Adapter, Image, Job, Message
from storage.speakers import Speaker


def pack_evaluation(db: Database, settings: Settings, config: EvaluateConfig) -> Freight:
    """The items of a benchmark and their images, which are kept for good.

    Raises:
        UserError: its files, or an image, cannot be used; nothing is left to ask; an adapter is another base's; an
            endpoint is not set, or does not serve the model.
        NotFound: the adapter is not there.
    """
    if config.outside:
        check_outside(settings, Speaker(config.outside))
    adapters = () if config.adapter is None else (adapter_of(db, config.adapter, config.model),)
    benchmark = BENCHMARKS[config.benchmark]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(config.files) if config.files else None
        found = benchmark.read(path, Path(config.images) if config.images else None, Path(scratch))
        items = chosen(found, config.half, config.limit)
        if not items:
            raise UserError(f"half = {config.half!r}: no item of {benchmark.title} is in this half; choose “all”.")
        images = _images(db, settings, items)
    method = asked_as(db, adapters[0]) if adapters else "" if config.outside else method_of(config.model)
    rows = [_row(number, item, images, method) for number, item in enumerate(items, 1)]
    return Freight(rows, {image.sha256: image for image in images.values()}, adapters)


def chosen(items: Sequence[Item], half: str, limit: int | None) -> list[Item]:
    """A half, and of that a fixed subset of about so many items; units stay whole.

    Smaller subsets are in larger ones. Drawn by hash: every n-th item would take some kinds of items again and
    again, and others never.
    """
    units: dict[str, list[Item]] = {}
    for item in items:
        if half == "all" or half_of(item.id, item.unit) == half:
            units.setdefault(item.unit or item.id, []).append(item)
    names = list(units)
    if limit is not None and limit < sum(map(len, units.values())):
        each = sum(map(len, units.values())) / len(names)
        wanted = max(1, min(len(names), round(limit / each)))
        taken = set(sorted(names, key=lambda name: hashlib.sha256(f"subset {name}".encode()).digest())[:wanted])
        names = [name for name in names if name in taken]
    return [item for name in names for item in units[name]]


def _images(db: Database, settings: Settings, items: Sequence[Item]) -> dict[str, Image]:
    """By the path that the items know them by."""
    found: dict[str, Image] = {}
    for item in items:
        for part in (part for message in _all_messages(item) for part in _parts(message)):
            if part["type"] == "image" and part["image"] not in found:
                try:
                    found[part["image"]] = ensure_image_file(db, settings.folder, Path(part["image"]))
                except UserError as error:
                    raise UserError(f"Item {item.id}: {error}") from error
    return found


def _all_messages(item: Item) -> list[Message]:
    return [*item.messages, *({"role": "user", "content": list(parts)} for parts in item.following)]


def _parts(message: Message) -> list[dict[str, str]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _row(number: int, item: Item, images: Mapping[str, Image], method: str) -> Row:
    messages = with_file_names(_all_messages(item), images)
    given = len(item.messages)
    return {
        "number": number,
        **fields_of(item),
        "messages": messages[:given],
        "following": [message["content"] for message in messages[given:]],
        "method": method,
    }


def begin(db: Database, job: Job, config: EvaluateConfig, freight: Freight) -> int:
    """The evaluation that a job is for; in the transaction that makes the job."""
    items = [
        {
            **{name: row[name] for name in FIELDS},
            "messages": [{**one, "content": with_addresses(one["content"])} for one in row["messages"]],
            "following": [with_addresses(parts) for parts in row["following"]],
        }
        for row in freight.rows
    ]
    label = label_of(config, freight.adapters[0] if freight.adapters else None)
    model = config.outside or config.model
    return begin_evaluation(db, job, config.benchmark, items, model, config.adapter, label, config.settings())


def label_of(config: EvaluateConfig, adapter: Adapter | None) -> str:
    """As the table names who answers."""
    if adapter is not None:
        return f"{adapter.name} (adapter {adapter.id})"
    return config.outside or (PurePath(config.model).name if config.model.startswith("/") else config.model)


# gradings ----------------------------------------------------------------------------------------------------


def pack_grading(db: Database, config: GradeConfig) -> Freight:
    """Answers to be graded, and what a judge is asked about them.

    Raises:
        UserError: there are no answers yet; the benchmark has no such grading.
        NotFound: there is no such evaluation.
    """
    evaluation = get_evaluation(db, config.evaluation)
    benchmark = BENCHMARKS[evaluation.benchmark]
    items = [item_of(row) for row in items_of(db, evaluation)]
    answers: dict[str, list[str]] = {}
    for one in answers_of(db, evaluation.id):
        answers.setdefault(items[one.number - 1].id, []).append(one.text)
    if not answers:
        why = "it came from an official file" if evaluation.job_id is None else f"wait for job {evaluation.job_id}"
        raise UserError(f"evaluation = {evaluation.id}: it has no answers to grade; {why}.")
    rows = _requests(benchmark, config, items, answers)
    told = {"benchmark": benchmark.name, "items": [stored(item) for item in items], "answers": answers}
    return Freight(rows, files={EVALUATION: json.dumps(told, ensure_ascii=False)})


def _requests(benchmark: Benchmark, config: GradeConfig, items: Sequence[Item], answers: Answers) -> list[Row]:
    if config.judge == "rules":
        if benchmark.grade is None:
            raise UserError(
                f"judge = 'rules': {benchmark.title} is graded by a judge alone; choose gemini or openai."
            )
        return []
    if benchmark.requests is None:
        raise UserError(f"judge = {config.judge!r}: {benchmark.title} is graded by rules; set judge to 'rules'.")
    return [
        {"sample_id": number, "request": one.id, "item": one.item, "system": one.system, "prompt": one.prompt}
        for number, one in enumerate(benchmark.requests(items, answers), 1)
    ]
