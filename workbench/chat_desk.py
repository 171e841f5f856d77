"""What the Chat page stores and opens again: who speaks, questions, histories. Plain functions above Gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlite_utils import Database

from jobs.configs import explain
from jobs.models import DEMO, check_model
from storage.adapters import get_adapter, list_adapters
from storage.chat_edits import Answer, add_answers, ask, replace_answer, replace_question
from storage.chats import own_conversation, start_conversation, text_of
from storage.database import immediate
from storage.errors import Conflict, NotFound, PlumbError, UserError
from storage.images import ensure_image_file
from storage.records import HIGHEST, METRICS, Conversation, Part, Turn
from storage.speakers import BASE, Speaker, base_of, read_speaker, sides, speakers_of
from workbench import chat_view
from workbench.chat_client import Ready, find_process, look_at
from workbench.chat_history import images_in
from workbench.chat_view import ChatMessage
from workbench.context import Context
from workbench.forms import Choice


class Decoding(BaseModel):
    """How answers are drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(0.0, ge=0.0, le=2.0, title="Temperature", description="0 is greedy")
    top_p: float = Field(1.0, gt=0.0, le=1.0, title="Top-p")
    seed: int = Field(0, ge=0, le=2**31 - 1, title="Seed", description="the same on both sides")
    max_new_tokens: int = Field(128, ge=1, le=4096, title="Longest answer", description="tokens")
    without_images: int = Field(
        0, ge=0, le=10_000, title="Images left out", description="so many of the oldest are not sent"
    )
    system: str = Field("", max_length=4000, title="System prompt", description="empty: the model's own, if any")
    helpfulness: int = Field(HIGHEST, ge=0, le=HIGHEST, title="Helpfulness")
    correctness: int = Field(HIGHEST, ge=0, le=HIGHEST, title="Correctness")
    coherence: int = Field(HIGHEST, ge=0, le=HIGHEST, title="Coherence")
    complexity: int = Field(HIGHEST, ge=0, le=HIGHEST, title="Complexity")
    verbosity: int = Field(HIGHEST, ge=0, le=HIGHEST, title="Verbosity")

    def asked(self) -> dict[str, Any]:
        """As the model's process takes them (jobs/gpu/chat_requests.py); the system prompt is a message there."""
        values = self.model_dump(exclude={"system", "without_images", *METRICS})
        return values | {"attributes": {metric: getattr(self, metric) for metric in METRICS}}


@dataclass(frozen=True)
class Cast:
    """Who answers.

    Attributes:
        model: the base that all of its own speakers share, and that new columns offer.
        speakers: one a column, two or three: the base itself, its adapters, models of outside endpoints.
    """

    model: str = DEMO
    speakers: tuple[Speaker, ...] = (Speaker(DEMO), Speaker(DEMO))

    @classmethod
    def of(cls, model: str, *adapters: int | None) -> Cast:
        """Speakers of our own alone."""
        return cls(model, tuple(Speaker(model, adapter) for adapter in adapters))

    @classmethod
    def read(cls, model: str | None, *spelt: str | None) -> Cast:
        """From what the dropdowns hold. Raises UserError as `read_speaker` does."""
        base = (model or "").strip()
        return cls(base, tuple(read_speaker(one or BASE, base) for one in spelt))

    @property
    def sides(self) -> tuple[str, ...]:
        return sides(len(self.speakers))

    @property
    def own(self) -> tuple[int, ...]:
        """Numbers of the columns that speak from the base's process, adapters and the base itself."""
        return tuple(number for number, one in enumerate(self.speakers) if one.outside is None)

    @property
    def needed(self) -> list[int]:
        """Adapters that the model's process must hold."""
        return [one.adapter for one in self.speakers if one.adapter is not None]


@dataclass(frozen=True)
class View:
    """What the page shows after a step.

    Attributes:
        columns: the messages of each, left to right; as many as the conversation has columns.
        running: whether any column still answers.
        asked: the question is safely stored and the box may be emptied.
        unanswered: the last question has no answer, and can be tried again.
        live: which columns still speak, and can be stopped.
        cut: whose last answer can be gone on with.
        answered: whose last answer can be tried again.
        too_long: the conversation exceeds what a model takes.
        questions: turns of the questions, in the order in which each column shows them.
        images: how many images of the conversation are sent, and so could be left out.
    """

    conversation: int | None
    columns: tuple[list[ChatMessage], ...]
    status: str = ""
    running: bool = False
    asked: bool = False
    unanswered: bool = False
    live: tuple[bool, ...] = ()
    cut: tuple[bool, ...] = ()
    answered: tuple[bool, ...] = ()
    too_long: bool = False
    questions: tuple[int, ...] = ()
    images: int = 0


