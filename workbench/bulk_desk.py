"""Acts on everything that a filter selects: asked about with a count, done as one act, undone as one.

Plain functions; `workbench/find_api.py` serves them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sqlite_utils import Database

from jobs import desk
from jobs.configs import JudgeConfig
from jobs.judges.identity import rater_of
from jobs.judges.keys import need_key
from jobs.pairing import PairRule, ScoredSample, preview
from jobs.queue import submit
from storage import bulk
from storage.candidates import candidates_of
from storage.discarding import discarded_among
from storage.errors import Conflict, UserError
from storage.finding import sample_ids
from storage.pairs import add_rule_pairs, new_among
from storage.scores import get_judgements
from workbench.addresses import read_address
from workbench.context import Context
from workbench.list_views import ACTS

MOST_JUDGED = 100_000  # a job's settings name every sample


@dataclass(frozen=True)
class Asked:
    """What is asked before it is done. `act`: the button's word for it."""

    count: int
    question: str
    act: str
    note: str = ""


@dataclass(frozen=True)
class Done:
    """What came of it; `undo`: the page's undo takes it back; `href`: where to see it."""

    text: str
    undo: bool
    href: str = ""
    link: str = ""


def ask(context: Context, user: str, act: str, search: str) -> Asked:
    """Count first: how many samples the act would be about.

    Raises:
        UserError: there is no such act, nothing is selected, or it cannot be done with so many.
    """
    _known(act)
    with context.database() as db:
        ids = _selected(db, search)
        what = _samples(len(ids))
        if act == "judge":
            config = _judge(context, len(ids))
            paid = "" if config.judge == "easy-vqa-rules" else f" for at most ${config.budget:,.2f}"
            note = "Samples without answers and those that it has judged are passed over. A job is started."
            return Asked(len(ids), f"Ask {rater_of(config)[0]} about {what}{paid}?", "Judge", note)
        if act == "pair":
            new = _pairs(db, user, ids, store=False)
            many = "1 new pair" if new == 1 else f"{new:,} new pairs"
            note = f"By the paper's rule, with a margin of {PairRule().margin}; they are proposed, for review."
            return Asked(len(ids), f"Add {many} from {what}?", "Add pairs", note)
    words = {
        "flag": (f"Flag {what}?", "Flag", ""),
        "unflag": (f"Take down your flags of {what}?", "Take down", "Others keep theirs."),
        "discard": (f"Discard {what}?", "Discard", "They leave lists, queues, pairs by rule and new data sets."),
        "keep": (f"Take back {what}?", "Take back", ""),
    }
    return Asked(len(ids), *words[act])


def do(context: Context, user: str, act: str, search: str, count: int) -> Done:
    """Do it, to as many samples as was asked about.

    Raises:
        UserError: as `ask`.
        Conflict: the filter selects another number by now; nothing is done.
    """
    _known(act)
    with context.database() as db:
        ids = _selected(db, search)
        if len(ids) != count:
            raise Conflict(
                f"The filter selects {_samples(len(ids))} by now, not {count:,}; nothing was done. Ask again."
            )
        if act == "judge":
            config = _judge(context, len(ids))
            values = config.model_dump(mode="json")
            values["samples"] = {"ids": ids}
            job = submit(db, context.settings, "judge", values, user)
            return Done(f"Job {job.id} judges {_samples(len(ids))}.", False, f"/jobs?job={job.id}", "See it")
        if act == "pair":
            added = _pairs(db, user, ids, store=True)
            text = "1 pair added as proposed." if added == 1 else f"{added:,} pairs added as proposed."
            return Done(text, added > 0, "/pairs?status=proposed", "Review them")
        changes: dict[str, Callable[[], int]] = {
            "flag": lambda: bulk.bulk_flag(db, user, ids),
            "unflag": lambda: bulk.bulk_flag(db, user, ids, on=False),
            "discard": lambda: bulk.bulk_discard(db, user, ids),
            "keep": lambda: bulk.bulk_discard(db, user, ids, on=False),
        }
        changed = changes[act]()
    said = {
        "flag": ("flagged", "was flagged by you", "were flagged by you"),
        "unflag": ("no longer flagged by you", "had no flag of yours", "had no flag of yours"),
        "discard": ("discarded", "was discarded", "were discarded"),
        "keep": ("taken back", "was not discarded", "were not discarded"),
    }[act]
    text = f"{_samples(changed)} {said[0]}."
    if rest := len(ids) - changed:
        text += f" {rest:,} {said[1] if rest == 1 else said[2]} already." if act in ("flag", "discard") else ""
    return Done(text, changed > 0)


def _known(act: str) -> None:
    if act not in ACTS:
        raise UserError(f"act = {act!r:.40}: choose one of {', '.join(ACTS)}.")


def _selected(db: Database, search: str) -> list[int]:
    ids = sample_ids(db, read_address(search).where)
    if not ids:
        raise UserError("No sample fits these filters; change or clear them.")
    return ids


def _samples(number: int) -> str:
    return "1 sample" if number == 1 else f"{number:,} samples"


def _pairs(db: Database, user: str, ids: Sequence[int], *, store: bool) -> int:
    """How many new pairs the rule makes of these samples; stored as one act with `store`."""
    found = preview(_scored(db, ids), PairRule())
    if not store:
        return len(new_among(db, found.pairs))
    return add_rule_pairs(db, user, PairRule().stored(), found.pairs)


def _scored(db: Database, ids: Sequence[int]) -> Iterator[ScoredSample]:
    for start in range(0, len(ids), 500):
        part = ids[start : start + 500]
        gone = discarded_among(db, part)
        candidates, judgements = candidates_of(db, part), get_judgements(db, part)
        for sample_id in part:
            if sample_id not in gone:
                yield ScoredSample(sample_id, candidates[sample_id], judgements[sample_id])


def _judge(context: Context, number: int) -> JudgeConfig:
    """The judge of the key J, which is chosen on the Judges page.

    Raises:
        UserError: it cannot be asked, or not about so many.
    """
    if number > MOST_JUDGED:
        raise UserError(
            f"{number:,} samples are more than one such job takes ({MOST_JUDGED:,}). Narrow the filter, or start "
            "a judge job for all samples on the Jobs page."
        )
    config = desk.read_desk(context.folder)
    need_key(config.judge, context.settings)
    return config
