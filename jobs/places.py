"""Where a worker finds what runs of a data folder share: models, references, the judges' ledger. Torch-free.

job.json names these folders by their paths on the machine that froze the run. A run folder may be run elsewhere,
in a data folder that was moved or with none at all: then what is shared is made anew inside the run folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from jobs.models import DEMO, DEMO_FOLDER
from jobs.runs import JobFile, RunFolder
from storage.folder import DataFolder

SHARED = "shared"


def models_folder(run: RunFolder, job: JobFile) -> Path:
    """Where models that Plumb makes are kept. For the demo, one that holds it does, writable or not."""
    found = _shared(run, "models", job.models_dir, holds="" if job.config.get("model") != DEMO else DEMO_FOLDER)
    return found or run.path / SHARED / "models"


def references_folder(run: RunFolder, job: JobFile) -> Path:
    """Where the log-probabilities of references are kept."""
    found = _shared(run, "references", job.references_dir)
    if found is None and job.models_dir and not job.references_dir and writable(Path(job.models_dir)):
        return Path(job.models_dir).parent / "references"  # frozen before job.json named the folder
    return found or run.path / SHARED / "references"


def judges_folder(run: RunFolder, job: JobFile) -> Path:
    """Where the ledger lies. One in the run folder counts what is asked and paid there alone."""
    return _shared(run, "judges", job.judges_dir) or run.path / SHARED / "judges"


def _shared(run: RunFolder, name: str, named: str, holds: str = "") -> Path | None:
    root = run.path.parent.parent  # the data folder, also where that was moved
    beside = [root / name] if DataFolder(root).database.is_file() and run.path.parent.name == "runs" else []
    folders = [*beside, *([Path(named)] if named else [])]
    held = (folder for folder in folders if holds and (folder / holds / "config.json").is_file())
    return next(held, None) or next((folder for folder in folders if writable(folder)), None)


def writable(folder: Path) -> bool:
    """Whether it is a folder in which this process may make files."""
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
