"""Merged weights: folders below models/merged, each with a plumb.json that says what it was made of. Torch-free.

Pages list them, the `push` job uploads them, the `merge` job writes them; any such folder can be a base model.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storage.errors import NotFound, UserError

FILE = "plumb.json"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")


@dataclass(frozen=True)
class Merged:
    """What plumb.json holds. `adapter` and `job` are numbers of the data folder that it was made in."""

    base_model: str
    adapter: int
    adapter_name: str
    adapter_sha256: str
    dtype: str
    job: int
    created_at: str
    method: str = ""  #: of the adapter: SteerLM's weights are asked with its attribute string, merged or not
    revision: str = ""  #: the base's commit, where it came from a hub
    image_fit: str | None = None  #: what the processor does with images, and writes first (jobs/gpu/profiles.py);
    system_prompt: str | None = None  #: None in folders of version 0.3 and before, which didn't tell

    def same_content(self, other: Merged) -> bool:
        """Whether both are the same adapter in the same base and precision, with the same processor."""
        ours, others = (
            (made.base_model, made.revision, made.adapter_sha256, made.dtype) for made in (self, other)
        )
        told = None not in (self.image_fit, other.image_fit)
        alike = (self.image_fit, self.system_prompt) == (other.image_fit, other.system_prompt)
        return ours == others and (alike or not told)

    def text(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"


def merged_root(models_dir: Path) -> Path:
    return models_dir / "merged"


def name_for(adapter_name: str, adapter_id: int) -> str:
    """A folder's name made from an adapter's: what no folder should be called becomes a hyphen."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", adapter_name).strip("-.")
    return (plain or f"adapter-{adapter_id}")[:80]


def check_name(name: str) -> str:
    """The name as it is.

    Raises:
        UserError: it would lead out of models/merged, hide the folder, or is no plain name.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"name = {name[:90]!r}: the folder's name takes 1 to 80 letters, digits, dots, hyphens and "
            "underscores, and does not begin with a dot."
        )
    return name


def read_merged(folder: Path) -> Merged | None:
    """What a folder was made of; None where it was not made by a `merge` job, or says so no more."""
    try:
        found = Merged(**json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    # Such folders are carried from machine to machine: what stands there may be anything.
    kinds: dict[str, Any] = {"adapter": int, "job": int, "image_fit": str | None, "system_prompt": str | None}
    fitting = (isinstance(value, kinds.get(name, str)) for name, value in asdict(found).items())
    return found if all(fitting) else None


def method_of(model: str) -> str:
    """The method of the adapter in a base that is a folder of merged weights; "" for any other base."""
    made = read_merged(Path(model))
    return made.method if made is not None else ""


def list_merged(models_dir: Path) -> dict[Path, Merged]:
    """All merged weights, by folder, in the order of their names."""
    root = merged_root(models_dir)
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = {folder: made for folder in folders if (made := read_merged(folder)) is not None}
    return {folder: made for folder, made in found.items() if not folder.name.startswith(".")}


def find_merged(models_dir: Path, name: str) -> tuple[Path, Merged]:
    """One of them by its name.

    Raises:
        UserError: that is no name of such a folder.
        NotFound: it is not there.
    """
    folder = merged_root(models_dir) / check_name(name)
    made = read_merged(folder)
    if made is None:
        names = ", ".join(path.name for path in list_merged(models_dir)) or "none yet"
        raise NotFound(f"There are no merged weights named {name!r} (there are: {names}); merge an adapter first.")
    return folder, made
