"""What of an adapter's or merged weights' own files is nobody else's business: local paths and people's names.

Cards and settings name a base by its folder, and tell who asked for a job, froze its data and scored its answers.
That is the lineage, and stays in the data folder. What goes to a hub says the same without them: a folder by its
last part, people as people. Torch-free.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Settings that hold a model's name or folder.
_NAMES = ("base_model_name_or_path", "base_model", "_name_or_path", "name_or_path")
#: Settings of a training, in its card, that may hold a path.
_PATHS = ("model", "accelerate_config")
#: Read in one piece, and changed only where they hold one of `_NAMES`; tokenizer.json has millions of words.
_SETTINGS = ("adapter_config.json", "plumb.json", "config.json", "tokenizer_config.json", "processor_config.json")


def is_local(name: str) -> bool:
    """Whether a model's name is a folder of this machine."""
    return bool(name) and (Path(name).is_absolute() or name.startswith((".", "~")))


def local_paths(folder: Path) -> list[str]:
    """The paths that a folder's files name, the longest first; and those of the home folder and the run's."""
    found = {value for file in _SETTINGS for value in _named(folder / file)}
    for block in re.findall(r"^```json\n(.*?)^```", _text(folder / "README.md"), re.M | re.S):
        config = _parsed(block).get("config")
        found |= {str(config.get(name) or "") for name in _PATHS} if isinstance(config, dict) else set()
    return sorted((path for path in found if is_local(path)), key=lambda path: (-len(path), path))


def without_paths(text: str, paths: list[str]) -> str:
    """The text with each of these paths cut down to its last part."""
    for path in paths:
        for form in {path, json.dumps(path, ensure_ascii=False)[1:-1], json.dumps(path)[1:-1]}:
            text = text.replace(form, Path(path).name)
    home = str(Path.home())
    return re.sub(rf"{re.escape(home)}(?=/)", "~", text) if len(home) > 1 else text


def without_people(card: str) -> str:
    """A card without the names of who asked for the job, froze its rows and scored its answers.

    Lines of a card that Plumb wrote (jobs/gpu/cards.py) are known by their beginnings; judges keep their names.
    """
    card = re.sub(r"^(\| job \| \d+), asked for by .* at (\S+ \|)$", r"\1, \2", card, flags=re.M)
    card = re.sub(r"^(\| frozen \|) by .* at (\S+ \|)$", r"\1 \2", card, flags=re.M)
    return re.sub(r"^\| raters \| (.*) \|$", _without_raters, card, flags=re.M)


def _without_raters(found: re.Match[str]) -> str:
    raters = re.findall(r"(.*?) \((\w+), ([\d,]+ (?:judgements|pairs))\)(?:; |$)", found[1])
    told = [f"{'somebody' if kind == 'person' else name} ({kind}, {number})" for name, kind, number in raters]
    # Never the original: a form that is not known may hold names.
    return f"| raters | {'; '.join(told) or 'people and judges'} |"


def settings_for_hub(file: Path, paths: list[str]) -> bytes | None:
    """A file of settings without local paths; None where it has none and can go as it is."""
    if file.name not in _SETTINGS or not any(is_local(value) for value in _named(file)):
        return None
    text = without_paths(_text(file), paths)
    return text.encode()


def _named(file: Path) -> Iterator[str]:
    settings = _parsed(_text(file))
    return (value for name in _NAMES if isinstance(value := settings.get(name), str))


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
