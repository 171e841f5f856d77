"""What the Chat page stores and opens again: who speaks, questions, histories. Plain functions above Gradio."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlite_utils import Database

from jobs.configs import explain
from jobs.models import DEMO, check_model
from storage.adapters import get_adapter, list_adapters
from storage.chats import add_turn, get_conversation, start_conversation, text_of
from storage.database import immediate
from storage.errors import Conflict, PlumbError, UserError
from storage.images import ensure_image_file, get_images, image_path
from storage.records import HIGHEST, METRICS, Conversation, Part, Turn
from workbench import chat_view
from workbench.chat_client import Ready, find_process, look_at
from workbench.chat_view import ChatMessage
from workbench.context import Context
from workbench.events import read_id
from workbench.forms import Choice

BASE = "base"


class Decoding(BaseModel):
    """How answers are drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(0.0, ge=0.0, le=2.0, title="Temperature", description="0 is greedy")
    top_p: float = Field(1.0, gt=0.0, le=1.0, title="Top-p")
    seed: int = Field(0, ge=0, le=2**31 - 1, title="Seed", description="the same on both sides")
    max_new_tokens: int = Field(128, ge=1, le=4096, title="Longest answer", description="tokens")
    system: str = Field("", max_length=4000, title="System prompt", description="empty: the model's own, if any")
    helpfulness: int = Field(HIGHEST, ge=0, le=HIGHEST, title="Helpfulness")
    correctness: int = Field(HIGHEST, ge=0, le=HIGHEST, title="Correctness")
    coherence: int = Field(HIGHEST, ge=0, le=HIGHEST, title="Coherence")
    complexity: int = Field(HIGHEST, ge=0, le=HIGHEST, title="Complexity")
    verbosity: int = Field(HIGHEST, ge=0, le=HIGHEST, title="Verbosity")

    def asked(self) -> dict[str, Any]:
        """As the model's process takes them (jobs/gpu/chat_requests.py); the system prompt is a message there."""
        values = self.model_dump(exclude={"system", *METRICS})
        return values | {"attributes": {metric: getattr(self, metric) for metric in METRICS}}


@dataclass(frozen=True)
class Cast:
    """Who answers: a base, and in each column the base itself (None) or one of its adapters."""

    model: str = DEMO
    adapters: tuple[int | None, int | None] = (None, None)

    @classmethod
    def read(cls, model: str | None, left: str | None, right: str | None) -> Cast:
        """From what the dropdowns hold."""
        return cls((model or "").strip(), (_adapter(left), _adapter(right)))


@dataclass(frozen=True)
class View:
    """What the page shows after a step; `asked` where the question is safely stored and the box may be emptied."""

    conversation: int | None
    columns: tuple[list[ChatMessage], list[ChatMessage]]
    status: str = ""
    running: bool = False
    asked: bool = False
    unanswered: bool = False


def check_decoding(values: Mapping[str, Any]) -> Decoding:
    """Raise UserError where a setting is out of bounds."""
    try:
        return Decoding.model_validate(dict(values))
    except ValidationError as error:
        raise UserError(f"The settings cannot be used: {explain(error)}") from error


def check_message(text: str, files: Sequence[str], model: str) -> None:
    """Raise UserError where a message cannot be sent, before anything is stored or stopped for it."""
    check_model(model)
    if not text.strip() and not files:
        raise UserError("The message is empty: write something, or add an image.")


def store_question(
    context: Context,
    user: str,
    conversation_id: int | None,
    text: str,
    files: Sequence[str],
    cast: Cast,
    decoding: Decoding,
    blind: bool = False,
) -> int:
    """Store a user's turn, in a new conversation if there is none yet; returns the conversation's id.

    Raises:
        PlumbError: an image or a column's adapter cannot be used; the conversation is not there. Nothing is
            stored then, and what was typed stays in its box.
    """
    with context.database() as db:
        for adapter in cast.adapters:
            _check_adapter(db, adapter, cast.model)
        parts: list[Part] = [
            {"type": "image", "image": ensure_image_file(db, context.folder, Path(file)).sha256} for file in files
        ]
        if text.strip():
            parts.append({"type": "text", "text": text})
        with immediate(db):  # two tabs may ask at once: each question gets its own place
            if conversation_id is None:
                settings = {"model": cast.model, "adapters": list(cast.adapters), **decoding.model_dump()}
                settings |= {"blind": True} if blind else {}
                conversation_id = start_conversation(db, user, settings)
            known = get_conversation(db, conversation_id, user)  # also: whose it is
            add_turn(db, conversation_id, question_position(known), "user", parts)
    return conversation_id


