"""Names of base models, checked without torch."""

from __future__ import annotations

import re
from pathlib import Path

from storage.errors import UserError

DEMO = "demo"
DEMO_FOLDER = "demo-vlm"
#: The language model that the demo VLM was made of, before it saw a picture: text benchmarks alone take it.
DEMO_TEXT = "demo-text"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[\w.+-]+(/[\w.+-]+)*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def check_model(name: str) -> str:
    """The name if it can name a model; a folder's as an absolute path.

    Raises:
        UserError: it is no demo model, no folder with a config.json, and not shaped like a hub name.
    """
    if name in (DEMO, DEMO_TEXT):
        return name
    try:
        folder = Path(name).expanduser()
        if (folder / "config.json").is_file():
            return str(folder.resolve())
        is_folder = folder.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, an unknown ~user, a NUL: no path at any rate
        is_folder = False
    if is_folder:
        raise UserError(
            f"The base model {name!r} is a folder without config.json; give a folder that save_pretrained wrote."
        )
    if _HUB_NAME.fullmatch(name):
        return name
    if name.startswith(("/", "~")):
        raise UserError(
            f"The base model {name[:200]!r} is not there: the folder was deleted, moved or renamed. Put it back, "
            "or start the job again with a base model that is there."
        )
    raise UserError(
        f"Unknown base model {name[:80]!r}: use 'demo', a folder that holds a model, "
        "or a hub name such as llava-hf/llava-1.5-13b-hf."
    )


def is_hub_name(name: str) -> bool:
    """Whether the hub's cache, or the hub, is where this model is looked for."""
    return name not in (DEMO, DEMO_TEXT) and _HUB_NAME.fullmatch(name) is not None and not Path(name).is_dir()


def is_commit(revision: str) -> bool:
    """Whether it is a whole commit, which means the same files for ever."""
    return _COMMIT.fullmatch(revision) is not None


def check_revision(revision: str) -> str:
    """A commit's, branch's or tag's name as it is; "" stands for `main`.

    Raises:
        ValueError: no hub has such a name; as a path it could lead out of the cache.
    """
    revision = revision.strip()
    if revision and (not _REVISION.fullmatch(revision) or ".." in revision or len(revision) > 200):
        raise ValueError("give a commit, a branch or a tag of letters, digits, hyphens, dots and slashes")
    return revision


def location(name: str, models_dir: Path) -> Path | None:
    """The folder of the model, or None where the hub's cache decides."""
    if name in (DEMO, DEMO_TEXT):
        return models_dir / (DEMO_FOLDER if name == DEMO else DEMO_TEXT)
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else None
