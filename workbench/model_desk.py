"""What the Models page asks and does: plain functions above Gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

from sqlite_utils import Database

from jobs import queue
from jobs.configs import TRAININGS
from jobs.merged import Merged, list_merged, name_for
from jobs.push import need_token
from storage import adapters as store
from storage.adapters import AdapterUses, get_adapter, list_adapters, uses_of
from storage.datasets import list_datasets
from storage.errors import Conflict, PlumbError
from storage.records import Adapter, Dataset, Job
from storage.runs import (
    HELDOUT,
    Run,
    RunChoices,
    RunFilter,
    curves_of,
    final_metrics,
    jobs_by_id,
    list_runs,
    run_choices,
)
from workbench import compare
from workbench.context import Context
from workbench.events import read_id
from workbench.lineage import Node, family

KINDS = tuple(config.kind for config in TRAININGS)
SHOWN = 200  # runs in the table
CURVES = 8  # curves in the chart
_FILTERS = ("dataset", "base", "method", "sweep")


@dataclass(frozen=True)
class Address:
    """What the page's address asks for; None and "" leave a choice to the page."""

    runs: bool = False
    adapter: int | None = None
    merged: str = ""
    where: RunFilter = field(default_factory=RunFilter)
    best: str = compare.DEFAULT
    curve: str = compare.DEFAULT
    ticked: tuple[int, ...] = ()

    def search(self, **changes: Any) -> str:
        """The query string of the runs' view, with some of it changed."""
        asked = {
            "view": "runs",
            "dataset": self.where.dataset,
            "base": self.where.base,
            "method": self.where.method,
            "sweep": self.where.sweep,
            "best": self.best if self.best != compare.DEFAULT else None,
            "curve": self.curve if self.curve != compare.DEFAULT else None,
            "runs": ",".join(str(job) for job in self.ticked) or None,
            **changes,
        }
        return "?" + urlencode({name: value for name, value in asked.items() if value not in (None, "")})


def read_address(search: str) -> Address:
    """Read a query string; what cannot be read is passed over. A filter of runs opens their view."""
    query = {name: values[-1] for name, values in parse_qs(search.lstrip("?")).items()}
    curve = query.get("curve", "").removeprefix(HELDOUT)
    ticked = [read_id(part) for part in query.get("runs", "").split(",")]
    model = read_id(query.get("adapter")), query.get("merged", "")
    asks_runs = query.get("view") == "runs" or (not any(model) and any(name in query for name in _FILTERS))
    return Address(
        runs=asks_runs,
        adapter=model[0],
        merged=model[1],
        where=RunFilter(
            dataset=query.get("dataset"),
            base=query.get("base"),
            method=query.get("method") if query.get("method") in KINDS else None,
            sweep=read_id(query.get("sweep")),
        ),
        best=compare.choosable(query.get("best", "")),
        curve=curve if curve in compare.BY_NAME else compare.DEFAULT,
        ticked=tuple(dict.fromkeys(job for job in ticked if job is not None))[:SHOWN],
    )


@dataclass(frozen=True)
class Opened:
    """The adapter that is shown below the picture.

    Attributes:
        started: the adapter that its training went on from.
        card: its README.md; "" where it has none.
        job: None where its row is gone.
    """

    adapter: Adapter
    job: Job | None
    started: Adapter | None
    dataset: Dataset | None
    metrics: Mapping[str, float]
    card: str


@dataclass(frozen=True)
class OpenedMerged:
    """Merged weights that are shown below the picture; `adapter` is the one of this data folder, if it is."""

    folder: Path
    made: Merged
    adapter: Adapter | None
    bytes: int
    card: str


@dataclass(frozen=True)
class Models:
    """The first view: the family, and what is opened of it."""

    forest: Sequence[Node]
    selected: str = ""
    opened: Opened | None = None
    merged: OpenedMerged | None = None
    problem: str = ""


@dataclass(frozen=True)
class Runs:
    """The second view: the runs that fit, side by side, and one curve of some of them."""

    address: Address
    choices: RunChoices
    found: compare.Comparison
    total: int
    curves: Sequence[tuple[Run, Sequence[tuple[int, float]]]]


def models(context: Context, address: Address) -> Models:
    """Everything of the first view; with nothing asked for, the newest adapter is opened."""
    merged = list_merged(context.folder.models)
    with context.database() as db:
        adapters = list_adapters(db)
        jobs = jobs_by_id(db, [adapter.job_id for adapter in adapters])
        last = final_metrics(db, [*jobs.values()])
        datasets = {dataset.id: dataset for dataset in list_datasets(db)}
    accuracy = f"{HELDOUT}{compare.DEFAULT}"
    known = {one.id: last[one.job_id][accuracy] for one in adapters if accuracy in last.get(one.job_id, {})}
    forest = family(
        adapters,
        jobs,
        {str(path): made for path, made in merged.items()},
        known,
        {dataset.id: dataset.name for dataset in datasets.values()},
    )
    by_id = {adapter.id: adapter for adapter in adapters}
    if address.merged:
        folder = next((path for path in merged if path.name == address.merged), None)
        if folder is None:
            return Models(forest, problem=f"There are no merged weights named {address.merged!r}.")
        return Models(forest, f"merged:{folder.name}", merged=_open_merged(folder, merged[folder], by_id))
    if address.adapter is not None and address.adapter not in by_id:
        return Models(forest, problem=f"There is no adapter {address.adapter}; it may have been deleted.")
    if not adapters:
        return Models(forest)
    adapter = by_id[address.adapter] if address.adapter is not None else adapters[0]
    job = jobs.get(adapter.job_id)
    opened = Opened(
        adapter=adapter,
        job=job,
        started=by_id.get(job.adapter_id) if job and job.adapter_id is not None else None,
        dataset=datasets.get(adapter.dataset_id) if adapter.dataset_id is not None else None,
        metrics=last.get(adapter.job_id, {}),
        card=read_card(context.folder.adapters / adapter.sha256),
    )
    return Models(forest, f"adapter:{adapter.id}", opened)


