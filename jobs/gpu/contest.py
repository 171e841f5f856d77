"""The `contest` job: two or three speakers answer a list of prompts, which people then vote on."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

from jobs import steerlm
from jobs.configs import ContestConfig
from jobs.event_file import read_events
from jobs.gpu.answering import Answerer
from jobs.gpu.decoding import Sampling
from jobs.gpu.devices import claim_device
from jobs.gpu.loading import load_for
from jobs.gpu.lora import attach, frozen_adapter, speaking
from jobs.gpu.outside_talks import OUTSIDE_AT_ONCE, converse
from jobs.gpu.prompts import Messages, chunks
from jobs.gpu.talks import Asker, Said, Talk
from jobs.merged import method_of
from jobs.places import models_folder
from jobs.reporter import Reporter, Stopped
from jobs.rows import with_addresses
from jobs.runs import JobFile, RunFolder
from storage.errors import PlumbError, UserError
from storage.speakers import Speaker

Written = dict[tuple[int, int], list[Said]]  # by prompt and column: the answers, in the order of the questions


def contest(run: RunFolder, job: JobFile, config: ContestConfig, reporter: Reporter) -> None:
    """Write a `contest_answer` event for every answer, batch by batch: in each, every speaker answers all prompts.

    A prompt that a speaker can't answer (its image is broken, it is too long) gets a note and the others go on.
    Answers that an earlier attempt wrote are not written again.

    Raises:
        Stopped: asked to stop; what is written stays.
        PlumbError: no rows, or a speaker has no answer at all; see also `loading.load` and `outside.ask`.
    """
    rows = list(run.rows())
    if not rows:
        raise UserError("There are no prompts to answer; start the contest again with a list of prompts.")
    written = written_before(run)
    work = _Work(run, config, reporter, rows, written)
    work.tell_progress()
    waiting = [row for row in rows if any(talk.open for talk in work.talks(row))]
    if not waiting:
        return
    with work.speakers(job, waiting) as speakers:
        reporter.phase("answering")
        for batch in chunks(waiting, config.batch_size):
            reporter.check_stop()
            speakers.answer(batch)
    for column, spelling in enumerate(config.columns):
        if not any(place == column for _, place in written):
            told = f"None of the {len(rows)} prompts could be answered by {spelling}; the notes say why."
            raise PlumbError(told)


def written_before(run: RunFolder) -> Written:
    """What events.jsonl holds; a torn last line counts as unwritten."""
    written: Written = {}
    for event in read_events(run.events):
        if event["kind"] == "contest_answer":
            said = Said(event["text"], event["finish"], event["tokens"])
            written.setdefault((event["number"], event["column"]), []).append(said)
    return written


class _Work:
    """What is asked of whom, and where the answers go."""

    def __init__(
        self,
        run: RunFolder,
        config: ContestConfig,
        reporter: Reporter,
        rows: Sequence[dict[str, Any]],
        written: Written,
    ) -> None:
        self.run, self.config, self.reporter = run, config, reporter
        self._written = written
        self._begun = {number for number, _ in written}
        self._lock = threading.Lock()
        self._total = sum(1 + len(row["following"]) for row in rows) * len(config.columns)
        self._passed = sum(map(len, written.values()))

    def talks(self, row: dict[str, Any]) -> list[Talk]:
        """A prompt's talks, one a column."""
        return [self.talk(row, column) for column in range(len(self.config.columns))]

    def talk(self, row: dict[str, Any], column: int) -> Talk:
        messages: Messages = [dict(message) for message in row["messages"]]
        if row["system"]:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": row["system"]}]})
        answers = self._written.get((row["number"], column), [])
        return Talk(row["id"], messages, row["following"], list(answers), key=row)

    def tell(self, column: int, talk: Talk, said: Said) -> None:
        """Write an answer; may be called from several threads."""
        row, turn = talk.key, talk.turn
        told: dict[str, Any] = {}
        with self._lock:
            if turn:
                told["question"] = with_addresses(row["following"][turn - 1])
            elif row["number"] not in self._begun:
                told["prompt"] = _prompt(row)
            self.reporter.event(
                "contest_answer",
                number=row["number"],
                turn=turn,
                column=column,
                text=said.text,
                finish=said.finish,
                tokens=said.tokens,
                **told,
            )
            self._begun.add(row["number"])
            self._written.setdefault((row["number"], column), []).append(said)
            self._passed += 1

    def pass_over(self, talks: Sequence[Talk]) -> None:
        """Count the questions that will not be answered now, and say how far the job is."""
        with self._lock:
            self._passed += sum(talk.left for talk in talks if talk.failed)
        self.tell_progress()

    def tell_progress(self) -> None:
        self.reporter.progress(self._passed, self._total, "answers")

    @contextmanager
    def speakers(self, job: JobFile, waiting: Sequence[dict[str, Any]]) -> Iterator[_Speakers]:
        """Those who have something to say, ready to speak; the base is loaded if one of them is our own."""
        open_ones = {column for row in waiting for column, talk in enumerate(self.talks(row)) if talk.open}
        own = {column: one for column, one in enumerate(self.config.speakers) if not one.outside}
        outside = {column: one for column, one in enumerate(self.config.speakers) if one.outside}
        here = _Own(self, job, own) if open_ones & own.keys() else None
        if not open_ones & outside.keys():
            yield _Speakers(here, None)
            return
        there = _Outside(self, outside)
        try:
            yield _Speakers(here, there)
        finally:
            there.close()


