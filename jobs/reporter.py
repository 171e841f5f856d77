"""A worker's way out: events.jsonl in its run folder, appended by the worker alone.

Every event is one JSON line with `kind` and `time` (seconds since the epoch). The supervisor reads them by
byte offset. Kinds:

    started    pid, pid_started, versions, memory_kills (jobs/kernel.py)
    phase      text                                   what it is doing ("loading the model")
    progress   done, total, unit
    metric     step, values {name: number}
    candidate  sample_id, number, text, tokens, finish ("stop" | "length"), settings {…}
    reply      key, part, sample_id, text, finish, detail, tokens_in, tokens_out, cost
                                                      of a remote model, written before anything is made of it
    judgement  sample_id, rater {name, version, mode}, state, raw, reason, scores [{candidate_id, five metrics,
               position}], points [{candidate_id, number, met}], checklist_id, key, note, tokens_in, tokens_out,
               cost
    checklist  sample_id, model, instructions, state, items [{text, essential}], raw, reason, tokens_in,
               tokens_out, cost
    answers    step, answers [{number, prompt, text, tokens, sample_id, image}]   to a training's watched items
    adapter    path (relative to the run folder), name, base_model, method, settings {…}
    endpoint   port                                   of a `serve` job, on loopback
    note       text                                   for the person who reads the run
    heartbeat
    end        status ("done" | "failed" | "stopped" | "paused"), reason, cause (jobs/causes.py)

Beside it lies `reserve`, while a worker is at work: some bytes that make room for its last word on a full disk.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import threading
import time
from typing import Any

import psutil

from jobs.causes import Cause, is_disk_full
from jobs.kernel import memory_kills
from jobs.runs import RunFolder

HEADING = "=== "  #: before the first line of each attempt in log.txt
RESERVE = "reserve"
RESERVE_BYTES = 65_536
#: Characters of a reason: it stands on a page, and the supervisor looks for it in the end of the file.
LONGEST_REASON = 4_000

JUDGES = ("google-generativeai", "google-genai", "openai")


class Stopped(Exception):
    """The job was asked to stop and has put its things in order."""


class Terminated(Stopped):
    """The process was told to end by a signal, wherever it was in its work."""


class Reporter:
    """Appends events; safe to call from several threads.

    The heartbeat runs in a thread of its own, because loading 26 GB takes minutes in which the main
    thread says nothing.
    """

    def __init__(self, run: RunFolder, heartbeat_seconds: float = 5.0) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._file = run.events.open("ab", buffering=0)
        self._torn = False
        self._end_torn_line()
        self._beat = heartbeat_seconds
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._heartbeat, name="heartbeat", daemon=True)

    def _end_torn_line(self) -> None:
        """A worker that died in mid-line left no newline: end it, so that this one's first event is whole."""
        if self._run.events.stat().st_size:
            with self._run.events.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    self._file.write(b"\n")

    def __enter__(self) -> Reporter:
        self._set_aside()
        self.event(
            "started",
            pid=os.getpid(),
            pid_started=psutil.Process().create_time(),
            versions=versions(),
            memory_kills=memory_kills(),
        )
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed.set()
        self._thread.join(timeout=2)
        self._file.close()
        self._give_back()

    def _set_aside(self) -> None:
        """Real bytes, which no file system keeps as a hole or packs; where there is no room, there is none."""
        reserve = self._run.path / RESERVE
        try:
            if reserve.exists() and reserve.stat().st_size == RESERVE_BYTES:
                return  # of a worker that was killed
            with reserve.open("wb") as file:
                file.write(os.urandom(RESERVE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._give_back()
            if not is_disk_full(error):
                raise

    def _give_back(self) -> None:
        try:
            (self._run.path / RESERVE).unlink(missing_ok=True)
        except OSError:  # a folder that is read-only by now: nothing depends on it
            pass

    def event(self, kind: str, **fields: Any) -> None:
        """Append one event as one write, so that a reader sees whole lines or a torn last one."""
        line = json.dumps({"kind": kind, "time": time.time(), **fields}, ensure_ascii=False, allow_nan=False)
        # Half a character (a lone surrogate, from a model's reply, say) has no UTF-8: it becomes "?".
        data = line.encode("utf-8", errors="replace") + b"\n"
        with self._lock:
            whole = b"\n" + data if self._torn else data
            self._torn = self._file.write(whole) != len(whole)  # a full disk takes a part, without an error
        if self._torn:
            raise OSError(errno.ENOSPC, "The disk is full: an event was not written whole", str(self._run.events))

    def phase(self, text: str) -> None:
        self.event("phase", text=text)

    def progress(self, done: float, total: float, unit: str = "items") -> None:
        self.event("progress", done=done, total=total, unit=unit)

    def metric(self, step: int, values: dict[str, float]) -> None:
        """Numbers at a step; those that are not finite are named in a note, JSON has no word for them."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if finite:
            self.event("metric", step=step, values=finite)
        for name in values.keys() - finite.keys():
            self.note(f"step {step}: {name} is {values[name]}")

    def note(self, text: str) -> None:
        self.event("note", text=text)

    def end(self, status: str, reason: str = "", cause: str = Cause.NONE) -> None:
        """The last word; on a full disk it takes the place of the reserve.

        Raises:
            OSError: it could not be written all the same.
        """
        words = {"status": status, "reason": reason[:LONGEST_REASON], "cause": str(cause)}
        try:
            self.event("end", **words)
        except OSError as error:
            if not is_disk_full(error):
                raise
            self._give_back()
            self.event("end", **words)

    def stop_requested(self) -> bool:
        return self._run.stop_requested()

    def check_stop(self) -> None:
        """To be called between items.

        Raises:
            Stopped: the run folder's `control` asks for it.
        """
        if self.stop_requested():
            raise Stopped("stopped by request")

    def _heartbeat(self) -> None:
        while not self._closed.wait(self._beat):
            try:
                self.event("heartbeat")
            except OSError as error:  # a full disk, say: the next beat may come through
                say(f"heartbeat: {error}")


def say(text: str) -> None:
    """A line for the log, which may lie on a disk that is full."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        pass


def versions() -> dict[str, str]:
    """Versions of what decides a result, read from metadata: nothing is imported."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for package in ("torch", "transformers", "peft", "trl", "accelerate", *JUDGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
