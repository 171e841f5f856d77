"""The chat's engine: columns over one base, each with its own adapter, decoded as one batch.

Free of HTTP. All use of the model happens in one thread, one request at a time; the others wait in line.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from jobs.gpu.answering import Answerer, stock_answers
from jobs.gpu.chat_line import FairLine
from jobs.gpu.chat_requests import ChatRequest, Column, Message, as_chat
from jobs.gpu.columns import Asked, Columns
from jobs.gpu.decoding import CacheUnfit, Decoding, Sampling, noise_seed
from jobs.gpu.kept_prompts import KeptPrompts
from jobs.gpu.loading import Loaded
from jobs.gpu.lora import speaking
from jobs.gpu.prompts import begun_with, encode, lengths, tokens_of
from jobs.gpu.row_adapters import RowAdapters
from jobs.gpu.spelling import Spelling
from jobs.out_of_memory import is_out_of_memory
from jobs.steerlm import with_attributes
from storage.errors import NotFound, PlumbError, UserError

Emit = Callable[[dict[str, Any] | None], None]


class Ticket:
    """A request in line or at work. `stop` may be called from any thread and takes effect at the next token."""

    def __init__(self, request: ChatRequest, emit: Emit) -> None:
        self.request = request
        self.emit = emit
        self._stopped: set[str] = set()
        self._told = 0

    def tell_place(self, ahead: int) -> None:
        """Say how many come first, where that is news; nothing is said of none, since then it begins."""
        if ahead and ahead != self._told:
            self.emit({"waiting": ahead})
            self._told = ahead

    def stop(self, column: str | None = None) -> None:
        self._stopped.update([column] if column else [one.id for one in self.request.columns])

    def is_stopped(self, column: str) -> bool:
        return column in self._stopped


class ChatEngine:
    """Answers requests one by one; the users whose they are take turns.

    What it emits for a request, in this order:

        {"request": id}
        {"waiting": n}                                    n requests come first; again when n changes
        {"column": id, "prompt": n, "context": m}         tokens of its prompt, of m that the model takes (or null)
        {"column": id, "apart": reason}                   it answers after the others: it can't share their batch
        {"column": id, "delta": text}                     columns interleaved
        {"column": id, "done": "stop" | "length" | "stopped", "tokens": n}
        {"column": id, "error": text, "code"?}            this column can't be answered; the others go on
        {"error": text}                                   instead of what is missing
        None                                              the end

    Args:
        model: the base, or a PeftModel around it.
        adapters: {id: PEFT's name of it}.
        steered: ids of those that SteerLM made: they are asked with its attribute string, which nobody sees.
    """

    def __init__(
        self,
        loaded: Loaded,
        model: Any,
        adapters: Mapping[int, str],
        note: Callable[[str], None],
        steered: Collection[int | None] = (),
    ) -> None:
        self._loaded = loaded
        self._model = model
        self._adapters = dict(adapters)
        self._steered = frozenset(steered)
        self._answerer = Answerer(model, loaded.processor, note)
        self._rows = RowAdapters(model)
        self._kept = KeptPrompts()
        self._changed = threading.Condition()
        self._line: FairLine[Ticket] = FairLine(lambda ticket: ticket.request.user)
        self._current: Ticket | None = None
        self._closing = False
        self._last_use = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="chat", daemon=True)
        self._thread.start()

    @property
    def adapters(self) -> tuple[int, ...]:
        return tuple(self._adapters)

    @property
    def busy(self) -> bool:
        with self._changed:
            return self._current is not None or bool(self._line)

    @property
    def waiting(self) -> int:
        with self._changed:
            return len(self._line)

    @property
    def idle_seconds(self) -> float:
        """Since the last request ended; 0 while one is at work."""
        with self._changed:
            return 0.0 if self._current or self._line else time.monotonic() - self._last_use

    def submit(self, request: ChatRequest, emit: Emit) -> Ticket:
        """Put a request in line; `emit` is called from the engine's thread.

        Raises:
            NotFound: an adapter that this process doesn't hold.
            PlumbError: the engine is closing, or the request's id is taken.
        """
        for column in request.columns:
            if column.adapter is not None and column.adapter not in self._adapters:
                held = ", ".join(map(str, self._adapters)) or "none"
                raise NotFound(
                    f"Adapter {column.adapter} of column {column.id!r} is not loaded here (loaded: {held}); "
                    "start the chat's model with it."
                )
        ticket = Ticket(request, emit)
        with self._changed:
            if self._closing:
                raise PlumbError("The chat's model is leaving; start it again.")
            ahead = [*self._line, *([self._current] if self._current else [])]
            if any(other.request.request == request.request for other in ahead):
                raise PlumbError(f"The request {request.request!r} is already in line; give each its own id.")
            emit({"request": request.request})
            self._line.add(ticket)
            self._tell_places()
            self._changed.notify_all()
        return ticket

    def stop(self, request: str, column: str | None = None) -> bool:
        """Stop a request, or one of its columns; False where it isn't in line or at work."""
        with self._changed:
            for ticket in [*self._line, *([self._current] if self._current else [])]:
                if ticket.request.request == request:
                    ticket.stop(column)
                    return True
        return False

    def close(self) -> None:
        """Stop everything and end the thread; what waits is told."""
        with self._changed:
            self._closing = True
            for ticket in [*self._line, *([self._current] if self._current else [])]:
                ticket.stop()
            self._changed.notify_all()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._line)
                if not self._line:
                    return
                self._current = self._line.pop()
                self._tell_places()
            try:
                self._answer(self._current)
            finally:
                with self._changed:
                    self._current = None
                    self._last_use = time.monotonic()

    def _tell_places(self) -> None:
        """Tell all who wait how many come first, with the lock held."""
        for place, ticket in enumerate(self._line, start=1 if self._current else 0):
            ticket.tell_place(place)

    def _answer(self, ticket: Ticket) -> None:
        try:
            self._stream(ticket)
        except PlumbError as error:
            ticket.emit({"error": str(error)})
        except Exception as error:
            from jobs.worker import explain

            traceback.print_exc()  # into the run's log
            if is_out_of_memory(error):  # what was read for others may go: the next try then has its room
                self._kept.clear()
            ticket.emit({"error": explain(error)})
        finally:
            ticket.emit(None)

    def _stream(self, ticket: Ticket) -> None:
        request = ticket.request
        sampling = Sampling(
            temperature=request.temperature,
            top_p=request.top_p,
            max_new_tokens=request.max_new_tokens,
            seed=request.seed,
        )
        talks = [_Talk(ticket, column, self._loaded.processor.tokenizer) for column in request.columns]
        prompts: dict[tuple[tuple[Message, ...], bool, str], Mapping[str, Any]] = {}
        for talk in list(talks):
            asked = request.of(talk.column), talk.column.adapter in self._steered, talk.column.prefix
            try:
                if asked not in prompts:
                    prompts[asked] = self._prompt(request, *asked)
            except TooLong as error:
                talk.fail(str(error), TooLong.code)
                talks.remove(talk)
                continue
            talk.inputs = prompts[asked]
            talk.tell_length(lengths(talk.inputs)[0], self._loaded.context)
        if self._answerer.own_loop and talks:
            try:
                self._together(talks, sampling)
                return
            except CacheUnfit:
                pass  # found when the first prompt was read, before anything was said
        self._one_by_one(talks, sampling)

    def _prompt(
        self, request: ChatRequest, messages: tuple[Message, ...], steered: bool, prefix: str
    ) -> Mapping[str, Any]:
        chat = as_chat(messages)
        if steered:
            chat = with_attributes(chat, request.attributes.model_dump())
        room = request.max_new_tokens
        inputs = encode(self._loaded.processor, [chat])
        if prefix:
            inputs = begun_with(inputs, _begun(prefix, self._loaded.processor.tokenizer))
        context, (length,) = self._loaded.context, lengths(inputs)
        if context is not None and length + room > context:
            raise TooLong(
                f"The conversation has {length} tokens; with answers of {room} it exceeds the model's {context}. "
                "Start a new conversation, or lower “Longest answer”."
            )
        return self._answerer.on_device(inputs)

    def _together(self, talks: list[_Talk], sampling: Sampling) -> None:
        """All columns as one batch; those that can't share it come after, one by one."""
        apart = [talk for talk in talks if self._refusal(talk)]
        for talk in apart:
            talk.tell_apart(self._refusal(talk))
        batched = [talk for talk in talks if talk not in apart]
        if batched:
            with speaking(self._model, None):  # the base's own modules; the rows' adapters speak for themselves
                self._decode(batched, sampling)
        for talk in apart:
            decoding = Decoding(self._model, talk.inputs, [_noise(sampling)], sampling, self._answerer.ends)
            with speaking(self._model, self._name(talk)):
                while not decoding.finished and not talk.stopped:
                    for _, token in decoding.step():
                        talk.say(token)
            talk.end(decoding.answers[0].finish if decoding.finished else "stopped")

    def _decode(self, talks: list[_Talk], sampling: Sampling) -> None:
        asked = [Asked(self._name(talk), talk.inputs) for talk in talks]
        # The same noise on every side: what differs comes from the adapter.
        columns = Columns(
            self._model, self._rows, asked, self._kept, sampling, _noise(sampling), self._answerer.ends
        )
        speaks = dict(enumerate(talks))
        while speaks:
            for number, talk in list(speaks.items()):
                if talk.stopped:
                    columns.stop(number)
                    speaks.pop(number).end("stopped")
            for number, token in columns.step():
                speaks[number].say(token)
            for number in [number for number in speaks if number not in columns.open]:
                speaks.pop(number).end(columns.answers[number].finish)

    def _refusal(self, talk: _Talk) -> str:
        """Why a column can't share the others' batch, or ""; without an image nobody needs a projector."""
        return self._rows.refusal(self._name(talk)) if "pixel_values" in talk.inputs else ""

    def _one_by_one(self, talks: list[_Talk], sampling: Sampling) -> None:
        """Through transformers' generate, for models that our loop can't hold."""
        seed = _noise(sampling)
        for talk in talks:

            def hear(tokens: torch.Tensor, talk: _Talk = talk) -> None:
                if talk.stopped:
                    raise _Halt
                token = int(tokens[0, -1])
                if token not in self._answerer.ends:
                    talk.say(token)

            try:
                with speaking(self._model, self._name(talk)):
                    (answer,) = stock_answers(
                        self._model, talk.inputs, 1, sampling, seed, self._answerer.ends, hear
                    )
                talk.end(answer.finish)
            except _Halt:
                talk.end("stopped")

    def _name(self, talk: _Talk) -> str | None:
        return None if talk.column.adapter is None else self._adapters[talk.column.adapter]


