"""Prompts of one or more questions, answered in batches: what is asked next, what was answered, what can't be.

Free of contests and of any one job kind. A question after the first comes with the speaker's own earlier answers
in its history. Whoever resumes gives the answers that are there already, and only the others are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.gpu.answering import Answerer
from jobs.gpu.decoding import Sampling
from jobs.gpu.loading import Loaded
from jobs.gpu.prompts import Messages, check_messages, encode, from_run, lengths
from jobs.runs import RunFolder
from storage.errors import UserError


@dataclass(frozen=True)
class Said:
    """One answer: its text, why it ended ("stop" or "length"), and its tokens, as far as they were counted."""

    text: str
    finish: str
    tokens: int | None


@dataclass
class Talk:
    """One prompt with one speaker.

    Attributes:
        name: of the prompt, for people; it also seeds the noise, so that all speakers have the same.
        messages: what is given; the last one is the first question. Images by their file names in the run folder.
        following: the contents of further questions.
        answers: by question; those that are there already, at first.
        failed: one question could not be answered, so that those after it can't be asked.
        key: whatever the caller knows it by.
    """

    name: str
    messages: Messages
    following: Sequence[list[dict[str, Any]]] = ()
    answers: list[Said] = field(default_factory=list)
    failed: bool = False
    key: Any = None

    @property
    def turn(self) -> int:
        """Which question is next, from 0."""
        return len(self.answers)

    @property
    def left(self) -> int:
        """How many questions have no answer."""
        return 1 + len(self.following) - len(self.answers)

    @property
    def open(self) -> bool:
        return not self.failed and self.left > 0

    def asked(self) -> Messages:
        """The messages with which the next question is asked.

        An answer that was cut off before a word is left out, and its question is put together with the next one,
        because chat templates want the roles to take turns.
        """
        messages = [dict(message) for message in self.messages]
        for said, question in zip(self.answers, self.following, strict=False):
            if said.text or said.finish == "stop":
                messages.append({"role": "assistant", "content": [{"type": "text", "text": said.text}]})
                messages.append({"role": "user", "content": question})
            else:
                messages[-1]["content"] = [*_parts(messages[-1]["content"]), *question]
        return messages


def _parts(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


class Asker:
    """Puts questions of several talks to a model, as one batch.

    Args:
        answerer: of the model that speaks; who of its adapters does is the caller's to say (`lora.speaking`).
        note: is told why a question can't be asked, in a sentence.
        between: is called after every token; what it raises ends the work.
    """

    def __init__(
        self,
        run: RunFolder,
        loaded: Loaded,
        answerer: Answerer,
        sampling: Sampling,
        note: Callable[[str], None],
        between: Callable[[], None],
    ) -> None:
        self._run, self._loaded, self._answerer = run, loaded, answerer
        self._sampling, self._note, self._between = sampling, note, between

    def answer(
        self,
        talks: Sequence[Talk],
        tell: Callable[[Talk, Said], None],
        speaker: str = "",
        as_asked: Callable[[Messages], Messages] = lambda messages: messages,
    ) -> None:
        """Answer all questions of these talks: the open ones together, then those that come after.

        A question that can't be asked (its image is broken, it is too long) gets a note and the others go on.

        Args:
            tell: is told each answer at once, before it is among the talk's.
            speaker: who answers, for notes; "" where there is only one.
            as_asked: what a speaker is asked in place of plain messages (SteerLM's attribute string).

        Raises:
            Stopped: from `between`; what was told stays.
        """
        while waiting := [talk for talk in talks if talk.open]:
            self._between()
            ready = []
            for talk in waiting:
                try:
                    messages = talk.asked()
                    check_messages(messages, "it")
                    ready.append((talk, from_run(self._run, as_asked(messages))))
                except UserError as error:
                    self._leave_out(talk, speaker, str(error))
            fitting, inputs = self._fitting(ready, speaker)
            if not fitting:
                continue
            found = self._answerer.answers(
                [messages for _, messages in fitting],
                [f"{talk.name}/{talk.turn}" for talk, _ in fitting],
                1,
                self._sampling,
                between=self._between,
                inputs=inputs,
            )
            for (talk, _), (answer,) in zip(fitting, found, strict=True):
                text = answer.text(self._loaded.processor.tokenizer)
                said = Said(text, answer.finish, len(answer.tokens))
                tell(talk, said)
                talk.answers.append(said)

    def _fitting(
        self, ready: list[tuple[Talk, Messages]], speaker: str
    ) -> tuple[list[tuple[Talk, Messages]], dict[str, Any]]:
        """Those whose question and answer fit the model's context, with their inputs."""
        if not ready:
            return [], {}
        inputs = encode(self._loaded.processor, [messages for _, messages in ready])
        context, room = self._loaded.context, self._sampling.max_new_tokens
        if context is None:
            return ready, inputs
        fits = []
        for (talk, messages), length in zip(ready, lengths(inputs), strict=True):
            if length + room <= context:
                fits.append((talk, messages))
            else:
                why = f"its {length} tokens and an answer of {room} exceed the model's {context}"
                self._leave_out(talk, speaker, f"{why}. Shorten it, or lower max_new_tokens.")
        if len(fits) < len(ready) and fits:
            inputs = encode(self._loaded.processor, [messages for _, messages in fits])
        return fits, inputs

    def _leave_out(self, talk: Talk, speaker: str, why: str) -> None:
        talk.failed = True
        self._note(left_out(talk, speaker, why))


def left_out(talk: Talk, speaker: str, why: str) -> str:
    """That a question was not answered, for people."""
    question = f", question {talk.turn + 1}," if talk.following else ""
    of = f" for {speaker}" if speaker else ""
    return f"Prompt {talk.name}{question} is left out{of}: {why}"
