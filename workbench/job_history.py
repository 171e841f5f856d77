"""A job's attempts, their logs and what a search found, as HTML; and how far an attempt came."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape

from jobs.causes import Cause
from jobs.runs import RunFolder
from storage.lifecycle import ENDED, JobStatus
from storage.records import Attempt, Job
from storage.units import in_words
from workbench.job_logs import Found, Match, Part
from workbench.job_words import counted, duration, seconds_between, when

_TOLD = 256_000  # bytes of events before an attempt's end in which its last progress is looked for

CAUSES: Mapping[str, str] = {
    Cause.NONE: "",
    Cause.STOP: "asked to stop",
    Cause.SETTING: "something that it cannot work with",
    Cause.BUG: "an error that nobody foresaw",
    Cause.MEMORY: "out of memory",
    Cause.KERNEL: "ended by the kernel for memory",
    Cause.KILLED: "killed by a signal",
    Cause.GONE: "gone without a word",
    Cause.DISK: "the disk was full",
    Cause.NETWORK: "the network",
}

#: Causes whose words, with the signal's name, say all that the reason says.
_SAID = frozenset({Cause.KERNEL, Cause.KILLED, Cause.GONE})


def reached(run: RunFolder, attempts: Sequence[Attempt]) -> dict[int, str]:
    """How far each attempt came, by its number: the last progress that it told ("120 of 400 steps"), "" for none.

    Attempts share events.jsonl; each one's part ends where reading it ended.
    """
    found, begin = {}, 0
    for attempt in attempts:
        found[attempt.number] = _last_progress(run, begin, attempt.event_offset)
        begin = attempt.event_offset
    return found


def _last_progress(run: RunFolder, begin: int, end: int) -> str:
    first = max(begin, end - _TOLD)
    try:
        with run.events.open("rb") as file:
            file.seek(first)
            data = file.read(max(0, end - first))
    except OSError:  # the folder is in the bin, or moved away
        return ""
    for line in reversed(data.split(b"\n")):
        if b'"progress"' not in line[:40]:
            continue
        try:
            event = json.loads(line)
            done, total = float(event["done"]), float(event["total"])
        except (ValueError, KeyError, TypeError):  # the line that the part begins in
            continue
        of = f" of {counted(total)}" if total > 0 else ""
        return f"{counted(done)}{of} {event.get('unit', '')}".rstrip()
    return ""


def exit_words(code: int | None) -> str:
    """An exit code, or the name of the signal that ended the process; "" where nobody saw it end."""
    if code is None:
        return ""
    if code >= 0:
        return str(code)
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def attempts_table(attempts: Sequence[Attempt], far: Mapping[int, str], chosen: int | None, now: datetime) -> str:
    """All attempts, newest first, each with a button that shows its part of the log; "" for none.

    Args:
        far: how far each came, by its number.
        chosen: the one whose log is shown; None for the log's end, whoever wrote it.
    """
    if not attempts:
        return '<p class="plumb-note">It has not been started yet.</p>'
    rows = "".join(_attempt(attempt, far.get(attempt.number, ""), chosen, now) for attempt in attempts[::-1])
    names = ("Attempt", "Began", "Took", "Came to", "Ended", "Exit", "Log")
    heads = "".join(f"<th scope=col>{name}</th>" for name in names)
    return (
        f'<div class="plumb-wide-table" tabindex="0" role="region" aria-label="Attempts">'
        f'<table class="plumb-attempts"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _attempt(attempt: Attempt, far: str, chosen: int | None, now: datetime) -> str:
    end = attempt.ended_at or now.isoformat()
    cause = CAUSES.get(attempt.cause, attempt.cause)
    ended = escape(attempt.outcome or "at work")
    if cause:
        ended += f": {escape(cause)}"
    if attempt.reason:
        ended += f'<span class="plumb-why">{escape(attempt.reason)}</span>'
    pressed = "true" if attempt.number == chosen else "false"
    button = (
        f'<button type="button" class="pb-button small" data-attempt="{attempt.number}" aria-pressed="{pressed}" '
        f'aria-label="Log of attempt {attempt.number}">Show</button>'
    )
    cells = (
        when(attempt.started_at, now),
        duration(seconds_between(attempt.started_at, end)),
        escape(far) or "–",
        ended,
        escape(exit_words(attempt.exit_code)) or "–",
        button,
    )
    inner = "".join(f"<td>{cell}</td>" for cell in cells)
    return f"<tr><th scope=row>{attempt.number}</th>{inner}</tr>"


def tries(job: Job, attempts: Sequence[Attempt], fruitless: int) -> str:
    """How often it was tried and why again, as HTML; "" where there is nothing to tell.

    Args:
        fruitless: how many attempts in a row ended without having come further.
    """
    ended = [attempt for attempt in attempts if attempt.ended_at]
    open_ = job.status not in ENDED
    if not ended or (not open_ and len(attempts) < 2):
        return ""
    last = ended[-1]
    number = len(attempts) if len(attempts) > len(ended) or not open_ else len(attempts) + 1
    words = [f"Attempt {number}" if open_ else f"{number} attempts"]
    if open_:
        why = CAUSES.get(last.cause, last.cause) or last.outcome or ""
        code = exit_words(last.exit_code)
        words[0] += f"; tried again after: {why}{f' ({code})' if code and code != '0' else ''}"
        if last.reason and last.cause not in _SAID:
            words[0] += f", {_reason(last)}"
        if fruitless:
            most = job.retries + 1
            attempts_told = f"{most} such attempt{'' if most == 1 else 's'}"
            words.append(f"{fruitless} in a row came no further; it gives up after {attempts_told}")
    return f'<p class="plumb-note plumb-tries">{escape(". ".join(words))}.</p>'


def _reason(attempt: Attempt) -> str:
    """The first sentence of why it ended: the rest stands in the table of attempts."""
    first = re.split(r"(?<=[.!?])\s", attempt.reason.strip(), maxsplit=1)[0]
    return first.rstrip(".")[:160]


def log_view(part: Part, status: JobStatus, notes: Sequence[str] = (), attempt: int | None = None) -> str:
    """What the worker told, and the log's end; the style sheet keeps its last line in view."""
    told = "".join(f"<li>{escape(note)}</li>" for note in notes)
    told = f'<ul class="plumb-notes">{told}</ul>' if told else ""
    head = ""
    if attempt is not None:
        cut = "the last lines of " if part.cut else ""
        head = (
            f'<p class="plumb-note">Attempt {attempt}: {cut}{in_words(part.size)}. '
            '<button type="button" class="plumb-link" data-attempt="0">Show the newest instead</button></p>'
        )
    if not part.text.strip():
        if attempt is None and told:
            return told
        empty = "The worker wrote nothing." if status in ENDED else "Nothing was written yet."
        return f'{told}{head}<p class="plumb-note">{empty}</p>'
    name = "Log" if attempt is None else f"Log of attempt {attempt}"
    return (
        f'{told}{head}<div class="plumb-log" tabindex="0" role="region" aria-label="{name}">'
        f"<pre>{escape(part.text)}</pre></div>"
    )


