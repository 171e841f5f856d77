"""A round of the chat while it goes on: what each column has said, and how the page shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from storage.chats import text_of
from storage.records import Conversation, Turn
from storage.speakers import Speaker
from workbench import chat_view
from workbench.chat_client import TOO_LONG, Apart, Delta, Done, Failed, Length, Line, Lost, Waiting
from workbench.chat_desk import Cast, View, opened
from workbench.chat_history import images_in, left_out
from workbench.chat_streams import Told

_HIDDEN_FAULT = "One column could not answer. Why would tell who it is: you are told once you have voted."


@dataclass
class Speech:
    """What a column says in this round.

    Attributes:
        column: its number, from the left.
        old: the answer that is tried again, or gone on with.
        begin: the text that it goes on from; "" otherwise.
        text: what was said in this round.
        lost: what was said by a process that died.
        finish: None while it speaks.
    """

    column: int
    side: str
    speaker: Speaker
    old: Turn | None = None
    begin: str = ""
    text: str = ""
    lost: str = ""
    finish: str | None = None
    tokens: int = 0
    problem: str = ""
    code: str = ""

    @property
    def said(self) -> bool:
        """Whether it has answered; an empty answer that ended by itself is one."""
        return bool(self.text) or self.finish == "stop"

    @property
    def replaces(self) -> bool:
        """Whether its answer shall stand where the old one does: not one that came to nothing."""
        return self.said and (bool(self.begin) or self.finish != "failed")

    @property
    def whole(self) -> str:
        return self.begin + self.text

    def end(self, finish: str) -> None:
        if self.finish is None:
            self.finish = finish
            if not self.text and finish == "failed":
                self.text = self.lost


@dataclass
class Round:
    """A question that is being answered, by all columns or by one.

    Attributes:
        hidden: the page must not tell who speaks where.
        without_images: how many of the oldest images are not sent.
        note: stands beside how it ended.
        waiting: why the base's process doesn't speak yet.
        kept: the conversation with the answers in it, once they are stored.
    """

    conversation: Conversation
    cast: Cast
    speeches: tuple[Speech, ...]
    hidden: bool = False
    without_images: int = 0
    note: str = ""
    waiting: Waiting | None = None
    ahead: int = 0
    lengths: dict[str, tuple[int, int | None]] = field(default_factory=dict)  #: prompt and context, in tokens
    apart: dict[str, str] = field(default_factory=dict)  #: why a column answers after the others
    spoke: bool = False
    kept: Conversation | None = None

    def take(self, event: Told) -> None:
        match event:
            case Waiting():
                self.waiting = event
                return
            case Line():
                self.ahead = event.ahead
            case Length():
                self.lengths[event.column] = (event.tokens, event.context)
            case Apart():
                self.apart[event.column] = event.reason
            case Lost():
                for speech in self._of(*event.columns):
                    speech.lost, speech.text = speech.text or speech.lost, ""
                return
            case Delta():
                for speech in self._of(event.column):
                    speech.text += event.text
            case Done():
                for speech in self._of(event.column):
                    speech.finish, speech.tokens = speech.finish or event.finish, event.tokens
            case Failed():
                for speech in self.speeches if event.column is None else self._of(event.column):
                    if speech.finish is None:
                        speech.problem, speech.code = event.text, event.code
                        speech.end("failed")
        self.spoke = True
        column = getattr(event, "column", None)
        if column is None or any(speech.speaker.outside is None for speech in self._of(column)):
            self.waiting = None
            self.ahead = event.ahead if isinstance(event, Line) else 0

    def _of(self, *sides: str) -> list[Speech]:
        return [speech for speech in self.speeches if speech.side in sides]

    def close(self, finish: str) -> None:
        for speech in self.speeches:
            speech.end(finish)

    @property
    def said(self) -> bool:
        return any(speech.said for speech in self.speeches)

    def view(self, status: str, running: bool = True) -> View:
        turns = self.conversation.turns
        if self.kept is not None and not running:
            shown = opened(self.kept)
            return View(**{**vars(shown), "status": status, "asked": True, "too_long": self._too_long})
        columns = tuple([*column] for column in self._before)
        for speech in self.speeches:
            self._show(columns[speech.column], speech)
        live = [False] * len(columns)
        for speech in self.speeches:
            live[speech.column] = running and speech.finish is None
        none = (False,) * len(columns)
        before = (
            None if running else opened(self.conversation)
        )  # nothing was stored: what could be done, still can
        return View(
            self.conversation.id,
            columns,
            status,
            running,
            asked=True,
            unanswered=before is not None and before.unanswered,
            live=tuple(live),
            cut=before.cut if before else none,
            answered=before.answered if before else none,
            too_long=self._too_long and not running,
            questions=tuple(turn.id for turn in turns if turn.role == "user"),
            images=max(0, images_in(turns) - self.without_images),
        )

    @cached_property
    def _before(self) -> tuple[list[chat_view.ChatMessage], ...]:
        """What stood there when the round began; read once, since a view is made many times a second."""
        return chat_view.shown_columns(self.conversation.turns, len(self.cast.speakers))

    def _show(self, column: list[chat_view.ChatMessage], speech: Speech) -> None:
        """Put what is said now below the question; an old answer stays in sight until it is."""
        if speech.old is not None:
            if speech.finish is not None and not speech.replaces:
                return
            column.pop()
            if not speech.text and not speech.lost and speech.finish is None:
                column.append(chat_view.answer(text_of(speech.old.content), None, live=True))
                return
        if speech.text or not speech.lost:
            shown = speech.text or speech.finish in (None, "stop")
            if shown and (self.spoke or speech.old is not None):
                column.append(chat_view.answer(speech.whole, speech.finish, live=True))
        else:
            column.append(chat_view.answer(speech.begin + speech.lost, "lost"))

    @property
    def _too_long(self) -> bool:
        return any(speech.code == TOO_LONG for speech in self.speeches)

    def status(self) -> str:
        """What goes on, while it does."""
        if self.waiting is not None:
            return chat_view.waiting(self.waiting)
        if self.ahead:
            return chat_view.note(f"You are number {self.ahead} in line.", busy=True)
        told = ["Answering …"]
        others = "other" if len(self.cast.speakers) == 2 else "others"
        if self.apart and self.hidden:  # only some adapters answer apart: it would name them
            told.append(f"One answers after the {others}.")
        elif self.apart:
            told += [f"The {side} one answers after the {others}: {why}." for side, why in self.apart.items()]
        return chat_view.note(" ".join([*told, *filter(None, [self._left_out()])]), busy=True)

    def summary(self) -> str:
        """How it ended."""
        if told := self._problems():
            return chat_view.problem(" ".join([*told, *filter(None, [self._left_out()])]))
        counts = " · ".join(
            f"{speech.side}: {speech.tokens} token{'' if speech.tokens == 1 else 's'}"
            for speech in self.speeches
            if speech.tokens
        )
        return chat_view.note(" · ".join(filter(None, (counts, self._room(), self._left_out(), self.note))))

    def _problems(self) -> list[str]:
        found = {speech.side: speech.problem for speech in self.speeches if speech.problem}
        if len(set(found.values())) == 1 and len(found) == len(self.speeches):
            return [*dict.fromkeys(found.values())]  # it says nothing about one of them
        if self.hidden and found:
            codes = {speech.code for speech in self.speeches if speech.problem}
            return [*dict.fromkeys(found.values())] if codes == {TOO_LONG} else [_HIDDEN_FAULT]
        return [f"{side.capitalize()}: {text}" for side, text in found.items()]

    def _left_out(self) -> str:
        return left_out(self.conversation.turns, self.without_images)

    def _room(self) -> str:
        """How much of the model's context the fullest column leaves to the conversation; "" where unknown."""
        left = [
            context - prompt - speech.tokens
            for speech in self.speeches
            for prompt, context in [self.lengths.get(speech.side, (0, None))]
            if context is not None
        ]
        return f"{max(0, min(left)):,} tokens left in this conversation" if left else ""
