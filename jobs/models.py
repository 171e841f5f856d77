"""Names of base models, checked without torch."""

from __future__ import annotations

import re
from pathlib import Path

from storage.errors import UserError

DEMO = "demo"
DEMO_FOLDER = "demo-vlm"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check_model(name: str) -> str:
    """The name if it can name a model; a folder's as an absolute path.

    Raises:
        UserError: it is neither `demo`, nor a folder with a config.json, nor shaped like a hub name.
    """
    if name == DEMO:
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
    raise UserError(
        f"Unknown base model {name[:80]!r}: use 'demo', a folder that holds a model, "
        "or a hub name such as llava-hf/llava-1.5-13b-hf."
    )


def location(name: str, models_dir: Path) -> Path | None:
    """The folder of the model, or None where the hub's cache decides."""
    if name == DEMO:
        return models_dir / DEMO_FOLDER
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else None