def _open_merged(folder: Path, made: Merged, adapters: Mapping[int, Adapter]) -> OpenedMerged:
    adapter = adapters.get(made.adapter)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    own = adapter if adapter is not None and adapter.sha256 == made.adapter_sha256 else None
    return OpenedMerged(folder, made, own, size, read_card(folder))


def read_card(folder: Path) -> str:
    """The model card in a folder; "" where there is none that can be read."""
    try:
        return (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def runs(context: Context, address: Address) -> Runs:
    """Everything of the second view. Curves are of the ticked runs, or of the first that have one."""
    with context.database() as db:
        found, total = list_runs(db, KINDS, address.where, SHOWN)
        choices = run_choices(db, KINDS)
        ticked = [run for run in found if run.job.id in address.ticked] or found
        name = HELDOUT + address.curve
        drawn = [run for run in ticked if name in run.metrics][:CURVES]
        curves = curves_of(db, [run.job.id for run in drawn], name)
    return Runs(
        address=address,
        choices=choices,
        found=compare.compare(found, address.best),
        total=total,
        curves=[(run, curves[run.job.id]) for run in drawn if run.job.id in curves],
    )


def suggested_name(opened: Opened) -> str:
    """A name for the merged weights of an adapter."""
    return name_for(opened.adapter.name, opened.adapter.id)


def token_hint() -> str:
    """Why nothing can be pushed; "" where a token is set."""
    try:
        need_token()
    except PlumbError as error:
        return str(error)
    return ""


def merge(context: Context, user: str, adapter_id: int, name: str) -> Job:
    """Queue a job that merges the adapter into full weights, prepared for as it was trained.

    Raises:
        PlumbError: it cannot start; the text names field, value and remedy.
    """
    with context.database() as db:
        adapter = get_adapter(db, adapter_id)
        values = {"model": adapter.base_model, "adapter": adapter.id, "name": name.strip()}
        # How images and prompts were prepared in training is saved with the weights' processor.
        training = jobs_by_id(db, [adapter.job_id])
        for job in training.values():
            values |= {key: job.config[key] for key in ("image_fit", "system_prompt") if key in job.config}
        return queue.submit(db, context.settings, "merge", values, user)


def push(context: Context, user: str, what: int | str, repository: str, private: bool) -> Job:
    """Queue the upload of an adapter (its id) or of merged weights (their name).

    Raises:
        PlumbError: it cannot start; no token is set, for one.
    """
    values: dict[str, Any] = {"repository": repository.strip(), "private": private}
    values |= {"adapter": what} if isinstance(what, int) else {"merged": what}
    with context.database() as db:
        return queue.submit(db, context.settings, "push", values, user)


def rename(context: Context, adapter_id: int, name: str) -> Adapter:
    """Raises PlumbError where the name cannot be, or the adapter is gone."""
    with context.database() as db:
        return store.rename_adapter(db, adapter_id, name)


def deletion(context: Context, adapter_id: int) -> tuple[Adapter, AdapterUses]:
    """What is asked before an adapter is deleted: which one, and what shares its files.

    Raises:
        NotFound: it is gone.
        Conflict: something stands on it.
    """
    with context.database() as db:
        adapter = get_adapter(db, adapter_id)
        _refuse_if_used(context, db, adapter)
        return adapter, uses_of(db, adapter)


def delete(context: Context, adapter_id: int) -> str:
    """Delete it for good; returns what to tell.

    Raises:
        PlumbError: something stands on it, or it is gone.
    """
    with context.database() as db:
        adapter = get_adapter(db, adapter_id)
        _refuse_if_used(context, db, adapter)
        files = store.delete_adapter(db, context.folder, adapter_id)
    rest = "" if files else " Its files stay: another adapter has the same ones."
    return f"The adapter {adapter.name} is deleted.{rest}"


def _refuse_if_used(context: Context, db: Database, adapter: Adapter) -> None:
    """Raise Conflict where something stands on the adapter, full weights of it that are a base among it."""
    store.refuse_used(adapter, uses_of(db, adapter))
    merged = list_merged(context.folder.models)
    own = {str(path) for path, made in merged.items() if made.adapter_sha256 == adapter.sha256}
    grown = [other for other in list_adapters(db) if other.base_model in own] if own else []
    if grown:
        raise Conflict(
            f"The adapter {adapter.id} ({adapter.name}) cannot be deleted: {grown[0].name} was trained on full "
            "weights that it was merged into."
        )
