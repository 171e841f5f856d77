"""Run folders: a job as a folder that could be copied to another machine and run there.

runs/<job>/job.json       frozen configuration, base model, data set hash, versions, who asked
runs/<job>/data/rows.jsonl    the frozen rows, one JSON object a line
runs/<job>/data/images/   images by content address, as <sha256>.<ext>
runs/<job>/data/rubric.yaml   the rubric that a remote judge is given
runs/<job>/data/adapters/<sha256>/   adapters that the job starts from or speaks with
runs/<job>/data/lineage.json   where a training's labels come from, for its model card
runs/<job>/events.jsonl   appended by the worker alone
runs/<job>/log.txt        stdout and stderr of the worker
runs/<job>/reserve        room for the worker's last word on a full disk, while it is at work
runs/<job>/control        what is asked of it (`stop`, `pause`)
runs/<job>/checkpoints/   a training's last ones, until its adapter is there; best/ with early stop
runs/<job>/metrics.jsonl  tensorboard/ seen/ (the watched pictures as the model sees them)
runs/<job>/ranks/         how each of several processes ended
runs/<job>/adapter/       what a training leaves
runs/<job>/shared/        models, references and a ledger, where it is run without its data folder (jobs/places.py)
runs/<job>/commit         what a download fetches, where no hub could be asked when it was queued
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.configs import JobConfig, parse_config
from storage.errors import UserError
from storage.files import link_or_copy, write_atomically

JOB_FORMAT = 1
LINEAGE = "lineage.json"
STOP, PAUSE = "stop", "pause"


class JobFile(BaseModel):
    """What job.json holds. The three folders are those of the machine that froze it (jobs/places.py)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = JOB_FORMAT
    job_id: int
    kind: str
    config: dict[str, Any]
    user: str
    device: str = Field(description="'cpu', 'cuda:0' … or 'network' for jobs that need no device")
    dataset_hash: str | None = None
    models_dir: str = Field(description="where models that Plumb assembles are kept and shared")
    judges_dir: str = Field("", description="the ledger and limits that all workers of a data folder share")
    references_dir: str = Field("", description="log-probabilities of references that runs share")
    versions: dict[str, str] = Field(default_factory=dict)
    created_at: str

    def parsed(self) -> JobConfig:
        return parse_config(self.kind, self.config)


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes one run folder; the worker's and the supervisor's common ground."""

    path: Path

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def control(self) -> Path:
        return self.path / "control"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def rows_file(self) -> Path:
        return self.path / "data" / "rows.jsonl"

    @property
    def images(self) -> Path:
        return self.path / "data" / "images"

    @property
    def lineage(self) -> Path:
        return self.path / "data" / LINEAGE

    def start_adapter(self, sha256: str) -> Path:
        """Where an adapter that the job needs lies (put there when the job was frozen)."""
        return self.path / "data" / "adapters" / sha256

    def image(self, name: str) -> Path:
        """The file of one of the job's images; `name` is `<sha256>.<ext>`, as rows give it."""
        return self.images / name

    def job(self) -> JobFile:
        """Read job.json.

        Raises:
            UserError: it is missing, cut off, or of a format that this version does not know.
        """
        file = self.path / "job.json"
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{file} is missing: {self.path} is not a run folder.") from None
        except ValueError as error:
            raise UserError(f"{file} is not whole JSON ({error}); submit the job again.") from error
        version = raw.get("format") if isinstance(raw, dict) else None
        if version != JOB_FORMAT:
            raise UserError(
                f"{file} has format {version!r}; this Plumb reads {JOB_FORMAT}. "
                "Run it with the version that wrote it."
            )
        try:
            return JobFile.model_validate(raw)
        except ValidationError as error:
            raise UserError(f"{file} does not hold a job: {error}") from error

    def rows(self) -> Iterator[dict[str, Any]]:
        """The frozen rows, in order. An empty iterator where the job has none."""
        if not self.rows_file.exists():
            return
        with self.rows_file.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)

    def freeze(
        self,
        job: JobFile,
        rows: Iterable[dict[str, Any]],
        images: Iterable[tuple[str, Path]] = (),
        adapters: Iterable[tuple[str, Path]] = (),
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Write everything the worker will need; job.json comes last, so that a folder with one is whole."""
        self.images.mkdir(parents=True, exist_ok=True)
        for name, source in images:
            link_or_copy(source, self.images / name)
        for sha256, source in adapters:
            for file in sorted(source.iterdir()):
                link_or_copy(file, self.start_adapter(sha256) / file.name)
        for name, text in (files or {}).items():
            write_atomically(self.path / "data" / name, text)
        with self.rows_file.open("w", encoding="utf-8") as file_out:
            for row in rows:
                file_out.write(json.dumps(row, ensure_ascii=False) + "\n")
        write_atomically(self.path / "job.json", job.model_dump_json(indent=2) + "\n")

    def ask_to_stop(self) -> None:
        if self.path.is_dir():  # one that was moved away is not made anew: it may come back
            write_atomically(self.control, STOP + "\n")

    def ask_to_pause(self) -> None:
        write_atomically(self.control, PAUSE + "\n")

    def ask_nothing(self) -> None:
        """Take back what was asked: a paused job goes on."""
        self.control.unlink(missing_ok=True)

    def asked(self) -> str:
        """`stop`, `pause`, or "" where nothing is asked."""
        try:
            return self.control.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return ""

    def stop_requested(self) -> bool:
        return self.asked() == STOP

    def log_size(self) -> int:
        """Bytes of the log; an attempt's part of it begins where the one before ended."""
        try:
            return self.log.stat().st_size
        except OSError:
            return 0

    def log_tail(self, lines: int = 40, max_bytes: int = 64_000) -> str:
        """The last lines of the log, read from the end, so that a log of 1 GB costs no more."""
        try:
            with self.log.open("rb") as file:
                file.seek(0, 2)
                size = file.tell()
                file.seek(max(0, size - max_bytes))
                text = file.read().decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""
        # A progress bar rewrites its line with \r: only what would be on screen counts.
        shown = [line.rsplit("\r", 1)[-1] for line in text.splitlines()]
        return "\n".join(shown[-lines:])
