"""What storage hands out: frozen records, one class a table, with JSON columns already read."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from storage.lifecycle import JobStatus

METRICS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
LONGEST_NAME = 80  #: characters of a contest's name
LOWEST, HIGHEST = 0, 4

Part = dict[str, str]
Message = dict[str, Any]
Split = Literal["train", "heldout"]
PairStatus = Literal["proposed", "accepted", "rejected"]
JudgementState = Literal["ok", "blocked", "truncated", "unparseable", "failed"]


def now() -> str:
    """The moment as stored everywhere: UTC, ISO 8601, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Image:
    sha256: str
    extension: str
    width: int
    height: int
    bytes: int

    @property
    def name(self) -> str:
        """The file's name in rows and run folders: `<sha256>.<extension>`."""
        return f"{self.sha256}.{self.extension}"


@dataclass(frozen=True)
class Sample:
    """A VQA item: messages (the last is the user's), images by sha256, an optional reference answer."""

    id: int
    source: str
    source_id: str
    split: str | None
    messages: list[Message]
    question: str
    reference: str | None
    images: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """An answer to a sample, by a model (job, adapter) or a person (author)."""

    id: int
    sample_id: int
    text: str
    model: str | None
    adapter_id: int | None
    job_id: int | None
    number: int | None
    author: str | None
    parent_id: int | None
    settings: dict[str, Any]
    tokens: int | None
    finish: str | None
    created_at: str


@dataclass(frozen=True)
class Rater:
    """Who scores: a person, or a judge as model + rubric version + mode."""

    id: int
    kind: Literal["person", "judge"]
    name: str
    version: str
    mode: str


@dataclass(frozen=True)
class Score:
    """Five whole numbers 0–4 for one candidate; a person may have given only some of them yet."""

    candidate_id: int
    helpfulness: int | None = None
    correctness: int | None = None
    coherence: int | None = None
    complexity: int | None = None
    verbosity: int | None = None
    position: int | None = None  # where a judge read the answer: 0 for A

    def value(self, metric: str) -> int | None:
        found: int | None = getattr(self, metric)
        return found

    @property
    def complete(self) -> bool:
        return all(self.value(metric) is not None for metric in METRICS)


@dataclass(frozen=True)
class Point:
    """A judge's yes or no to one item of a checklist for one candidate. `number` counts from 1."""

    candidate_id: int
    number: int
    met: bool


@dataclass(frozen=True)
class Judgement:
    """One call of a judge, or one person's scoring of a sample, with the scores that belong to it."""

    id: int
    rater: Rater
    sample_id: int
    job_id: int | None
    state: JudgementState
    raw: str
    reason: str
    tokens_in: int
    tokens_out: int
    cost: float
    created_at: str
    scores: tuple[Score, ...]
    key: str = ""
    note: str = ""
    checklist_id: int | None = None
    asked_by: str | None = None
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class ChecklistItem:
    """A criterion that an answer meets or does not; a failed essential one makes an answer bad."""

    text: str
    essential: bool


@dataclass(frozen=True)
class Checklist:
    """One version of a sample's checklist, written by a model (job) or edited by a person (author)."""

    id: int
    sample_id: int
    version: int
    state: JudgementState
    items: tuple[ChecklistItem, ...]
    model: str | None
    instructions: str
    author: str | None
    job_id: int | None
    raw: str
    reason: str
    tokens_in: int
    tokens_out: int
    cost: float
    created_at: str


@dataclass(frozen=True)
class Pair:
    """A preference: chosen over rejected, both candidates of one sample."""

    id: int
    sample_id: int
    chosen_id: int
    rejected_id: int
    origin: Literal["rule", "hand", "vote"]
    rule: dict[str, Any] | None
    chosen_quality: float | None
    rejected_quality: float | None
    status: PairStatus
    user: str
    created_at: str
    imported: str | None = None  # the source that the preference came with


