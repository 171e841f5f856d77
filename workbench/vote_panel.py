"""The ballot under the chat's answers: its components and its wiring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from storage.records import HIGHEST, LOWEST, METRICS
from storage.speakers import MOST, sides
from workbench.context import Context
from workbench.events import told
from workbench.vote_desk import HIDDEN, Ballot, ballot, pair_up, score, standings, vote

BUTTONS = {
    "left": "Left is better",
    "middle": "Middle is better",
    "tie": "Tie",
    "both bad": "Both bad",
    "right": "Right is better",
}
_AMONG_THREE = {best: title.replace("better", "best").replace("Both", "All") for best, title in BUTTONS.items()}
NOT_SCORED = "–"
VALUES = [NOT_SCORED, *(str(value) for value in range(LOWEST, HIGHEST + 1))]
Reveal = Callable[[str, int | None], dict[Any, Any]]


class VotePanel:
    """Made inside the current Blocks; for two columns and for three.

    Attributes:
        events: what the vote buttons' clicks return, once wired: a page may add what comes after a vote.
    """

    def __init__(self) -> None:
        self.seen = gr.State(None)  # the round that stands above the buttons, as `Ballot.first_turn`
        self.events: list[Any] = []
        with gr.Row(elem_classes="plumb-ballot", visible=False) as self.row:
            self.buttons = {
                best: gr.Button(
                    title, size="sm", elem_id=f"vote-{best.replace(' ', '-')}", visible=best != "middle"
                )
                for best, title in BUTTONS.items()
            }
            self.note = gr.Textbox(
                label="Note to the vote",
                container=False,
                placeholder="Note to the vote",
                max_lines=1,
                scale=2,
                min_width=140,
            )
            self.pair = gr.Button(
                "Make a pair of it", size="sm", variant="primary", visible=False, elem_id="vote-pair"
            )
        self.told = gr.HTML(apply_default_css=False, elem_id="vote-told")
        with gr.Accordion("Score the answers", open=False, visible=False, elem_id="vote-scores") as self.frame:
            self.columns: list[Any] = []
            self.scores: dict[tuple[int, str], Any] = {}
            with gr.Row(elem_classes="plumb-vote-scores"):
                for column, side in enumerate(sides(MOST)):
                    with gr.Column(min_width=150, visible=column < MOST - 1) as group:
                        self.scores |= {(column, metric): _metric(side, metric) for metric in METRICS}
                    self.columns.append(group)

    @property
    def outputs(self) -> list[Any]:
        ballot = [self.seen, self.row, *self.buttons.values(), self.note, self.pair, self.told]
        return [*ballot, self.frame, *self.columns, *self.scores.values()]

    def show(self, found: Ballot) -> dict[Any, Any]:
        chosen = found.vote.best if found.vote else None
        updates: dict[Any, Any] = {
            self.seen: found.first_turn,
            self.row: gr.update(visible=found.first_turn is not None),
            self.pair: gr.update(visible=found.pairable),
            self.told: found.told,
            self.frame: gr.update(visible=found.first_turn is not None),
        }
        for best, button in self.buttons.items():
            updates[button] = gr.update(
                value=BUTTONS[best] if len(found.sides) == 2 else _AMONG_THREE[best],
                variant="primary" if best == chosen else "secondary",
                visible=best != "middle" or best in found.sides,
            )
        for column, group in enumerate(self.columns):
            updates[group] = gr.update(visible=column < len(found.sides))
        for (column, metric), radio in self.scores.items():
            known = found.scores[column].get(metric) if column < len(found.scores) else None
            side = found.sides[column] if column < len(found.sides) else sides(MOST)[column]
            updates[radio] = gr.update(
                value=NOT_SCORED if known is None else str(known), label=_title(side, metric)
            )
        return updates

    def wire(
        self, context: Context, conversation: Any, reveal: Reveal, speakers: list[Any], quiet: Mapping[str, Any]
    ) -> Callable[..., dict[Any, Any]]:
        """Wire the buttons; returns the handler that shows the ballot of the opened conversation.

        Args:
            reveal: updates of the columns' dropdowns once a vote allows the names to be seen.
        """

        def look(conversation_id: int | None, request: gr.Request) -> dict[Any, Any]:
            found = ballot(context, context.user(request), conversation_id)
            return self.show(found) | {self.note: found.vote.note if found.vote else ""}

        def voting(best: str) -> Callable[..., dict[Any, Any]]:
            def cast(
                request: gr.Request, conversation_id: int | None, seen: int | None, note: str, *shown: str
            ) -> dict[Any, Any]:
                user = context.user(request)
                found = vote(context, user, conversation_id, seen, best, note or "")
                # Who has chosen other speakers for the next question keeps that choice.
                known = not found.vote or HIDDEN not in shown
                return self.show(found) | ({} if known else reveal(user, conversation_id))

            return cast

        def scoring(column: int, metric: str) -> Callable[..., dict[Any, Any]]:
            def put(
                conversation_id: int | None, seen: int | None, chosen: str, request: gr.Request
            ) -> dict[Any, Any]:
                value = None if chosen == NOT_SCORED else int(chosen)
                return self.show(
                    score(context, context.user(request), conversation_id, seen, column, metric, value)
                )

            return put

        def pairing(conversation_id: int | None, seen: int | None, request: gr.Request) -> dict[Any, Any]:
            return self.show(pair_up(context, context.user(request), conversation_id, seen))

        for best, button in self.buttons.items():
            asked = [conversation, self.seen, self.note, *speakers]
            self.events.append(button.click(told(voting(best)), asked, [*self.outputs, *speakers], **quiet))
        for (column, metric), radio in self.scores.items():
            radio.input(told(scoring(column, metric)), [conversation, self.seen, radio], self.outputs, **quiet)
        self.pair.click(told(pairing), [conversation, self.seen], self.outputs, **quiet)
        return told(look)


def _metric(side: str, metric: str) -> Any:
    return gr.Radio(VALUES, value=NOT_SCORED, label=_title(side, metric), interactive=True)


def _title(side: str, metric: str) -> str:
    return f"{side.capitalize()}: {metric}"


def standings_panel(context: Context, quiet: Mapping[str, Any]) -> None:
    """The verdicts so far, read anew each time it is opened."""
    with gr.Accordion("Verdicts so far", open=False) as frame:
        shown = gr.HTML(apply_default_css=False, elem_id="vote-standings")
    frame.expand(told(lambda: standings(context)), None, [shown], **quiet)
