"""The events of the opened job and of the queue: what a press does, what is asked before, logs and searches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from storage.errors import PlumbError
from workbench import job_acts, job_history, job_views
from workbench.context import Context
from workbench.events import told
from workbench.job_logs import Place
from workbench.job_look import search_log
from workbench.job_panels import Opened, Queue, Undo, hold_words
from workbench.training_wiring import QUIET

# The opened job leaves the address, the inputs pass through.
FORGET = "(...inputs) => { history.replaceState(null, '', location.pathname); return inputs; }"
# What is asked has the keyboard: Enter on the safe answer, Tab to the other.
_FOCUS = "() => { const b = document.querySelector('#confirm-cancel'); if (b) b.focus(); }"

# What a person types or chooses that may be refused, by the names of `job_look.Look`.
_TYPED = frozenset({"waiting", "priority", "follows", "retries"})

Updates = dict[Any, Any]
Known = Mapping[str, int]


@dataclass(frozen=True)
class Shown:
    """What the page hands over to have a job shown.

    Attributes:
        at: states that `show` takes: opened job, what the browser knows, how many are listed, checkpoint, attempt.
        outputs: all that `show` and `turn_to` change.
        show: updates for a look at the job.
        turn_to: opens another job, or none.
    """

    at: Sequence[Any]
    outputs: Sequence[Any]
    show: Callable[[int | None, Known, int, int | None, int | None], Updates]
    turn_to: Callable[[int | None, Known, int], Updates]


def wire_opened(context: Context, page: Shown, opened: Opened, queue: Queue, undo: Undo) -> None:
    chosen = page.at[0]
    asked = gr.State("")  # what a person is being asked about: "stop", "stop_sweep", "delete"
    gone = gr.State(None)  # the job whose run was deleted last
    outputs = [*page.outputs, asked, gone]

    def tell(problem: str) -> Updates:
        return {opened.problem: job_views.error(problem)}

    def unasked() -> Updates:
        return {**opened.ask("", ""), asked: ""}

    def doing(act: Callable[..., str]) -> Callable[..., Updates]:
        """Do it to the opened job, tell what stands in the way, look again."""

        def do(
            job_id: int | None, known: Known, most: int, place: int | None, part: int | None, *more: Any
        ) -> Updates:
            problem = act(context, job_id, *more)
            if problem:  # a field that was refused shows again what holds
                known = {name: digest for name, digest in known.items() if name not in _TYPED}
            return page.show(job_id, known, most, place, part) | tell(problem) | unasked()

        return do

    def asking(act: str) -> Callable[[int | None], Updates]:
        def ask(job_id: int | None) -> Updates:
            if job_id is None:
                return tell(job_acts.NO_JOB)
            return tell("") | opened.ask(job_acts.before(context, job_id, act), act) | {asked: act}

        return ask

    def stopping(
        what: str, job_id: int | None, known: Known, most: int, place: int | None, part: int | None
    ) -> Updates:
        act = job_acts.halt_sweep if what == "stop_sweep" else job_acts.halt
        return doing(act)(job_id, known, most, place, part)

    def deleting(request: gr.Request, job_id: int | None, known: dict[str, int], most: int) -> Updates:
        problem = job_acts.delete(context, job_id, context.user(request))
        if problem:
            return page.show(job_id, known, most, None, None) | tell(problem) | unasked()
        return page.turn_to(None, known, most) | unasked() | undo.show(job_id) | {gone: job_id}

    def undoing(job_id: int | None, known: dict[str, int], most: int) -> Updates:
        problem = job_acts.restore(context, job_id)
        return page.turn_to(job_id, known, most) | tell(problem) | undo.show(None) | {gone: None}

    def again(request: gr.Request, job_id: int | None, known: dict[str, int], most: int) -> Updates:
        try:
            job = job_acts.run_again(context, job_id, context.user(request))
        except PlumbError as error:
            return tell(str(error))
        return page.turn_to(job.id, known, most)

    def holding(
        request: gr.Request,
        job_id: int | None,
        known: dict[str, int],
        most: int,
        place: int | None,
        part: int | None,
        pressed: str,
    ) -> Updates:
        job_acts.hold(context, context.user(request), pressed == hold_words(False))
        return page.show(job_id, known, most, place, part)

    def choosing_attempt(
        job_id: int | None, known: dict[str, int], most: int, place: int | None, event: gr.EventData
    ) -> Updates:
        part = int((event._data or {}).get("attempt", 0)) or None
        return page.show(job_id, known, most, place, part) | {page.at[4]: part}

    at, shown = list(page.at), list(outputs)
    asks = {opened.stop: "stop", opened.stop_sweep: "stop_sweep", opened.delete: "delete"}
    for button, act in asks.items():
        asks_first = button.click(told(asking(act)), [chosen], [*opened.asked, asked], **QUIET)
        asks_first.then(None, js=_FOCUS, api_visibility="private")
    opened.cancel.click(told(unasked), None, [*opened.asked, asked], **QUIET)
    opened.confirm_stop.click(told(stopping), [asked, *at], shown, **QUIET)
    opened.confirm_delete.click(told(deleting), at[:3], shown, **QUIET, js=FORGET)
    undo.button.click(told(undoing), [gone, *at[1:3]], shown, **QUIET)
    acts = {
        opened.pause: job_acts.pause,
        opened.go_on: job_acts.go_on,
        opened.resume: job_acts.resume,
        opened.restore: job_acts.restore,
    }
    for button, do in acts.items():
        button.click(told(doing(do)), at, shown, **QUIET)
    for to, button in opened.moves.items():
        button.click(told(doing(partial(job_acts.move, to=to))), at, shown, **QUIET)
    opened.priority.input(told(doing(job_acts.prioritise)), [*at, opened.priority], shown, **QUIET)
    opened.after.input(told(doing(job_acts.follow)), [*at, opened.after], shown, **QUIET)
    retrying = told(doing(job_acts.set_retries))
    gr.on([opened.retries.submit, opened.retries.blur], retrying, [*at, opened.retries], shown, **QUIET)
    opened.run_again.click(told(again), at[:3], shown, **QUIET)
    queue.hold.click(told(holding), [*at, queue.hold], shown, **QUIET)
    for part in (opened.attempts, opened.log):
        part.click(told(choosing_attempt), at[:4], shown, **QUIET)
    _wire_search(context, chosen, opened)


def _wire_search(context: Context, chosen: Any, opened: Opened) -> None:
    rest = gr.State(None)  # (text, byte, lines, matches so far) where a search stopped at its bounds

    def searching(job_id: int | None, wanted: str) -> Updates:
        return found(job_id, wanted.strip(), None, 0)

    def searching_on(job_id: int | None, place: tuple[str, int, int, int] | None) -> Updates:
        if place is None:
            return {rest: None}
        wanted, offset, lines, shown = place
        return found(job_id, wanted, Place(offset, lines), shown)

    def found(job_id: int | None, wanted: str, start: Place | None, shown: int) -> Updates:
        if job_id is None or not wanted:
            return {**opened.forget_search(), rest: None}
        result = search_log(context, job_id, wanted, start)
        more = result.rest
        number = shown + len(result.matches)
        return {
            opened.found: job_history.found_view(result, wanted, shown),
            opened.search_on: gr.update(visible=more is not None),
            rest: (wanted, more.offset, more.lines, number) if more else None,
        }

    outputs = [*opened.searched, rest]
    busy = {**QUIET, "show_progress": "minimal"}
    gr.on([opened.search.click, opened.wanted.submit], told(searching), [chosen, opened.wanted], outputs, **busy)
    opened.search_on.click(told(searching_on), [chosen, rest], outputs, **busy)
