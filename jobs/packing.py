"""What a job's configuration names, resolved into the rows and files of its run folder."""

from __future__ import annotations

from collections.abc import Sequence

from sqlite_utils import Database

from jobs.as_trained import asked_as
from jobs.configs import (
    ChecklistConfig,
    ContestConfig,
    DownloadConfig,
    EvaluateConfig,
    GenerateConfig,
    GradeConfig,
    JobConfig,
    JudgeConfig,
    MergeConfig,
    PushConfig,
    Selection,
    ServeConfig,
    TrainConfig,
    parse_config,
)
from jobs.hub import check_download
from jobs.judges import rules
from jobs.judges.identity import Rater, key_of, rater_of
from jobs.judges.keys import need_key
from jobs.judges.terms import read_terms
from jobs.merged import method_of
from jobs.outside import check_outside
from jobs.packing_contest import pack_contest
from jobs.packing_evaluation import pack_evaluation, pack_grading
from jobs.packing_training import Freight, adapter_of, images_shown, pack_training, shown_in
from jobs.push import check_push
from jobs.rows import Row, checklist_row, generate_row, judge_row
from jobs.rubric import load_rubric, rubric_yaml
from jobs.runs import RunFolder
from jobs.settings import Settings
from storage.adapters import get_adapter
from storage.candidates import answered_by, candidates_of
from storage.checklists import latest_checklists
from storage.datasets import RowKind, dataset_rows, get_dataset
from storage.errors import UserError
from storage.finding import SampleFilter, find_samples
from storage.jobs import list_jobs
from storage.lifecycle import ENDED, JobStatus
from storage.records import Adapter, Checklist, Image
from storage.samples import get_samples
from storage.scores import judged_fully, states_by_key
from storage.speakers import Speaker


def pack(db: Database, settings: Settings, config: JobConfig) -> Freight:
    """Resolve what a configuration names into rows, images and adapters.

    Raises:
        UserError: what it names is not there, or there is nothing to do.
    """
    match config:
        case GenerateConfig():
            return _pack_generate(db, settings, config)
        case JudgeConfig():
            return pack_judge(db, settings, config)
        case ChecklistConfig():
            return pack_checklist(db, settings, config)
        case TrainConfig():
            return pack_training(db, config)
        case MergeConfig():
            return Freight([], adapters=(adapter_of(db, config.adapter, config.model),))
        case PushConfig():
            check_push(config, settings.folder.models)
            return Freight([], adapters=(get_adapter(db, config.adapter),) if config.adapter is not None else ())
        case DownloadConfig():
            check_download(config)
            return Freight([])
        case ServeConfig():
            adapters = tuple(adapter_of(db, adapter_id, config.model) for adapter_id in config.adapters)
            return Freight(rows=[], adapters=adapters)
        case ContestConfig():
            ids = [] if config.prompts else _limited(select(db, config.samples), config.samples)
            return pack_contest(db, settings, config, ids)
        case EvaluateConfig():
            return pack_evaluation(db, settings, config)
        case GradeConfig():
            if config.judge != "rules":
                check_call(settings, config)
            return pack_grading(db, config)
    raise UserError(f"There is no way to freeze a job of kind {config.kind!r}.")


def _pack_generate(db: Database, settings: Settings, config: GenerateConfig) -> Freight:
    adapters: tuple[Adapter, ...] = ()
    if config.outside:
        check_outside(settings, Speaker(config.outside))
    if config.adapter is not None:
        adapters = (adapter_of(db, config.adapter, config.model),)
    ids = select(db, config.samples)
    if config.samples.only_missing:
        answered = answered_by(db, config.outside or config.model, config.adapter)
        ids = [sample_id for sample_id in ids if sample_id not in answered]
    ids = _limited(ids, config.samples)
    if not ids:
        raise UserError(
            "There is nothing to generate: no sample fits the selection. Load the demo on the Samples page, "
            "widen the selection, or switch off “Only what is missing” to draw more candidates."
        )
    samples = get_samples(db, ids)
    images = images_shown(db, [sample.messages for sample in samples])
    method = asked_as(db, adapters[0]) if adapters else "" if config.outside else method_of(config.model)
    return Freight([generate_row(sample, images, method) for sample in samples], images, adapters)


def pack_judge(db: Database, settings: Settings, config: JudgeConfig) -> Freight:
    files: dict[str, str] = {}
    if config.judge != rules.NAME:
        check_call(settings, config)
        files["rubric.yaml"] = rubric_yaml(load_rubric(config.rubric, settings.folder.judges))
    ids = select(db, config.samples)
    rows, images = judge_rows(db, config, ids)
    if config.samples.only_missing:
        if config.judge == rules.NAME:
            done = judged_fully(db, rules.RATER)
            rows = [row for row in rows if row["sample_id"] not in done]
        else:
            rows = _unjudged(db, settings, config, rows)
    rows = rows[: config.samples.limit]
    if not rows:
        raise UserError(_nothing_to_judge(config))
    return Freight(rows, shown_in(rows, images), files=files)