def check_decoding(values: Mapping[str, Any]) -> Decoding:
    """Raise UserError where a setting is out of bounds."""
    try:
        return Decoding.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(f"The settings cannot be used: {explain(error)}") from error


def check_message(text: str, files: Sequence[str], cast: Cast) -> None:
    """Raise UserError where a message cannot be sent, before anything is stored or stopped for it."""
    if cast.own:
        check_model(cast.model)
    if not text.strip() and not files:
        raise UserError("The message is empty: write something, or add an image.")


def check_cast(db: Database, cast: Cast, conversation: Conversation | None = None) -> None:
    """Whether these speakers can answer, in this conversation if there is one already.

    Raises:
        UserError, NotFound: one can't; the message says which, and what to choose. While a blind conversation
            keeps its names to itself, it doesn't say which.
    """
    from workbench.vote_desk import is_hidden  # it stands on this module

    sides(len(cast.speakers))
    if conversation is not None and len(speakers_of(conversation)) != len(cast.speakers):
        raise UserError(
            f"This conversation has {len(speakers_of(conversation))} columns, not {len(cast.speakers)}; "
            "begin a new conversation for another number of them."
        )
    for side, speaker in zip(cast.sides, cast.speakers, strict=True):
        if speaker.adapter is None:
            continue
        try:
            found = get_adapter(db, speaker.adapter)
        except NotFound as error:
            if conversation is not None and is_hidden(db, conversation):
                raise NotFound(
                    "An adapter of this blind conversation is not there any more; begin a new conversation."
                ) from error
            raise NotFound(
                f"{side.capitalize()} column: {str(error).rstrip('.')}. It may have been deleted; choose the base "
                "or another adapter there."
            ) from error
        if found.base_model != speaker.model:
            raise UserError(
                f"The adapter {found.name} belongs to {found.base_model!r}, not to {speaker.model!r}; "
                "choose another column."
            )


def store_question(
    context: Context,
    user: str,
    conversation_id: int | None,
    text: str,
    files: Sequence[str],
    cast: Cast,
    decoding: Decoding,
    blind: bool = False,
    replace: int | None = None,
) -> int:
    """Store a user's turn, in a new conversation if there is none yet; returns the conversation's id.

    Args:
        replace: the turn of a question that this one stands for.

    Raises:
        PlumbError: an image or a column's adapter cannot be used; the conversation is not there. Nothing is
            stored then, and what was typed stays in its box.
    """
    with context.database() as db:
        check_cast(db, cast, None if conversation_id is None else own_conversation(db, conversation_id, user))
        parts: list[Part] = [
            {"type": "image", "image": ensure_image_file(db, context.folder, Path(file)).sha256} for file in files
        ]
        if text.strip():
            parts.append({"type": "text", "text": text})
        asked = asked_with(cast, decoding)
        with immediate(db):
            if conversation_id is None:
                conversation_id = start_conversation(db, user, asked | ({"blind": True} if blind else {}))
            if replace is None:
                ask(db, user, conversation_id, parts, asked)
            else:
                replace_question(db, user, conversation_id, replace, parts, asked)
    return conversation_id


def asked_with(cast: Cast, decoding: Decoding) -> dict[str, Any]:
    """What a question's turn keeps of how it was asked."""
    return {"model": cast.model, "columns": [one.spelling for one in cast.speakers], **decoding.model_dump()}


def read_open_question(context: Context, user: str, conversation_id: int, cast: Cast) -> Conversation:
    """A conversation that ends with a question, which this cast can answer.

    Raises:
        NotFound: there is no such conversation of this user, or an adapter is gone.
        Conflict: it has an answer already, from another tab for example.
        UserError: the cast doesn't fit.
    """
    with context.database() as db:
        found = own_conversation(db, conversation_id, user)
        if not found.turns or found.turns[-1].role != "user":
            raise Conflict("The last question has its answer already; open the conversation again to see it.")
        check_cast(db, cast, found)
    return found


