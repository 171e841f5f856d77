"""The Contests page: prompts that several speakers have answered, voted through blind, one by one.

`/contests?contest=3`, `/contests?contest=3&number=17`, `/contests?contest=3&view=standings`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from storage.errors import DatabaseBusy, PlumbError
from workbench import chat_view, contest_desk, contest_form, contest_views
from workbench.contest_desk import Place, Scene
from workbench.contest_panels import ARRIVED_JS, CHOOSE_JS, Booth, NewContest, StandingsPanel, shown
from workbench.context import Context
from workbench.events import CONCURRENCY, read_id, told

TICK_SECONDS = 3.0
MOMENT = 1400  # milliseconds from a vote, with the names it tells, to the next prompt

QUIET: dict[str, Any] = {
    "concurrency_limit": CONCURRENCY,
    "show_progress": "hidden",
    "api_visibility": "private",
}

Updates = dict[Any, Any]


def build(context: Context) -> gr.Blocks:
    with gr.Blocks(title="Contests · Plumb", analytics_enabled=False) as page:
        with gr.Row(elem_classes="plumb-split pc-split"):
            with gr.Column(scale=1, min_width=230, elem_classes="plumb-side"):
                new = gr.Button("New contest", variant="primary", size="md", elem_id="contest-new")
                listing = gr.HTML(js_on_load=CHOOSE_JS, apply_default_css=False, elem_id="contest-list")
                strip = gr.HTML(js_on_load=CHOOSE_JS, apply_default_css=False, elem_id="contest-strip")
                standings = gr.Button(
                    "Show the standings", size="sm", visible=False, elem_id="contest-show-standings"
                )
                delete = gr.Button("Delete this contest", size="sm", visible=False, elem_id="contest-delete")
            with gr.Column(scale=5, min_width=480, elem_classes="pc-main"):
                problem = gr.HTML(apply_default_css=False, elem_id="contest-problem")
                head = gr.HTML(apply_default_css=False, elem_id="contest-head")
                result = StandingsPanel()
                booth = Booth()
                form = NewContest()
        _wire(context, page, _Parts(new, listing, strip, standings, delete, problem, head, result, booth, form))
    return page


class _Parts:
    """The page's components, and what a scene makes of them."""

    def __init__(
        self,
        new: Any,
        listing: Any,
        strip: Any,
        standings: Any,
        delete: Any,
        problem: Any,
        head: Any,
        result: StandingsPanel,
        booth: Booth,
        form: NewContest,
    ) -> None:
        self.new, self.listing, self.strip = new, listing, strip
        self.standings, self.delete = standings, delete
        self.problem, self.head = problem, head
        self.result, self.booth, self.form = result, booth, form
        self.place = gr.State(Place())
        self.conversation = gr.State(None)
        self.voted = gr.State(None)  # the place of the last vote: an undo goes back to it
        self.timer = gr.Timer(TICK_SECONDS, active=False)

    @property
    def outputs(self) -> list[Any]:
        states = [self.place, self.conversation, self.voted, self.timer]
        own = [self.listing, self.strip, self.standings, self.delete, self.problem, self.head]
        return [*states, *own, self.form.column, *self.result.outputs, *self.booth.outputs]

    def lines(self, scene: Scene) -> Updates:
        """What tells how far the contest is; it changes under a prompt that stays."""
        return {
            self.listing: scene.listing,
            self.strip: scene.strip,
            self.head: scene.head,
            self.delete: gr.update(visible=scene.deletable),
            self.timer: gr.Timer(active=scene.alive),
        }

    def show(self, scene: Scene) -> Updates:
        return {
            **self.lines(scene),
            **shown(scene, self.booth),
            self.place: scene.place,
            self.conversation: scene.conversation,
            self.problem: chat_view.problem(scene.problem),
            self.standings: gr.update(visible=scene.view in ("vote", "waiting")),
            self.form.column: gr.update(visible=scene.view == "new"),
            self.result.asking: gr.update(visible=False),
            self.result.column: gr.update(visible=scene.view == "standings"),
            self.result.shown: scene.standings,
            self.result.on: gr.update(visible=scene.open),
            self.booth.after: "",
        }


