"""The `evaluate` job: one model answers a benchmark's items, batch by batch, and rules grade what they can."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jobs import steerlm
from jobs.benchmarks.registry import BENCHMARKS
from jobs.config_evaluation import EvaluateConfig
from jobs.event_file import read_events
from jobs.gpu.answering import Answerer
from jobs.gpu.decoding import Sampling
from jobs.gpu.devices import claim_device
from jobs.gpu.loading import load_for
from jobs.gpu.lora import attach, frozen_adapter, speaking
from jobs.gpu.outside_talks import OUTSIDE_AT_ONCE, converse
from jobs.gpu.prompts import Messages, chunks, image_names
from jobs.gpu.talks import Asker, Said, Talk
from jobs.gpu.text_models import reads_text_alone
from jobs.grading import by_rules
from jobs.item_rows import item_of
from jobs.places import models_folder
from jobs.reporter import Reporter, Stopped
from jobs.runs import JobFile, RunFolder
from storage.errors import PlumbError, UserError
from storage.speakers import Speaker

ADAPTER = "evaluated"


def evaluate(run: RunFolder, job: JobFile, config: EvaluateConfig, reporter: Reporter) -> None:
    """Write an `item_answer` event for every answer as it comes, then grade all of them by rules.

    An item that can't be asked (its image is broken, it is too long) gets a note and the others go on; it has no
    grade. Answers that an earlier attempt wrote are not written again.

    Raises:
        Stopped: asked to stop; what is written stays.
        PlumbError: nothing could be answered; see also `loading.load` and `outside.ask`.
    """
    rows = list(run.rows())
    work = _Work(config, reporter, rows, written_before(run))
    work.tell_progress()
    if any(talk.open for talk in work.talks):
        if config.outside:
            _ask_outside(run, config, work)
        else:
            _ask_own(run, job, config, work)
    answers = {talk.name: [said.text for said in talk.answers] for talk in work.talks if talk.answers}
    if not answers:
        raise PlumbError(f"None of the {len(rows)} items could be answered; the notes say why.")
    if not by_rules(run, reporter, config.benchmark, [item_of(row) for row in rows], answers):
        title = BENCHMARKS[config.benchmark].title
        reporter.note(f"{title} is graded by a judge: choose one on the Evaluation page.")


def written_before(run: RunFolder) -> dict[int, list[Said]]:
    """The answers that events.jsonl holds, by item, in the order of their questions."""
    written: dict[int, list[Said]] = {}
    for event in read_events(run.events):
        if event["kind"] == "item_answer":
            said = Said(event["text"], event["finish"], event["tokens"])
            written.setdefault(event["number"], []).append(said)
    return written


class _Work:
    """What is asked, and where the answers go."""

    def __init__(
        self,
        config: EvaluateConfig,
        reporter: Reporter,
        rows: Sequence[Mapping[str, Any]],
        written: Mapping[int, list[Said]],
    ) -> None:
        self.config, self.reporter = config, reporter
        self.talks = [
            Talk(row["id"], list(row["messages"]), row["following"], list(written.get(row["number"], [])), key=row)
            for row in rows
        ]
        self._total = sum(1 + len(row["following"]) for row in rows)
        self._lock = threading.Lock()
        self._passed = sum(len(talk.answers) for talk in self.talks)

    def sampling(self, talk: Talk) -> Sampling:
        """How its answers are drawn: the protocol's temperature, and otherwise greedily."""
        return Sampling(talk.key["temperature"], 1.0, self.config.longest, self.config.seed)

    def tell(self, talk: Talk, said: Said) -> None:
        """Write an answer; may be called from several threads."""
        with self._lock:
            self._passed += 1
            self.reporter.event(
                "item_answer",
                number=talk.key["number"],
                turn=talk.turn,
                text=said.text,
                finish=said.finish,
                tokens=said.tokens,
            )

    def pass_over(self, talks: Sequence[Talk]) -> None:
        """Count what will not be answered now, and say how far the job is."""
        with self._lock:
            self._passed += sum(talk.left for talk in talks if talk.failed)
        self.tell_progress()

    def tell_progress(self) -> None:
        self.reporter.progress(self._passed, self._total, "answers")

    def batches(self) -> list[Sequence[Talk]]:
        """Open talks of one temperature together, long prompts beside long ones: padding is computed, too."""
        found: list[Sequence[Talk]] = []
        waiting = [talk for talk in self.talks if talk.open]
        for temperature in sorted({talk.key["temperature"] for talk in waiting}):
            alike = [talk for talk in waiting if talk.key["temperature"] == temperature]
            alike.sort(key=lambda talk: (len(image_names(talk.messages)), _letters(talk.messages)))
            found += chunks(alike, self.config.batch_size)
        return found


def _letters(messages: Messages) -> int:
    return sum(
        len(part.get("text", ""))
        for message in messages
        for part in (
            message["content"] if isinstance(message["content"], list) else [{"text": message["content"]}]
        )
    )


def _ask_own(run: RunFolder, job: JobFile, config: EvaluateConfig, work: _Work) -> None:
    """A model of our own, with its adapter where one is asked for."""
    reporter = work.reporter
    device = claim_device(job.device)
    loaded = load_for(config, device, models_folder(run, job), reporter, text_alone=config.adapter is None)
    if reads_text_alone(loaded.processor) and any(image_names(talk.messages) for talk in work.talks):
        raise UserError(
            f"benchmark = {config.benchmark!r} shows pictures, and {config.model!r} reads text alone. Choose a "
            "text benchmark (mt-bench, alpaca-eval, ifeval), or a model that sees."
        )
    adapters = {}
    if config.adapter is not None:
        reporter.phase("loading the adapter")
        found = frozen_adapter(run, config.adapter)
        adapters = {ADAPTER: (found.folder, found.name)}
    model = attach(loaded, adapters)
    answerer = Answerer(model, loaded.processor, reporter.note)
    values = config.attributes.model_dump()

    def steered(method: str) -> Callable[[Messages], Messages]:
        if method != steerlm.METHOD:
            return list
        return lambda messages: steerlm.with_attributes(messages, values)

    reporter.phase("answering")
    with speaking(model, ADAPTER if adapters else None):
        for batch in work.batches():
            reporter.check_stop()
            asker = Asker(run, loaded, answerer, work.sampling(batch[0]), reporter.note, reporter.check_stop)
            asker.answer(batch, work.tell, as_asked=steered(batch[0].key["method"]))
            work.pass_over(batch)


def _ask_outside(run: RunFolder, config: EvaluateConfig, work: _Work) -> None:
    """A model of an endpoint: several items at once, each with its questions one after the other."""
    from jobs.settings import load_settings

    settings, speaker, closing = load_settings(), Speaker(config.outside), threading.Event()

    def check() -> None:
        if closing.is_set():
            raise Stopped("stopped by request")
        work.reporter.check_stop()

    def answer(talk: Talk) -> Talk:
        return converse(settings, run, speaker, talk, work.sampling(talk), work.tell, check, work.reporter.note)

    work.reporter.phase(f"asking {config.outside}")
    with ThreadPoolExecutor(OUTSIDE_AT_ONCE, thread_name_prefix="outside") as pool:
        begun = [pool.submit(answer, talk) for talk in work.talks if talk.open]
        try:
            for future in begun:
                work.pass_over([future.result()])
        finally:
            closing.set()
            for future in begun:
                future.cancel()