def judge_rows(db: Database, config: JudgeConfig, ids: Sequence[int]) -> tuple[list[Row], dict[str, Image]]:
    """The rows of those of these samples that can be judged: with candidates and, if asked for, a checklist."""
    candidates = candidates_of(db, ids)
    lists: dict[int, Checklist] = {}
    if config.checklists:
        lists = {key: found for key, found in latest_checklists(db, ids).items() if found.items}
    ids = [key for key in ids if candidates[key] and (key in lists or not config.checklists)]
    samples = get_samples(db, ids)
    images = images_shown(db, [sample.messages for sample in samples])
    return [judge_row(one, candidates[one.id], images, lists.get(one.id)) for one in samples], images


def _unjudged(db: Database, settings: Settings, config: JudgeConfig, rows: list[Row]) -> list[Row]:
    """Rows whose judgement, by this judge and in this order, is not there yet or went wrong, and not under way."""
    rater = rater_of(config)
    states = states_by_key(db, rater)
    done = {"ok"} if config.ask_blocked else {"ok", "blocked"}
    wanted = {key_of(row, rater, config.order_seed): row for row in rows}
    wanted = {key: row for key, row in wanted.items() if states.get(key) not in done}
    busy = under_way(db, settings, rater, config.order_seed) if wanted else {}
    left = [row for key, row in wanted.items() if key not in busy]
    blocked = sum(states.get(key_of(row, rater, config.order_seed)) == "blocked" for row in rows)
    if blocked and not wanted:
        raise UserError(
            f"There is nothing to judge but {blocked:,} blocked by the provider. Switch on "
            "“Ask blocked ones again” to ask for them, or “Only what is missing” off to judge all again."
        )
    if wanted and not left:
        jobs = ", ".join(f"{job_id}" for job_id in sorted({busy[key] for key in wanted}))
        raise UserError(
            f"There is nothing to judge that is not under way: all of it is in job {jobs} already. Wait for its "
            "end, or choose another seed of the order."
        )
    return left


def under_way(db: Database, settings: Settings, rater: Rater, order_seed: int) -> dict[str, int]:
    """The keys that open jobs are to judge, with their jobs: the same is not asked, and paid, twice."""
    found: dict[str, int] = {}
    for job in list_jobs(db, kind="judge", statuses=[one for one in JobStatus if one not in ENDED]):
        config = parse_config(job.kind, job.config)
        assert isinstance(config, JudgeConfig)
        if (rater_of(config), config.order_seed) == (rater, order_seed):
            rows = RunFolder(settings.folder.run(job.id)).rows()
            found |= {key_of(row, rater, order_seed): job.id for row in rows}
    return found


def _nothing_to_judge(config: JudgeConfig) -> str:
    if config.checklists:
        return (
            "There is nothing to judge: no sample of the selection has candidates and a checklist, without this "
            "judge's scores. Let a checklist job write some first, or switch off “With checklists”."
        )
    return (
        "There is nothing to judge: no sample of the selection has candidates without this judge's scores. "
        "Generate candidates first, or switch off “Only what is missing” to judge again."
    )


def pack_checklist(db: Database, settings: Settings, config: ChecklistConfig) -> Freight:
    check_call(settings, config)
    ids = select(db, config.samples)
    if config.samples.only_missing:
        there = latest_checklists(db, ids)
        ids = [sample_id for sample_id in ids if sample_id not in there]
    ids = _limited(ids, config.samples)
    if not ids:
        raise UserError(
            "There is nothing to write: every sample of the selection has a checklist. "
            "Widen the selection, or switch off “Only what is missing” to write new versions."
        )
    samples = get_samples(db, ids)
    images = images_shown(db, [sample.messages for sample in samples])
    return Freight([checklist_row(sample, images) for sample in samples], images)


def check_call(settings: Settings, config: JudgeConfig | ChecklistConfig | GradeConfig) -> None:
    """Raise UserError where the model has no price, or no key is set for its provider."""
    read_terms(settings.folder.judges).of(config.model)
    need_key(config.judge, settings)


def select(db: Database, selection: Selection) -> list[int]:
    """The ids that a selection names, in order, before its limit.

    Raises:
        UserError: an id is not there.
        NotFound: the data set is not there.
    """
    if selection.ids is not None:
        found = {sample.id for sample in get_samples(db, selection.ids)}
        missing = [sample_id for sample_id in selection.ids if sample_id not in found]
        if missing:
            raise UserError(f"samples.ids: there is no sample {missing[0]}; remove it from the list.")
        ids = sorted(found)
    else:
        ids = []
        while page := find_samples(db, SampleFilter(), after=ids[-1] if ids else 0, limit=1000):
            ids += [sample.id for sample in page if selection.source is None or sample.source == selection.source]
            if len(page) < 1000:
                break
    if selection.dataset:
        dataset_id = get_dataset(db, selection.dataset).id
        kinds: tuple[RowKind, ...] = ("pair", "sample")
        inside = {row.sample_id for kind in kinds for row in dataset_rows(db, dataset_id, selection.split, kind)}
        ids = [sample_id for sample_id in ids if sample_id in inside]
    return ids


def _limited(ids: Sequence[int], selection: Selection) -> list[int]:
    return list(ids[: selection.limit] if selection.limit else ids)
