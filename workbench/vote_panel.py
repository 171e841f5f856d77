"""The ballot under the chat's answers: its components and its wiring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from workbench.context import Context
from workbench.events import told
from workbench.vote_desk import HIDDEN, Ballot, ballot, pair_up, standings, vote

VERDICTS = {"left": "Left is better", "tie": "Tie", "both bad": "Both bad", "right": "Right is better"}
Reveal = Callable[[str, int | None], dict[Any, Any]]


class VotePanel:
    """Made inside the current Blocks."""

    def __init__(self) -> None:
        self.seen = gr.State(None)  # the round that stands above the buttons, as `Ballot.left_turn`
        with gr.Row(elem_classes="plumb-ballot", visible=False) as self.row:
            self.buttons = {
                verdict: gr.Button(title, size="sm", elem_id=f"vote-{verdict.replace(' ', '-')}")
                for verdict, title in VERDICTS.items()
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

    @property
    def outputs(self) -> list[Any]:
        return [self.seen, self.row, *self.buttons.values(), self.note, self.pair, self.told]

    def show(self, found: Ballot) -> dict[Any, Any]:
        chosen = found.vote.verdict if found.vote else None
        updates: dict[Any, Any] = {
            self.seen: found.left_turn,
            self.row: gr.update(visible=found.left_turn is not None),
            self.pair: gr.update(visible=found.pairable),
            self.told: found.told,
        }
        for verdict, button in self.buttons.items():
            updates[button] = gr.update(variant="primary" if verdict == chosen else "secondary")
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

        def voting(verdict: str) -> Callable[..., dict[Any, Any]]:
            def cast(
                request: gr.Request, conversation_id: int | None, seen: int | None, note: str, *shown: str
            ) -> dict[Any, Any]:
                user = context.user(request)
                found = vote(context, user, conversation_id, seen, verdict, note or "")
                # Who has chosen other speakers for the next question keeps that choice.
                known = not found.vote or HIDDEN not in shown
                return self.show(found) | ({} if known else reveal(user, conversation_id))

            return cast

        def pairing(conversation_id: int | None, seen: int | None, request: gr.Request) -> dict[Any, Any]:
            return self.show(pair_up(context, context.user(request), conversation_id, seen))

        for verdict, button in self.buttons.items():
            asked = [conversation, self.seen, self.note, *speakers]
            button.click(told(voting(verdict)), asked, [*self.outputs, *speakers], **quiet)
        self.pair.click(told(pairing), [conversation, self.seen], self.outputs, **quiet)
        return told(look)


def standings_panel(context: Context, quiet: Mapping[str, Any]) -> None:
    """The verdicts so far, read anew each time it is opened."""
    with gr.Accordion("Verdicts so far", open=False) as frame:
        shown = gr.HTML(apply_default_css=False, elem_id="vote-standings")
    frame.expand(told(lambda: standings(context)), None, [shown], **quiet)