def _prompt(row: dict[str, Any]) -> dict[str, Any]:
    """What makes a prompt's conversation (`storage.contests.add_contest_answer`)."""
    kept = {name: row[name] for name in ("id", "category", "reference", "system", "order")}
    messages = [{**one, "content": with_addresses(one["content"])} for one in row["messages"]]
    return {**kept, "messages": messages, "turns": 1 + len(row["following"])}


class _Own:
    """The speakers of our own: a base with adapters, of which one speaks at a time."""

    def __init__(self, work: _Work, job: JobFile, speakers: dict[int, Speaker]) -> None:
        config, reporter = work.config, work.reporter
        loaded = load_for(config, claim_device(job.device), models_folder(work.run, job), reporter)
        found = {
            one.adapter: frozen_adapter(work.run, one.adapter)
            for one in speakers.values()
            if one.adapter is not None
        }
        if found:
            reporter.phase("loading the adapters")
        names = {number: f"a{number}" for number in found}
        self._model = attach(loaded, {names[n]: (one.folder, one.name) for n, one in found.items()})
        self._work, self._speakers, self._names = work, speakers, names
        self._steered = {number for number, one in found.items() if one.method == steerlm.METHOD}
        self._base_steered = method_of(config.model) == steerlm.METHOD
        sampling = Sampling(config.temperature, config.top_p, config.max_new_tokens, config.seed)
        answerer = Answerer(self._model, loaded.processor, reporter.note)
        self._asker = Asker(work.run, loaded, answerer, sampling, reporter.note, reporter.check_stop)
        self._values = config.attributes.model_dump()

    def answer(self, rows: Sequence[dict[str, Any]]) -> None:
        for column, speaker in self._speakers.items():
            talks = [talk for row in rows if (talk := self._work.talk(row, column)).open]
            if not talks:
                continue
            name = None if speaker.adapter is None else self._names[speaker.adapter]
            steered = self._base_steered if speaker.adapter is None else speaker.adapter in self._steered
            tell = functools.partial(self._work.tell, column)
            with speaking(self._model, name):
                self._asker.answer(talks, tell, speaker.spelling, self._steer if steered else list)
            self._work.pass_over(talks)

    def _steer(self, messages: Messages) -> Messages:
        return steerlm.with_attributes(messages, self._values)


class _Outside:
    """Models of endpoints; several prompts are asked at once, each with its questions one after the other."""

    def __init__(self, work: _Work, speakers: dict[int, Speaker]) -> None:
        from jobs.settings import load_settings

        self._work, self._speakers = work, speakers
        self._settings = load_settings()
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(OUTSIDE_AT_ONCE, thread_name_prefix="outside")

    def begin(self, rows: Sequence[dict[str, Any]]) -> list[Future[Talk]]:
        """Ask; answers are told as they come."""
        return [
            self._pool.submit(self._converse, column, talk)
            for row in rows
            for column in self._speakers
            if (talk := self._work.talk(row, column)).open
        ]

    def end(self, begun: Sequence[Future[Talk]]) -> None:
        """Wait for what was begun. Raises what one of them met that is not of its prompt alone."""
        for future in as_completed(begun):
            self._work.pass_over([future.result()])

    def close(self) -> None:
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _check(self) -> None:
        if self._closing.is_set():
            raise Stopped("stopped by request")
        self._work.reporter.check_stop()

    def _converse(self, column: int, talk: Talk) -> Talk:
        config = self._work.config
        sampling = Sampling(config.temperature, config.top_p, config.max_new_tokens, config.seed)
        tell = functools.partial(self._work.tell, column)
        speaker, note = self._speakers[column], self._work.reporter.note
        return converse(self._settings, self._work.run, speaker, talk, sampling, tell, self._check, note)


class _Speakers:
    """All who speak in a contest."""

    def __init__(self, own: _Own | None, outside: _Outside | None) -> None:
        self._own, self._outside = own, outside

    def answer(self, rows: Sequence[dict[str, Any]]) -> None:
        """Let every speaker answer these prompts; endpoints are at work while our own speak."""
        begun = self._outside.begin(rows) if self._outside else []
        if self._own:
            self._own.answer(rows)
        if self._outside:
            self._outside.end(begun)