def choices_of(db: Database, model: str) -> list[Choice]:
    """What a column can speak with: the base, then its adapters, newest first."""
    return [(f"base ({model})", BASE), *((f"{a.name} (#{a.id})", str(a.id)) for a in list_adapters(db, model))]


def models_of(db: Database) -> list[str]:
    """Bases that are known: the demo, and what adapters were trained on."""
    return list(dict.fromkeys([DEMO, *(adapter.base_model for adapter in list_adapters(db))]))


def default_cast(db: Database, model: str = DEMO, adapter: int | None = None) -> Cast:
    """The base on the left; on the right the adapter asked for, else the newest one."""
    if adapter is not None:
        found = get_adapter(db, adapter)
        return Cast.of(found.base_model, None, found.id)
    newest = next(iter(list_adapters(db, model)), None)
    return Cast.of(model, None, newest.id if newest else None)


def cast_of(conversation: Conversation) -> Cast:
    """Who answered last in a conversation, else whom it began with."""
    return Cast(base_of(conversation), speakers_of(conversation))


def store_answers(
    context: Context, conversation: Conversation, asked: Mapping[str, Any], answers: Sequence[Answer]
) -> Conversation:
    """Store the answers to the question that `conversation` ends with, all or none; the conversation with them.

    Raises:
        Conflict: the question has been answered or changed in the meantime.
        DatabaseBusy: nothing was written.
    """
    with context.database() as db:
        add_answers(db, conversation, asked, answers)
        return own_conversation(db, conversation.id, conversation.user)


def store_again(
    context: Context, conversation: Conversation, old: Turn, answer: Answer, going_on: bool
) -> Conversation:
    """Put an answer in an old one's place, which goes into the undo log; the conversation with it.

    Raises: as `store_answers`.
    """
    with context.database() as db:
        replace_answer(db, conversation, old, answer, going_on=going_on)
        return own_conversation(db, conversation.id, conversation.user)


def opened(conversation: Conversation) -> View:
    """A stored conversation as it is shown."""
    turns = conversation.turns
    unanswered = bool(turns) and turns[-1].role == "user"
    status = chat_view.note("The last message has no answer yet.") if unanswered else ""
    cast = cast_of(conversation)
    answers = last_answers(conversation)
    fixed = conversation.contest_id is not None  # others are to vote on its answers
    return View(
        conversation.id,
        chat_view.shown_columns(turns, len(cast.speakers)),
        status,
        unanswered=unanswered,
        live=(False,) * len(cast.speakers),
        cut=tuple(
            not fixed and number in answers and is_cut(answers[number]) for number in range(len(cast.speakers))
        ),
        answered=tuple(not fixed and number in answers for number in range(len(cast.speakers))),
        questions=tuple(turn.id for turn in turns if turn.role == "user"),
        images=max(0, images_in(turns) - int(settings_of(conversation).get("without_images") or 0)),
    )


def last_answers(conversation: Conversation) -> dict[int, Turn]:
    """The answers to the last question, by column; {} while it has none."""
    last = conversation.turns[-1] if conversation.turns else None
    if last is None or last.role != "assistant":
        return {}
    return {
        turn.column_number: turn
        for turn in conversation.turns
        if turn.role == "assistant" and turn.position == last.position and turn.column_number is not None
    }


def is_cut(answer: Turn) -> bool:
    """Whether an answer ended before its end, and its speaker can go on where it did."""
    own = Speaker(answer.model or "").outside is None
    return own and answer.finish in ("length", "stopped", "failed") and bool(text_of(answer.content).strip())


def settings_of(conversation: Conversation) -> dict[str, Any]:
    """How its last question was asked; how it began, where that was not kept yet."""
    asked = [turn.settings for turn in conversation.turns if turn.role == "user" and turn.settings]
    return {**conversation.settings, **(asked[-1] if asked else {})}


def model_state(context: Context, cast: Cast) -> str:
    """One line on whether the model is there."""
    needed = cast.needed
    if not cast.own:
        return ""
    with context.database() as db:
        job = find_process(db, cast.model, needed)
        trained = bool(needed) or bool(list_adapters(db, cast.model))
    lacking = "" if trained else chat_view.no_adapter()
    if job is None:
        return lacking + chat_view.note("The model starts with your first message; loading it takes a moment.")
    try:
        state = look_at(context, job.id)
    except PlumbError:
        return lacking
    return lacking + (
        chat_view.note("The model is ready.") if isinstance(state, Ready) else chat_view.waiting(state)
    )