@dataclass(frozen=True)
class PairView:
    """A pair with what a person needs to see."""

    pair: Pair
    question: str
    reference: str | None
    images: tuple[str, ...]
    chosen: str
    rejected: str
    conversation: int | None = None  #: the chat whose vote it was made of, where the viewer may open it


@dataclass(frozen=True)
class Dataset:
    """Frozen rows under a name; `hash` covers every row and its split."""

    id: int
    name: str
    hash: str
    rule: dict[str, Any]
    counts: dict[str, Any]
    user: str
    created_at: str


@dataclass(frozen=True)
class DatasetRow:
    """A pair, or a sample with its reference and scored answers.

    A sample's row: {messages, images, reference, rater: {name, version, mode, kind} | None, answers:
    [{candidate_id, text, helpfulness … verbosity}]}, the answers in the order of the candidates, each with all
    five metrics, of the one judgement that decides for the sample.
    """

    position: int
    split: Split
    sample_id: int
    pair_id: int | None
    row: dict[str, Any]
    kind: Literal["pair", "sample"] = "pair"


@dataclass(frozen=True)
class Job:
    id: int
    kind: str
    status: JobStatus
    config: dict[str, Any]
    slot_kind: Literal["device", "network"]
    device: str | None
    slot: str | None
    user: str
    dataset_id: int | None
    adapter_id: int | None
    phase: str
    done: float
    total: float
    unit: str
    port: int | None
    reason: str
    created_at: str
    started_at: str | None
    ended_at: str | None
    sweep: int | None = None
    priority: int = 0
    place: float | None = None
    after_id: int | None = None
    retries: int = 4
    not_before: str | None = None
    deleted_at: str | None = None
    deleted_by: str | None = None
    purged_at: str | None = None

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots that it holds; a training of several processes has several devices."""
        return tuple(self.slot.split(",")) if self.slot else ()


@dataclass(frozen=True)
class CheckpointAnswer:
    """A watched item's greedy answer at one step of a run; step 0 is before training."""

    job_id: int
    step: int
    number: int
    sample_id: int | None
    prompt: str
    image: str | None
    text: str
    tokens: int


@dataclass(frozen=True)
class Attempt:
    """One worker process of a job. PID, start time and process group together name it.

    Attributes:
        cause: why it ended otherwise than done (`jobs.verdicts.Cause`).
        exit_code: negative for a signal; None where nobody saw it end.
        log_begin, log_end: its part of the run folder's log.txt, in bytes; log_end is None while it runs.
        advanced: 1 where it did something that no attempt before it had done.
    """

    id: int
    job_id: int
    number: int
    pid: int | None
    pid_started: float | None
    process_group: int | None
    event_offset: int
    heard_at: float | None
    outcome: str | None
    reason: str
    started_at: str
    ended_at: str | None
    cause: str = ""
    exit_code: int | None = None
    log_begin: int = 0
    log_end: int | None = None
    advanced: int = 0


@dataclass(frozen=True)
class Adapter:
    id: int
    name: str
    sha256: str
    base_model: str
    method: str
    bytes: int
    job_id: int
    dataset_id: int | None
    created_at: str


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation; `content` is a list of text and image parts.

    `settings` of a question say how it was asked: {"model", "columns", "system", "temperature", ...}; {} where the
    conversation is older than this record.
    """

    id: int
    position: int
    column_number: int | None
    role: Literal["system", "user", "assistant"]
    content: list[Part]
    model: str | None
    adapter_id: int | None
    finish: str | None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversation:
    """A chat of one person.

    Attributes:
        settings: as it began: {"model", "columns", "blind"?, and how answers are drawn}.
        contest_id, number: the contest that it belongs to, and its place in there.
    """

    id: int
    user: str
    title: str
    settings: dict[str, Any]
    created_at: str
    turns: tuple[Turn, ...]
    contest_id: int | None = None
    number: int | None = None


@dataclass(frozen=True)
class Action:
    """One entry of the undo log."""

    id: int
    user: str
    label: str
    sample_id: int | None
    created_at: str
    undone_at: str | None
    refused_at: str | None
