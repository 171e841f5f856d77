"""The `generate` job with an outside model: n candidates for each sample, asked of an endpoint. Torch-free.

Each candidate is a request of its own with a seed of its own, since not every server knows `n`, and one that is
cut off costs one answer alone.
"""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict, deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from jobs.configs import GenerateConfig
from jobs.outside import OutsideAnswer, ask, with_images
from jobs.outside_errors import OutsideError
from jobs.reporter import Reporter, Stopped
from jobs.runs import JobFile, RunFolder
from jobs.settings import Settings, load_settings
from jobs.written import written_before
from storage.errors import PlumbError, UserError
from storage.speakers import Speaker

#: Requests at once, at the most: enough for a server that batches.
MOST_AT_ONCE = 32
#: Samples in a row that got nothing, before the endpoint is taken to be out of order.
FAILED_IN_A_ROW = 8
POLL_SECONDS = 0.25

Row = dict[str, Any]


@dataclass(frozen=True)
class _Wanted:
    """One candidate that is to be asked for."""

    row: Row
    number: int

    @property
    def sample(self) -> Any:
        return self.row["sample_id"]


def generate_outside(run: RunFolder, job: JobFile, config: GenerateConfig, reporter: Reporter) -> None:
    """Write a `candidate` event for every answer of the endpoint, as they come.

    A sample that the endpoint refuses (too long, an image that it can't read) gets a note and the others go on.
    Candidates that an earlier attempt wrote are not asked for again.

    Raises:
        Stopped: asked to stop; what is written stays, and what was on its way is dropped.
        OutsideError: the endpoint is down or out of order, doesn't accept the key, doesn't know the model.
        PlumbError: no rows, or nothing could be answered.
    """
    rows = list(run.rows())
    if not rows:
        raise UserError("There are no samples to answer; choose others, or clear 'only what is missing'.")
    _Generation(run, config, reporter, load_settings(), rows).work()


def seed_of(seed: int, sample: Any, number: int) -> int:
    """A request's seed: the same for the same candidate, whatever was asked before. 0 to 2³¹ − 1."""
    digest = hashlib.sha256(f"{seed}/{sample}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class _Generation:
    """Rows in, candidates out; several requests at once."""

    def __init__(
        self, run: RunFolder, config: GenerateConfig, reporter: Reporter, settings: Settings, rows: list[Row]
    ) -> None:
        self._run, self._config, self._reporter, self._settings = run, config, reporter, settings
        self._speaker = Speaker(config.outside)
        self._rows = rows
        written = written_before(run)
        self._todo = deque(
            _Wanted(row, number)
            for row in rows
            for number in range(config.candidates)
            if number not in written[row["sample_id"]]
        )
        self._left: defaultdict[Any, int] = defaultdict(int)  # candidates of a sample that are still to come
        for one in self._todo:
            self._left[one.sample] += 1
        self._waiting = len(self._left)  # samples
        self._failed: dict[Any, PlumbError] = {}
        self._in_a_row = 0
        self._stopping = threading.Event()

    def work(self) -> None:
        self._tell_progress()
        if not self._todo:
            return
        self._reporter.phase(f"asking {self._config.outside}")
        at_once = min(MOST_AT_ONCE, self._config.batch_size * self._config.candidates)
        pending: dict[Future[OutsideAnswer], _Wanted] = {}
        with ThreadPoolExecutor(at_once, thread_name_prefix="outside") as pool:
            try:
                while True:
                    self._reporter.check_stop()
                    while self._todo and len(pending) < at_once:
                        one = self._todo.popleft()
                        if one.sample not in self._failed:
                            pending[pool.submit(self._ask, one)] = one
                    if not pending:
                        break
                    for future in wait(pending, POLL_SECONDS, FIRST_COMPLETED).done:
                        self._take(pending.pop(future), future)
            finally:  # whatever ends it, threads that wait shall not
                self._stopping.set()
        self._conclude()

    def _ask(self, one: _Wanted) -> OutsideAnswer:
        config = self._config
        return ask(
            self._settings,
            self._speaker,
            with_images(self._run, one.row["messages"]),
            temperature=config.temperature,
            top_p=config.top_p,
            seed=seed_of(config.seed, one.sample, one.number),
            max_tokens=config.max_new_tokens,
            check=self._check,
        )

    def _check(self) -> None:
        """Called by every thread while it waits."""
        if self._stopping.is_set():
            raise Stopped("stopped by request")

    def _take(self, one: _Wanted, future: Future[OutsideAnswer]) -> None:
        """What came of a request. Raises OutsideError where nothing more can be asked."""
        try:
            answer = future.result()
        except UserError as error:
            self._fail(one, error)
            self._in_a_row = 0  # it answers, though not this
        except OutsideError as error:
            if error.kind in ("unset", "key", "model", "down"):
                raise
            self._in_a_row += one.sample not in self._failed
            self._fail(one, error)
            if self._in_a_row >= FAILED_IN_A_ROW:
                raise
        else:
            self._in_a_row = 0
            self._report(one, answer)
            self._left[one.sample] -= 1
            if not self._left[one.sample]:
                self._tell_progress()

    def _fail(self, one: _Wanted, error: PlumbError) -> None:
        """Leave a sample out, once, with what is still to come of it."""
        if one.sample not in self._failed:
            self._failed[one.sample] = error
            self._reporter.note(f"Sample {one.sample} is left out: {error}")
            self._tell_progress()

    def _report(self, one: _Wanted, answer: OutsideAnswer) -> None:
        config = self._config
        self._reporter.event(
            "candidate",
            sample_id=one.sample,
            number=one.number,
            text=answer.text,
            tokens=answer.tokens,
            finish=answer.finish,
            settings={
                "temperature": config.temperature,
                "top_p": config.top_p,
                "max_new_tokens": config.max_new_tokens,
                "seed": config.seed,
                "request_seed": seed_of(config.seed, one.sample, one.number),
                "model": config.outside,
                "adapter": None,
            },
        )

    def _tell_progress(self) -> None:
        open_ones = sum(bool(left) and sample not in self._failed for sample, left in self._left.items())
        self._reporter.progress(len(self._rows) - open_ones, len(self._rows), "samples")

    def _conclude(self) -> None:
        """Raise where nothing at all could be answered."""
        if len(self._failed) < self._waiting:
            return
        for error in self._failed.values():
            if isinstance(error, OutsideError) and not isinstance(error, UserError):
                raise error  # of the endpoint, not of the samples: another try may help
        raise PlumbError(f"None of the {self._waiting} samples could be answered; the notes say why for each.")