def _noise(sampling: Sampling) -> int:
    return noise_seed(sampling.seed, "chat", 0)


def _begun(prefix: str, tokenizer: Any) -> list[int]:
    """The tokens that an answer begins with; half a character at its cut is left to the model to say whole."""
    return tokens_of(prefix.rstrip("\ufffd"), tokenizer)


class TooLong(UserError):
    """A conversation that exceeds the model's context."""

    code = "too long"


class _Halt(Exception):
    """Leaves transformers' generate."""


class _Talk:
    """One column of one request while it speaks."""

    def __init__(self, ticket: Ticket, column: Column, tokenizer: Any) -> None:
        self.column = column
        self.inputs: Mapping[str, Any] = {}
        self._ticket = ticket
        self._spelling = Spelling(tokenizer)
        for token in _begun(column.prefix, tokenizer):  # known already; what follows is spelt as it goes on
            self._spelling.add(token)
        self._spelling.rest()
        self._tokens = 0

    @property
    def stopped(self) -> bool:
        return self._ticket.is_stopped(self.column.id)

    def tell_length(self, tokens: int, context: int | None) -> None:
        self._ticket.emit({"column": self.column.id, "prompt": tokens, "context": context})

    def fail(self, text: str, code: str) -> None:
        self._ticket.emit({"column": self.column.id, "error": text, "code": code})

    def tell_apart(self, reason: str) -> None:
        self._ticket.emit({"column": self.column.id, "apart": reason})

    def say(self, token: int) -> None:
        self._tokens += 1
        self._tell(self._spelling.add(token))

    def end(self, reason: str) -> None:
        self._tell(self._spelling.rest())
        self._ticket.emit({"column": self.column.id, "done": reason, "tokens": self._tokens})

    def _tell(self, text: str) -> None:
        if text:
            self._ticket.emit({"column": self.column.id, "delta": text})