def _wire(context: Context, page: gr.Blocks, parts: _Parts) -> None:
    booth, result = parts.booth, parts.result

    def turn_to(user: str, place: Place, problem: str = "") -> Updates:
        return parts.show(contest_desk.look(context, user, place, problem))

    def choosing(event: gr.EventData, request: gr.Request) -> Updates:
        data = event._data or {}
        contest, number = (read_id(str(data.get(name))) for name in ("contest", "number"))
        return turn_to(context.user(request), Place(contest, number))

    def going_on(place: Place, request: gr.Request) -> Updates:
        return parts.show(contest_desk.following(context, context.user(request), place))

    def going_back(place: Place, request: gr.Request) -> Updates:
        user = context.user(request)
        before = contest_desk.look(context, user, place).before
        return turn_to(user, replace(place, number=before if before is not None else place.number))

    def voting(place: Place, said: str, moving: bool, request: gr.Request) -> Updates:
        """After a vote: how far one has come, and on to the next prompt in a moment, if that is wanted."""
        scene = contest_desk.look(context, context.user(request), place)
        refused = "plumb-error" in (said or "")
        go_on = moving and not refused and scene.place == place
        return parts.lines(scene) | {
            parts.voted: place,
            booth.after: contest_views.after(MOMENT) if go_on else "",
        }

    def undoing(place: Place, voted: Place | None, request: gr.Request) -> Updates:
        user = context.user(request)
        try:
            undone = contest_desk.take_back(context, user)
        except PlumbError as error:
            return {parts.problem: chat_view.problem(str(error)), booth.after: ""}
        back = voted if voted is not None and voted.contest == place.contest else place
        return turn_to(user, back) | {parts.problem: chat_view.note(undone), parts.voted: None}

    def asking_standings(place: Place, request: gr.Request) -> Updates:
        question = contest_desk.before_standings(context, context.user(request), place)
        if not question:
            return showing_standings(place, request)
        return {result.asking: gr.update(visible=True), result.question: question, booth.after: ""}

    def showing_standings(place: Place, request: gr.Request) -> Updates:
        return turn_to(context.user(request), replace(place, number=None, standings=True))

    def resuming(place: Place, request: gr.Request) -> Updates:
        return parts.show(contest_desk.resumed(context, context.user(request), place))

    def deleting(place: Place, request: gr.Request) -> Updates:
        user = context.user(request)
        try:
            outcome = chat_view.note(contest_desk.delete(context, user, place))
        except PlumbError as error:
            return {parts.problem: chat_view.problem(str(error))}
        return turn_to(user, Place()) | {parts.problem: outcome}

    def ticking(place: Place, request: gr.Request) -> Updates:
        try:
            scene = contest_desk.look(context, context.user(request), place)
        except DatabaseBusy:
            return {parts.place: place}  # the next look is three seconds away
        arrived = place.contest is not None and place.number is None and scene.view == "vote"
        return parts.lines(scene) | {booth.after: contest_views.after(0) if arrived else gr.skip()}

    outputs = parts.outputs
    look = booth.votes.wire(context, parts.conversation, lambda user, number: {}, [], QUIET)
    at = [parts.place]

    def shows(event: Callable[..., Any], handler: Callable[..., Any], inputs: list[Any]) -> None:
        """The prompt, then its ballot; by then the keys may vote again."""
        made = event(told(handler), inputs, outputs, **QUIET)
        made = made.then(look, [parts.conversation], booth.votes.outputs, **QUIET)
        made.then(None, js=ARRIVED_JS, api_visibility="private")

    for listed in (parts.listing, parts.strip):
        shows(listed.click, choosing, [])
    shows(booth.next.click, going_on, at)
    shows(booth.back.click, going_back, at)
    shows(booth.undo.click, undoing, [*at, parts.voted])
    for button in (result.keep, result.on):
        shows(button.click, resuming, at)
    parts.standings.click(told(asking_standings), at, outputs, **QUIET)
    result.sure.click(told(showing_standings), at, outputs, **QUIET)
    parts.delete.click(told(deleting), at, outputs, **QUIET)
    parts.timer.tick(ticking, at, outputs, **QUIET)
    for vote in booth.votes.events:
        vote.then(told(voting), [*at, booth.votes.told, booth.moving], outputs, **QUIET)
    _wire_form(context, page, parts, shows, turn_to)


