"""Records for tests, with defaults for everything a test does not care about."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
from sqlite_utils import Database

from jobs.settings import Settings
from storage import jobs as store
from storage.candidates import add_generated, candidates_of
from storage.database import connect, migrate
from storage.folder import DataFolder
from storage.images import ensure_image
from storage.records import METRICS, Candidate, Job
from storage.samples import add_sample
from storage.scores import add_judgement, ensure_rater

USER = "ada"


def png(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (64, 64)) -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


@dataclass
class World:
    """A data folder with an open database."""

    db: Database
    folder: DataFolder
    settings: Settings

    def sample(
        self,
        number: int = 1,
        question: str = "what shape is in the image?",
        reference: str | None = "circle",
        images: int = 1,
        source: str = "easy-vqa",
        split: str | None = "train",
        colour: int | None = None,
    ) -> int:
        """A sample with images of its own, unless `colour` says which."""
        shas = []
        for index in range(images):
            shade = number if colour is None else colour
            data = png((shade % 256, shade // 256 % 256, index))
            shas.append(ensure_image(self.db, self.folder, data).sha256)
        content = [{"type": "image", "image": sha} for sha in shas] + [{"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        sample_id = add_sample(self.db, source, str(number), messages, reference, split)
        assert sample_id is not None
        return sample_id

    def job(self, kind: str = "generate", **config: object) -> Job:
        return store.add_job(self.db, kind=kind, config={"model": "demo", **config}, user=USER, slot_kind="device")

    def candidates(self, sample_id: int, texts: Sequence[str], job: Job | None = None) -> list[Candidate]:
        job = job or self.job()
        for number, text in enumerate(texts):
            add_generated(self.db, job_id=job.id, sample_id=sample_id, number=number, text=text, model="demo")
        return [one for one in candidates_of(self.db, [sample_id])[sample_id] if one.job_id == job.id]

    def judged(self, sample_id: int, qualities: Sequence[int], judge: str = "test-judge") -> list[Candidate]:
        """Candidates whose quality (0 to 12) is as given, scored by a judge."""
        candidates = self.candidates(sample_id, [f"answer {i} of {sample_id}" for i in range(len(qualities))])
        rater = ensure_rater(self.db, "judge", judge)
        scores = [
            {"candidate_id": candidate.id, **metrics_of(quality)}
            for candidate, quality in zip(candidates, qualities, strict=True)
        ]
        add_judgement(self.db, rater_id=rater, sample_id=sample_id, job_id=None, state="ok", scores=scores)
        return candidates


def metrics_of(quality: int) -> dict[str, int]:
    """Five metrics whose first three sum to `quality`."""
    values = [min(4, quality), min(4, max(0, quality - 4)), max(0, quality - 8), 1, 1]
    return dict(zip(METRICS, values, strict=True))


def settings_for(root: Path, **values: object) -> Settings:
    defaults: dict[str, object] = {
        "data": root,
        "devices": ("cpu",),
        "network_slots": 1,
        "supervisor_idle_seconds": 0.5,
    }
    return Settings(**{**defaults, **values})  # type: ignore[arg-type]


def open_world(root: Path) -> World:
    settings = settings_for(root)
    settings.folder.create()
    migrate(settings.folder)
    return World(connect(settings.folder), settings.folder, settings)
