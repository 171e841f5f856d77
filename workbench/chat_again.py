"""One column's last answer once more: tried again with other luck, or gone on with where it was cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storage.chats import own_conversation, text_of
from storage.errors import Conflict, UserError
from storage.records import Conversation, Turn
from workbench.chat_desk import Cast, Decoding, cast_of, check_cast, is_cut, last_answers
from workbench.context import Context

SEEDS = 2**31
_GREEDY = "Temperature 0 gives the same answer again unless the settings changed."


@dataclass(frozen=True)
class Again:
    """What is asked.

    Attributes:
        conversation: up to the answer that it is about.
        old: that answer.
        decoding: with a seed of its own, and the system prompt that the question was asked with: both columns of a
            round answer the same prompt.
        begin: the text to go on from; "" where the answer is tried again.
        settings: what the new answer's turn keeps.
        note: what the page says beside the new answer.
    """

    conversation: Conversation
    old: Turn
    cast: Cast
    decoding: Decoding
    begin: str
    settings: Mapping[str, Any]
    note: str


def read_again(
    context: Context, user: str, conversation_id: int, column: int, decoding: Decoding, go_on: bool
) -> Again:
    """What is there to be tried again, or gone on with.

    Raises:
        NotFound: there is no such conversation of this user, or the adapter is gone.
        Conflict: the last question has no answer in this column yet.
        UserError: there is no such column; the conversation is a contest's; the answer has its end.
    """
    with context.database() as db:
        found = own_conversation(db, conversation_id, user)
        cast = cast_of(found)
        check_cast(db, cast, found)
    if not 0 <= column < len(cast.speakers):
        raise UserError(f"column = {column}: the conversation's columns are 0 to {len(cast.speakers) - 1}.")
    if found.contest_id is not None:
        raise UserError("This conversation belongs to a contest, whose answers stay as they are.")
    old = last_answers(found).get(column)
    if old is None:
        raise Conflict("The last question has no answer in this column yet; try the whole question again.")
    question = next(turn for turn in reversed(found.turns) if turn.role == "user")
    asked = {**found.settings, **question.settings}
    decoding = decoding.model_copy(update={"system": asked.get("system", "")})
    said = text_of(old.content)
    if go_on:
        if not is_cut(old):
            raise UserError("This answer has its end, or its speaker cannot go on with it; try it again instead.")
        seed = old.settings.get("seed", asked.get("seed", decoding.seed))
        settings = {**old.settings, "gone_on": True, "without_images": decoding.without_images}
        return Again(found, old, cast, decoding.model_copy(update={"seed": seed}), said, settings, "")
    tried = [*old.settings.get("tried", ())]
    if said or old.finish == "stop":  # a try that came to nothing has used no luck
        tried.append(old.settings.get("seed", asked.get("seed", 0)))
    seed = unused_seed(decoding.seed, tried)
    decoding = decoding.model_copy(update={"seed": seed})
    settings = {**decoding.model_dump(exclude={"system"}), "tried": tried}
    return Again(found, old, cast, decoding, "", settings, _GREEDY if decoding.temperature == 0 else "")


def unused_seed(wanted: int, tried: list[int]) -> int:
    """The seed that is wanted, or the next one that no answer was drawn with."""
    while wanted in tried:
        wanted = (wanted + 1) % SEEDS
    return wanted
