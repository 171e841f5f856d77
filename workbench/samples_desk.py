"""What the Samples page shows for an address: the list or the queue, and one sample pinned.

A step to the next sample is the page's most frequent call, so nothing is asked for that is not shown anew: a list
that is drawn already and holds the sample stays as it is, and tells where the sample stands and what is next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlite_utils import Database

from jobs import desk
from jobs.judges.identity import rater_of
from jobs.judges.keys import need_key
from storage import finding, queues
from storage.adapters import list_adapters
from storage.candidates import candidates_of, count_candidates
from storage.checklists import checklists_of
from storage.discarding import discarded, discarded_among
from storage.errors import NotFound, UserError
from storage.finding import Count, SampleFilter
from storage.images import get_images
from storage.pairs import count_pairs, pairs_of_sample
from storage.records import Candidate, Checklist, Sample
from storage.remarks import flags_of, notes_of, skips_of
from storage.samples import get_sample, get_samples
from storage.saved_views import list_views
from storage.scores import get_judgements, list_raters
from storage.traces import stamp
from workbench import find_form, judge_marks, queue_views, views
from workbench import list_views as lists
from workbench.addresses import Address, read_address
from workbench.agreement_views import sample_agreement
from workbench.answer_views import Answers
from workbench.context import Context
from workbench.drawn_list import Drawn
from workbench.sample_views import Detail, Links, sample_detail

PAGE = 50


@dataclass(frozen=True)
class View:
    """What the page shows for one address; None: as it is drawn already.

    Attributes:
        rows: the list, or the queue's card.
        fresh: lines of the drawn list that may have changed.
    """

    empty: bool
    where: SampleFilter
    steps: str | None
    count: str | None
    rows: str | None
    fresh: str
    detail: str


def show(context: Context, user: str, search: str, drawn: Drawn | None = None) -> View:
    """The view that belongs to an address; a sample that is not there is said, not raised.

    Args:
        drawn: the list that is on the screen; None has all drawn anew.
    """
    address = read_address(search)
    with context.database() as db:
        if address.queue is not None:
            return _in_queue(db, context, user, address)
        if drawn and drawn.where == address.where and address.sample in drawn.ids:
            return _in_drawn(db, context, user, address, drawn)
        return _whole(db, context, user, address)


def _whole(db: Database, context: Context, user: str, address: Address) -> View:
    where = address.where
    everything = finding.total(db, SampleFilter())
    total = finding.total(db, where) if where.selects else everything
    pinned, problem = _pinned(db, address)
    page = _page(db, where, total, pinned.id if pinned else None)
    address = address.at(pinned.id if pinned else None)
    if pinned:
        ids = [one.id for one in page.samples]
        detail = _detail(db, context, user, address, pinned, _links(db, address, ids, page.start, total))
    else:
        detail = views.empty("Nothing to show", problem)
    pairs = sum(count_pairs(db).values())
    count = (
        lists.chips(address)
        + lists.told_count(total, everything, pairs, where)
        + lists.problem_links(finding.count_problems(db, where), address)
        + lists.bulk_bar(total, where)
    )
    rows = lists.sample_list(page, address, address.sample)
    empty = False
    if not everything.number:  # discarded samples are not counted, yet a folder that has some is not new
        empty = not finding.total(db, SampleFilter(state="discarded")).number
        detail = "" if empty else detail
    return View(empty, where, _steps(db, pairs) if not empty else "", count, rows, "", detail)


def _steps(db: Database, pairs: int) -> str:
    judged = any(rater.kind == "judge" for rater in list_raters(db))
    return views.next_step(count_candidates(db), judged, pairs)


def _pinned(db: Database, address: Address) -> tuple[Sample | None, str]:
    if address.sample is not None:
        try:
            return get_sample(db, address.sample), ""
        except NotFound as error:
            return None, str(error)
    first = finding.find_samples(db, address.where, limit=1)
    if first:
        return first[0], ""
    if not address.where.selects:
        gone = views.go(Address(SampleFilter(state="discarded")).href(), "Look at those that are discarded")
        return None, f"Every sample is discarded. {gone}."
    clear = views.go("?", "Clear the filters")
    return None, f"No sample fits these filters. Change them, or: {clear}."


def _page(db: Database, where: SampleFilter, total: Count, current: int | None) -> lists.ListPage:
    after = finding.page_start(db, where, current, PAGE) if current is not None else 0
    found = finding.find_samples(db, where, after, PAGE)
    ids = [sample.id for sample in found]
    return lists.ListPage(
        found,
        marks_of(db, ids),
        finding.position_of(db, where, ids[0]) if ids else Count(0),
        total,
        finding.neighbour(db, where, ids[0], forward=False) if ids else None,
        finding.neighbour(db, where, ids[-1], forward=True) if ids else None,
    )


def marks_of(db: Database, ids: Sequence[int]) -> dict[int, lists.Mark]:
    """What the list says of these samples."""
    candidates, judgements = candidates_of(db, ids), get_judgements(db, ids)
    flags, skips, gone = flags_of(db, ids), skips_of(db, ids), discarded_among(db, ids)
    return {
        sample_id: lists.Mark(
            candidates=len(candidates[sample_id]),
            judged=any(given.rater.kind == "judge" and given.state == "ok" for given in judgements[sample_id]),
            scored=any(given.rater.kind == "person" for given in judgements[sample_id]),
            flagged=bool(flags[sample_id]),
            skipped=bool(skips[sample_id]),
            discarded=sample_id in gone,
            problems=judge_marks.problems(judgements[sample_id]),
        )
        for sample_id in ids
    }


def _in_drawn(db: Database, context: Context, user: str, address: Address, drawn: Drawn) -> View:
    """A step within the list that is on the screen."""
    pinned, problem = _pinned(db, address)
    if pinned is None:
        return View(False, address.where, None, None, None, "", views.empty("Nothing to show", problem))
    links = _links(db, address, drawn.ids, drawn.start, drawn.total)
    # The line of the sample that one comes from is drawn anew: it may be scored by now.
    ids = [one for one in (drawn.pinned, pinned.id) if one in drawn.ids and one is not None]
    marks = marks_of(db, ids)
    fresh = "".join(
        lists.sample_item(one, marks[one.id], address, one.id == pinned.id) for one in get_samples(db, ids)
    )
    detail = _detail(db, context, user, address, pinned, links)
    return View(False, address.where, None, None, None, lists.fresh_items(fresh), detail)


def _links(db: Database, address: Address, ids: Sequence[int], start: Count, total: Count) -> Links:
    """Previous, next, and the place in the filter; the page's own samples need no asking."""
    where, sample = address.where, address.sample
    assert sample is not None
    place = ids.index(sample) if sample in ids else None
    before = ids[place - 1] if place else finding.neighbour(db, where, sample, forward=False)
    if place is not None and place + 1 < len(ids):
        after: int | None = ids[place + 1]
    else:
        after = finding.neighbour(db, where, sample, forward=True)
    told = "not in this filter"
    if place is not None:
        number = Count(start.number + place + 1, start.kind)
        told = f"{number.told} of {total.told}"
    return Links(
        address.at(before).href() if before is not None else None,
        address.at(after).href() if after is not None else None,
        told,
    )


