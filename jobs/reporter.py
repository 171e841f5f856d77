"""A worker's way out: events.jsonl in its run folder, appended by the worker alone.

Every event is one JSON line with `kind` and `time` (seconds since the epoch). The supervisor reads them by
byte offset. Kinds:

    started    pid, pid_started, versions
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
    end        status ("done" | "failed" | "stopped"), reason
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

from jobs.runs import RunFolder

JUDGES = ("google-generativeai", "google-genai", "openai")


class Stopped(Exception):
    """The job was asked to stop and has put its things in order."""


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
        self.event("started", pid=os.getpid(), pid_started=psutil.Process().create_time(), versions=versions())
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed.set()
        self._thread.join(timeout=2)
        self._file.close()

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

    def end(self, status: str, reason: str = "") -> None:
        self.event("end", status=status, reason=reason)

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
                print(f"heartbeat: {error}", file=sys.stderr)


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
