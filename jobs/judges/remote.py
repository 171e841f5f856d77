"""Judge and checklist jobs that ask a remote model: one bounded pool over the rows of a run folder.

The reply is in events.jsonl before anything is made of it, so a worker that is killed pays again for nothing but
what was on its way. Limits, budget and the state of the provider are the ledger's, shared by all workers.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

from jobs.configs import ChecklistConfig, GradeConfig, JudgeConfig
from jobs.event_file import read_events
from jobs.judges.asking import Asker, Kept, as_event, kept_of
from jobs.judges.connect import connected
from jobs.judges.ledger import BudgetSpent, Ledger
from jobs.places import judges_folder
from jobs.reporter import Reporter, Stopped
from jobs.rubric import parse_rubric
from jobs.runs import PAUSE, STOP, JobFile, RunFolder
from jobs.settings import load_settings

POLL_SECONDS = 0.25
TELL_SECONDS = 1.0

Row = dict[str, Any]


def judge_remotely(run: RunFolder, job: JobFile, config: JudgeConfig, reporter: Reporter) -> None:
    """Judge every row that the run folder does not hold a judgement of yet.

    Raises:
        Stopped: by request, or because the budget is used up.
        PlumbError: nothing more can be asked (a wrong key, an unknown model, refusals in a row).
    """
    text = (run.path / "data" / "rubric.yaml").read_text(encoding="utf-8")
    rubric = parse_rubric(text, "the rubric in the run folder")
    how = f"judging with {config.model}"
    _Pool(run, job, config, reporter, how).work("judgement", lambda asker, row: asker.judge(row, config, rubric))


def write_checklists(run: RunFolder, job: JobFile, config: ChecklistConfig, reporter: Reporter) -> None:
    """Write a checklist for every row that has none in the run folder; raises as `judge_remotely`."""
    how = f"writing checklists with {config.model}"
    _Pool(run, job, config, reporter, how).work("checklist", lambda asker, row: asker.write_checklist(row, config))


def ask_about_items(run: RunFolder, job: JobFile, config: GradeConfig, reporter: Reporter) -> None:
    """Put every request of the run folder that has no `item_reply` yet to a judge; raises as `judge_remotely`."""
    how = f"grading with {config.model}"
    _Pool(run, job, config, reporter, how, "requests").work("item_reply", lambda asker, row: asker.reply(row))


class _Pool:
    """Rows in, events out, with what it costs told along the way."""

    def __init__(
        self,
        run: RunFolder,
        job: JobFile,
        config: JudgeConfig | ChecklistConfig | GradeConfig,
        reporter: Reporter,
        how: str,
        unit: str = "samples",
    ) -> None:
        self._run, self._config, self._reporter, self._how = run, config, reporter, how
        self._unit = unit
        self._folder = judges_folder(run, job)
        self._ledger = Ledger(self._folder)
        # A database that was begun anew counts its jobs from 1 again: the moment makes the account its own.
        self._account = f"job-{job.job_id}-{job.created_at}"
        self._stopping = threading.Event()
        self._going = threading.Event()
        self._going.set()
        self._lock = threading.Lock()
        self._asked: deque[float] = deque()
        self._tokens = [0, 0]
        self._done = self._total = 0  # rows
        self._told = 0.0
        self._last: tuple[object, ...] = ()
        self._said = ""  # what is waited for

    def work(self, kind: str, make: Callable[[Asker, Row], Row]) -> None:
        """Make an event of this kind of each row that has none yet."""
        events = [event for event in read_events(self._run.events) if event["kind"] in ("reply", kind)]
        done = {event["sample_id"] for event in events if event["kind"] == kind}
        kept = self._earlier(kept_of(events))
        del events  # megabytes, of a long job
        rows = list(self._run.rows())
        todo = deque(row for row in rows if row["sample_id"] not in done)
        self._total, self._done = len(rows), len(rows) - len(todo)
        self._reporter.phase(self._how)
        self._progress(always=True)
        self._listen()  # a worker that takes over asks nothing before it knows what is asked of it
        config = self._config
        try:
            with connected(
                config,
                load_settings(),
                self._ledger,
                self._folder,
                self._account,
                check=self._check,
                tell=self._tell,
                threads=config.concurrency,
            ) as caller:
                asker = Asker(caller, self._run.image, self._keep, config.second_tries, kept)
                ended = self._ask_all(kind, partial(make, asker), todo)
        finally:
            self._progress(always=True)
        if isinstance(ended, BudgetSpent):
            raise Stopped(
                f"{ended} {self._done:,} of {self._total:,} {self._unit} are done and stay so: “Use these "
                "settings again” with a larger budget goes on with the rest."
            )
        if ended is not None:
            raise ended

    def _ask_all(self, kind: str, make: Callable[[Row], Row], todo: deque[Row]) -> BaseException | None:
        """All rows through the pool; returns what ended it before they were done, None if nothing did."""
        ended: BaseException | None = None
        pending: set[Future[Row]] = set()
        with ThreadPoolExecutor(self._config.concurrency, thread_name_prefix="ask") as pool:
            try:
                while True:
                    if ended is None and self._stopping.is_set():
                        ended = Stopped("stopped by request")
                    while todo and ended is None and len(pending) < self._config.concurrency:
                        pending.add(pool.submit(make, todo.popleft()))
                    if not pending:
                        return ended
                    finished, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
                    for future in finished:
                        error = future.exception()
                        if error is None:
                            self._reporter.event(kind, **future.result())
                            self._done += 1
                        elif ended is None or isinstance(ended, Stopped):
                            ended = error  # the first that says more than "stopped"
                            self._stopping.set()
                    self._listen()
                    self._progress()
            finally:  # whatever ends it, threads that wait shall not
                self._stopping.set()
                self._going.set()

    def _earlier(self, kept: list[Kept]) -> list[Kept]:
        """Replies of earlier attempts; what they cost counts, whatever became of the ledger."""
        self._ledger.floor(self._account, sum(reply.cost for reply in kept), len(kept))
        self._tokens = [sum(reply.tokens_in for reply in kept), sum(reply.tokens_out for reply in kept)]
        return kept

    def _keep(self, reply: Kept, sample_id: int) -> None:
        self._reporter.event("reply", sample_id=sample_id, **as_event(reply))
        with self._lock:
            self._asked.append(time.monotonic())
            self._tokens[0] += reply.tokens_in
            self._tokens[1] += reply.tokens_out

    # what is asked of the job --------------------------------------------------------------------------

    def _check(self) -> None:
        """Called by every thread while it waits."""
        while not self._going.wait(POLL_SECONDS):
            if self._stopping.is_set():
                break
        if self._stopping.is_set():
            raise Stopped("stopped by request")

    def _listen(self) -> None:
        asked = self._run.asked()
        if asked == STOP:
            self._stopping.set()
        elif asked == PAUSE and self._going.is_set():
            self._going.clear()
            self._reporter.phase("paused")
        elif asked != PAUSE and not self._going.is_set():
            self._going.set()
            self._reporter.phase(self._said or self._how)

    # what the job tells ---------------------------------------------------------------------------------

    def _tell(self, text: str) -> None:
        self._said = text
        self._reporter.phase(text or self._how)

    def _progress(self, always: bool = False) -> None:
        now = time.monotonic()
        if not always and now - self._told < TELL_SECONDS:
            return
        self._told = now
        spent = self._ledger.spent(self._account)
        with self._lock:
            while self._asked and self._asked[0] < now - 60:
                self._asked.popleft()
            span = min(60.0, now - self._asked[0]) if self._asked else 0.0
            rate = len(self._asked) * 60 / max(span, 1.0)
            tokens_in, tokens_out = self._tokens
        news = (self._done, self._total, spent.money, spent.requests, tokens_in, tokens_out)
        if news == self._last:  # a job that waits for days says nothing new every second
            return
        self._last = news
        self._reporter.progress(self._done, self._total, self._unit)
        self._reporter.metric(
            self._done,
            {
                "money": spent.money,
                "requests": spent.requests,
                "rate": rate,
                "tokens_in": tokens_in,
                "tokens_out": tokens_out,
            },
        )