# --- queues ---


def _in_queue(db: Database, context: Context, user: str, address: Address) -> View:
    """The queue's next sample, or the one that the address names, held for this person."""
    queue = address.queue
    assert queue is not None
    pinned: Sample | None = None
    mine = True
    if address.sample is not None:
        try:
            pinned = get_sample(db, address.sample)
            mine = queues.renew(db, user, pinned.id)
        except NotFound:
            address = address.at(None)
    if pinned is None:
        pinned = queues.next_in_queue(db, user, queue, after=address.trail[-1] if address.trail else None)
        address = address.at(pinned.id if pinned else None)
    progress = queues.progress(db, user, queue)
    held_by = queues.holders(db, pinned.id) if pinned else []
    card = queue_views.queue_card(address, progress, held_by, mine, user)
    if pinned is None:
        detail = queue_views.nothing_left(queue, progress)
    else:
        back = address.back()
        links = Links(back.href() if back else None, address.onward().href(), queue_views.place(progress))
        detail = _detail(db, context, user, address, pinned, links)
    return View(False, address.where, "", lists.chips(address), card, "", detail)


# --- detail ---


def _detail(db: Database, context: Context, user: str, address: Address, sample: Sample, links: Links) -> str:
    candidates = candidates_of(db, [sample.id])[sample.id]
    judgements = get_judgements(db, [sample.id])[sample.id]
    checklists = checklists_of(db, sample.id)
    answers = Answers(
        sample_id=sample.id,
        candidates=candidates,
        judgements=judgements,
        pairs=pairs_of_sample(db, sample.id),
        adapters={adapter.id: adapter.name for adapter in list_adapters(db)},
        user=user,
        checklists=checklists,
        desk=desk_of(context, candidates, checklists),
        agreement=sample_agreement(judgements),
    )
    return sample_detail(
        Detail(
            sample=sample,
            images=get_images(db, sample.images),
            answers=answers,
            links=links,
            stamp=stamp(db, sample.id),
            notes=notes_of(db, sample.id),
            flags=flags_of(db, [sample.id])[sample.id],
            skips=skips_of(db, [sample.id])[sample.id],
            discarded=discarded(db, sample.id),
        )
    )


def desk_of(
    context: Context, candidates: Sequence[Candidate], checklists: Sequence[Checklist]
) -> judge_marks.Desk:
    """The judge that the key J asks, and why it cannot be asked about this sample, if it cannot."""
    try:
        config = desk.read_desk(context.folder)
    except UserError as error:
        return judge_marks.Desk(obstacle=str(error))
    rater = rater_of(config)
    if not candidates:
        there = ("/jobs?kind=generate", "Generate candidates")
        return judge_marks.Desk(rater, "There are no answers to judge yet.", there)
    try:
        need_key(config.judge, context.settings)
    except UserError as error:
        return judge_marks.Desk(rater, str(error))
    newest = next((one for one in reversed(checklists) if one.state == "ok"), None)
    if config.checklists and (newest is None or not newest.items):
        there = ("/judges", "Choose a judge without")
        return judge_marks.Desk(rater, f"{rater[0]} judges with checklists, and this sample has none.", there)
    return judge_marks.Desk(rater)


# --- the fold-outs ---


def show_finder(context: Context, user: str) -> str:
    """The form at the left, with the values that filters can take just now."""
    with context.database() as db:
        facets: Mapping[str, Sequence[str]] = finding.facets(db)
        raters = sorted({rater.name for rater in list_raters(db)})
        return find_form.finder(facets, raters, list_views(db, user), user)
