"""What a benchmark is to those that run it: items to ask, a way to grade the answers, measures over the grades.

The modules of this package hold each benchmark's own rules; `registry.BENCHMARKS` names all in this one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from jobs.benchmarks.measures import Graded, Score
from storage.records import Message, Part

#: {item's id: its answers, one a question}; an item that could not be answered is missing, or has fewer.
Answers = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Item:
    """One item, as it is asked.

    Attributes:
        id: the benchmark's own, each once.
        messages: what is given; the last one is the first question. Images in them are the paths of files.
        following: the contents of further questions (MT-Bench's second turn).
        categories: the groups that it counts in.
        reference: answers that the benchmark holds up as good, one a question, for judges and for people.
        temperature: that its answer is drawn with.
        unit: items of one unit belong together, and are taken or left together (rotations of one question, the
            twins of a picture); "" for an item that stands alone.
        extra: what grading needs beside: JSON, and small.
    """

    id: str
    messages: tuple[Message, ...]
    following: tuple[tuple[Part, ...], ...] = ()
    categories: tuple[str, ...] = ()
    reference: tuple[str, ...] = ()
    temperature: float = 0.0
    unit: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgeRequest:
    """What a judge is asked about one answer.

    Attributes:
        id: names the request within its evaluation, and is stable: a reply is kept under it.
        item: the id of the item that it is about.
        system, prompt: the texts, as the benchmark's protocol words them.
    """

    id: str
    item: str
    prompt: str
    system: str = ""


class Reader(Protocol):
    def __call__(self, path: Path | None, images: Path | None, scratch: Path) -> list[Item]:
        """The items of a benchmark's official files.

        Args:
            path: the file or folder; None where the benchmark needs none.
            images: the folder of its images; None: beside the file, or `images/` in there.
            scratch: an empty folder, for images that the files themselves carry.

        Raises:
            BadFile: names the file, the line and what to do; also where images are missing.
        """
        ...


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: "pope", "mt-bench", …: in configurations and addresses.
        title: for people.
        files: what `path` is to be, for people.
        skill: what it measures: "vision" or "text".
        max_new_tokens: of an answer, by its protocol.
        headline: the name of the measure that is reported.
        measures: all of them, by name; each takes sums as `grade` gives them.
        read: its files.
        grade: grades by rules, or None where a judge must be asked for all.
        requests: what a judge is asked, given items and answers; None where no judge is needed. Those of MMBench
            are only the answers that rules can't read.
        grade_replies: grades by a judge's replies, by request id; where one is missing or can't be read, the item
            is a failure that says why.
        most: the best score that there is, for bars; None where there is no bound.
    """

    name: str
    title: str
    files: str
    skill: str
    max_new_tokens: int
    headline: str
    measures: Mapping[str, Score]
    read: Reader
    grade: Callable[[Sequence[Item], Answers], list[Graded]] | None = None
    requests: Callable[[Sequence[Item], Answers], list[JudgeRequest]] | None = None
    grade_replies: Callable[[Sequence[Item], Answers, Mapping[str, str]], list[Graded]] | None = None
    most: float | None = None
