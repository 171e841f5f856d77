"""HTML of the queue that somebody works through: what it is, how far it is, who else is at the sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape

from storage.finding import Count, SampleFilter
from storage.queues import QUEUES, Progress, Queue
from workbench.addresses import Address
from workbench.views import empty, go


def title_of(queue: Queue) -> str:
    """The queue's kind with its number, as “fewer than 2 people”."""
    words = QUEUES.get(queue.kind, queue.kind)
    if queue.kind == "fewer":
        return f"Scored by fewer than {queue.people} {'person' if queue.people == 1 else 'people'}"
    if queue.kind == "disagree":
        return f"Judge and people differ by {queue.gap:g} or more"
    if queue.kind == "overlap":
        return f"Overlap, {queue.percent:g} % of the samples"
    return words


def queue_card(address: Address, progress: Progress, held_by: Sequence[str], mine: bool, user: str) -> str:
    """What stands in the list's place while one works through a queue.

    Args:
        held_by: who holds the sample.
        mine: whether the person holds it: it may be with somebody else, where one went back to it.
    """
    assert address.queue is not None
    parts = [
        f'<div class="pf-queue-head"><b>{escape(title_of(address.queue))}</b>'
        f"{go(left(address), 'Leave', 'pb-button small', 'Leave the queue')}</div>",
        _bar(progress.done, progress.left),
        f'<p class="pf-mine">By you <b>{progress.mine.told}</b>{_skipped(progress, address)}</p>',
        _holders([name for name in held_by if name != user], mine, address),
    ]
    if address.where.selects:
        parts.append('<p class="pb-sub">Only samples of the filters above.</p>')
    return (
        f'<section class="pf-queue" aria-label="Queue" data-queue="{escape(address.queue.kind)}" '
        f'data-held="{"1" if mine else ""}">{"".join(parts)}</section>'
    )


def left(address: Address) -> str:
    """Where one comes out of the queue: the same filters, the same sample."""
    return Address(address.where, address.sample).href()


def _bar(done: Count, still: Count) -> str:
    whole = done.number + still.number
    share = f" ({100 * done.number / whole:.0f} %)" if whole else ""
    return (
        f'<div class="pf-progress"><progress max="{max(whole, 1)}" value="{done.number}" '
        f'aria-label="{done.told} done, {still.told} left"></progress>'
        f"<span>{done.told} done{share}, {still.told} left</span></div>"
    )


def _skipped(progress: Progress, address: Address) -> str:
    if not progress.skipped.number:
        return ""
    where = replace(address.where, state="skipped")
    return f" · {go(Address(where).href(), f'{progress.skipped.told} skipped')}"


def _holders(others: Sequence[str], mine: bool, address: Address) -> str:
    if not others:
        return ""
    names = ", ".join(escape(name) for name in others)
    verb = "has" if len(others) == 1 else "have"
    if mine:
        return f'<p class="pf-holders">{names} {verb} this sample open, too.</p>'
    return (
        f'<p class="pf-holders warn">{names} {verb} this sample just now, and it is not held for you. '
        f"{go(address.onward().href(), 'Go on to the next')}</p>"
    )


def nothing_left(queue: Queue, progress: Progress) -> str:
    """What stands in the sample's place when the queue has none for this person."""
    here = Address(queue.where, None, queue)
    hints = []
    if queue.where.selects:
        freed = replace(queue, where=SampleFilter())
        hints.append(f"{go(Address(SampleFilter(), None, freed).href(), 'take it without the filters')}")
    if progress.skipped.number:
        skipped = Address(replace(queue.where, state="skipped")).href()
        hints.append(go(skipped, f"look at the {progress.skipped.told} that you skipped"))
    if queue.kind == "disagree" and queue.gap > 0.25:
        lower = replace(queue, gap=queue.gap / 2)
        hints.append(go(Address(queue.where, None, lower).href(), f"ask for differences of {lower.gap:g}"))
    if queue.kind == "unscored":
        hints.append(go(Address(queue.where, None, replace(queue, kind="fewer")).href(), "give a second opinion"))
    if queue.kind == "overlap" and queue.percent < 100:
        more = replace(queue, percent=min(100, queue.percent * 2))
        hints.append(go(Address(queue.where, None, more).href(), f"take {more.percent:g} % of the samples"))
    hints.append(go(left(here), "leave the queue"))
    words = {
        "unscored": "Every sample with answers has been scored, or is with somebody else just now.",
        "flagged": "No sample is flagged but those that you skipped or others hold.",
    }
    if queue.where.selects and not progress.done.number and not progress.left.number:
        words[queue.kind] = "No sample of the filters that are set belongs in this queue."
    text = words.get(
        queue.kind, "Every sample of this queue is done, skipped by you, or with somebody else just now."
    )
    return empty("Nothing is left in this queue", f"{text} You can {_listed(hints)}.")


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, or {parts[-1]}"


def place(progress: Progress) -> str:
    """What stands between Previous and Next."""
    return f"{progress.left.told} left"