def downloads(job: Job, size: int, has_log: bool, attempt: int | None = None) -> str:
    """Links to the log and to the run folder.

    Args:
        size: bytes of all files in the run folder, as its download unpacked takes; 0 where it is gone.
        attempt: the one whose part of the log is shown.
    """
    links = []
    if has_log:
        links.append(f'<a href="/api/jobs/{job.id}/log" download>Download the log</a>')
        if attempt is not None:
            links.append(f'<a href="/api/jobs/{job.id}/log?attempt={attempt}" download>of attempt {attempt}</a>')
    if size:
        links.append(
            f'<a href="/api/jobs/{job.id}/folder.zip" download>Download the run folder</a> ({in_words(size)})'
        )
    return f'<p class="plumb-note plumb-downloads">{" · ".join(links)}</p>' if links else ""


def found_view(found: Found, wanted: str, shown: int) -> str:
    """The matching lines with their numbers and neighbours.

    Args:
        shown: how many matches were shown before, where the search went on.
    """
    if not wanted:
        return ""
    number = shown + len(found.matches)
    lines = f"{number:,} line{'' if number == 1 else 's'}"
    if found.rest is not None:
        where = f"{in_words(found.rest.offset)} of {in_words(found.size)} searched so far"
    else:
        where = f"all of {in_words(found.size)} searched"
    head = f'<p class="plumb-note" role="status">{lines} with “{escape(wanted)}”; {where}.</p>'
    if not found.matches:
        return head
    entries = "".join(_match(match, wanted) for match in found.matches)
    return f'{head}<ol class="plumb-found" tabindex="0" aria-label="Lines that match">{entries}</ol>'


def _match(match: Match, wanted: str) -> str:
    pattern = re.compile(re.escape(wanted), re.IGNORECASE | re.ASCII)
    marked, place = "", 0
    for hit in pattern.finditer(match.text):
        marked += f"{escape(match.text[place : hit.start()])}<mark>{escape(hit.group())}</mark>"
        place = hit.end()
    marked += escape(match.text[place:])

    lines = [*map(escape, match.before), f"<b>{marked}</b>", *map(escape, match.after)]
    first = match.line - len(match.before)
    text = "".join(f'<span data-line="{first + place:,}">{line}\n</span>' for place, line in enumerate(lines))
    return f"<li><pre>{text}</pre></li>"