def read_open_question(context: Context, user: str, conversation_id: int) -> Conversation:
    """A conversation that ends with a question.

    Raises:
        NotFound: there is no such conversation of this user.
        Conflict: it has an answer already, from another tab for example.
    """
    with context.database() as db:
        found = get_conversation(db, conversation_id, user)
    if not found.turns or found.turns[-1].role != "user":
        raise Conflict("The last question has its answer already; open the conversation again to see it.")
    return found


def store_answers(
    context: Context, conversation: Conversation, cast: Cast, answers: Sequence[tuple[str, str | None]]
) -> None:
    """Store both columns' answers to the question that `conversation` ends with: all or none.

    Args:
        answers: (text, finish) of each column.

    Raises:
        Conflict: the question has been answered in the meantime.
        DatabaseBusy: nothing was written.
    """
    position = conversation.turns[-1].position + 1
    with context.database() as db, immediate(db):
        known = get_conversation(db, conversation.id, conversation.user)
        if any(turn.position == position for turn in known.turns):
            raise Conflict("The question was answered from another tab first; open the conversation again.")
        for number, (text, finish) in enumerate(answers):
            add_turn(
                db,
                conversation.id,
                position,
                "assistant",
                [{"type": "text", "text": text}],
                column_number=number,
                model=cast.model,
                adapter_id=cast.adapters[number],
                finish=finish,
            )


def history(context: Context, turns: Sequence[Turn], column: int, system: str = "") -> list[dict[str, Any]]:
    """The messages that a column's model sees: all questions, its own answers, images as base64.

    A question that got no answer here is put together with the next one, because chat templates want the
    roles to take turns.
    """
    with context.database() as db:
        wanted = [part["image"] for turn in turns for part in turn.content if part["type"] == "image"]
        images = get_images(db, wanted)
    messages: list[dict[str, Any]] = []
    if system.strip():
        messages.append({"role": "system", "content": [{"type": "text", "text": system.strip()}]})
    for turn in turns:
        if turn.role == "user":
            content = [_sent(context, part, images) for part in turn.content]
        elif turn.column_number == column and (text_of(turn.content) or turn.finish == "stop"):
            content = [{"type": "text", "text": text_of(turn.content)}]
        else:
            continue
        if messages and messages[-1]["role"] == turn.role:
            messages[-1]["content"] += content
        else:
            messages.append({"role": turn.role, "content": content})
    return messages


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
        return Cast(found.base_model, (None, found.id))
    newest = next(iter(list_adapters(db, model)), None)
    return Cast(model, (None, newest.id if newest else None))


def cast_of(conversation: Conversation) -> Cast:
    """Who answered last in a conversation, else whom it began with."""
    model = str(conversation.settings.get("model", DEMO))
    adapters = list(conversation.settings.get("adapters") or (None, None))
    for turn in conversation.turns:
        if turn.role == "assistant" and turn.column_number in (0, 1):
            adapters[turn.column_number] = turn.adapter_id
            model = turn.model or model
    return Cast(model, (adapters[0], adapters[1]))


def opened(conversation: Conversation) -> View:
    """A stored conversation as it is shown."""
    turns = conversation.turns
    unanswered = bool(turns) and turns[-1].role == "user"
    status = chat_view.note("The last message has no answer yet.") if unanswered else ""
    return View(conversation.id, chat_view.shown_columns(turns), status, unanswered=unanswered)


def model_state(context: Context, cast: Cast) -> str:
    """One line on whether the model is there."""
    needed = [adapter for adapter in cast.adapters if adapter is not None]
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


def question_position(conversation: Conversation) -> int:
    """Where the next question goes; the place after an open one stays free for an answer still on its way."""
    if not conversation.turns:
        return 0
    last = conversation.turns[-1]
    return last.position + (2 if last.role == "user" else 1)


def _check_adapter(db: Database, adapter_id: int | None, model: str) -> None:
    if adapter_id is not None and (found := get_adapter(db, adapter_id)).base_model != model:
        raise UserError(
            f"The adapter {found.name} belongs to {found.base_model!r}, not to {model!r}; choose another column."
        )


def _sent(context: Context, part: Part, images: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    sha256 = part["image"]
    try:
        data = image_path(context.folder, images[sha256]).read_bytes()
    except OSError as error:
        raise UserError(f"The image {sha256[:12]} is missing; run `python -m storage check`.") from error
    return {"type": "image", "data": base64.b64encode(data).decode("ascii")}


def _adapter(held: str | None) -> int | None:
    return read_id(held) if held else None