def _wire_form(
    context: Context,
    page: gr.Blocks,
    parts: _Parts,
    shows: Callable[..., None],
    turn_to: Callable[..., Updates],
) -> None:
    form = parts.form

    def offered(model: str) -> Updates:
        found = contest_form.offers(context, model)
        updates: Updates = {form.model: gr.update(choices=found["model"], value=model)}
        newest = found["speakers"][1][1] if len(found["speakers"]) > 1 else None
        for place, speaker in enumerate(form.speakers):
            choices = found["speakers"] if place < 2 else [("nobody", ""), *found["speakers"]]
            updates[speaker] = gr.update(choices=choices, value=("base", newest, "")[place])
        for path in contest_form.DROPDOWNS:
            built = form.samples if path.startswith("samples.") else form.form
            updates |= built.offer(path, found[path], "")
        return updates

    def opening(request: gr.Request) -> Updates:
        place = contest_desk.read_place(dict(request.query_params))
        return turn_to(context.user(request), place) | offered("demo")

    def fresh(model: str, request: gr.Request) -> Updates:
        return turn_to(context.user(request), Place()) | offered((model or "").strip() or "demo")

    def sourcing(source: str) -> Updates:
        chosen = source == contest_form.SAMPLES
        return {
            form.file: gr.update(visible=not chosen),
            form.about: "" if chosen else contest_form.ABOUT_FILES,
            form.selection: gr.update(visible=chosen),
            form.plan: "",
        }

    def checking(*raw: Any) -> str:
        return contest_form.told(context, raw)

    # The request stands first: Gradio does not fill it in behind *raw.
    def starting(request: gr.Request, *raw: Any) -> Updates:
        user = context.user(request)
        try:
            made = contest_form.start(context, user, contest_form.Wanted.read(raw))
        except PlumbError as error:
            return {form.plan: chat_view.problem(str(error))}
        return turn_to(user, Place(made)) | {form.plan: ""}

    dropdowns = [
        form.model,
        *form.speakers,
        *(
            (form.samples if path.startswith("samples.") else form.form).component(path)
            for path in contest_form.DROPDOWNS
        ),
    ]
    everything = [*parts.outputs, *dropdowns]

    def loads(event: Callable[..., Any]) -> Callable[..., Any]:
        """As `event`, for handlers that fill the form, too."""
        return lambda handler, inputs, _outputs, **more: event(handler, inputs, everything, **more)

    shows(loads(page.load), opening, [])
    shows(loads(parts.new.click), fresh, [form.model])
    form.model.input(told(offered), [form.model], dropdowns, **QUIET)
    sourced = [form.file, form.about, form.selection, form.plan]
    form.source.input(told(sourcing), [form.source], sourced, **QUIET)
    busy = {**QUIET, "show_progress": "minimal"}
    gr.on(
        [form.check.click, form.file.upload, form.file.clear],
        told(checking),
        form.fields,
        [form.plan],
        trigger_mode="always_last",
        **busy,
    )

    def begins(handler: Callable[..., Any], inputs: list[Any], outputs: list[Any], **more: Any) -> Any:
        return form.start.click(handler, inputs, [*outputs, form.plan], **{**more, "show_progress": "minimal"})

    shows(begins, starting, form.fields)
