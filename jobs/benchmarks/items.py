"""What the benchmarks' readers and graders share: messages, pictures, answers (pure but for reading)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from jobs.benchmarks.contract import Answers, Item
from jobs.benchmarks.files import BadFile
from storage.records import Message, Part

_TOLD = 3  # missing images that a refusal names


def asked(text: str, image: str | Path | None = None) -> tuple[Message, ...]:
    """One question of the user's, a picture before it."""
    shown: list[Part] = [] if image is None else [{"type": "image", "image": str(image)}]
    return ({"role": "user", "content": [*shown, {"type": "text", "text": text}]},)


def text_of(item: Item) -> str:
    """The words of an item's first question."""
    content = item.messages[-1]["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def answer_to(item: Item, answers: Answers, turn: int = 1) -> str | None:
    """The answer to an item's question of this turn; None where there is none."""
    found = answers.get(item.id, ())
    return found[turn - 1] if len(found) >= turn else None


def length_of(answer: str | None) -> int | None:
    return None if answer is None else len(answer)


def given(path: Path | None, title: str, what: str) -> Path:
    """The path, which must be there. Raises BadFile."""
    if path is None:
        raise BadFile(f"{title} needs files: give the path of {what}.")
    if not path.exists():
        raise BadFile(f"{path} is not there; {title} needs {what}.")
    return path


def in_folder(path: Path, *names: str) -> Path:
    """The first of these names that is a file in the folder. Raises BadFile."""
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise BadFile(f"{path} has no file {' or '.join(names)}.")
    return found


def official_text(folder: Path, name: str) -> str | None:
    """An official prompt that a person has put beside the files; None where it is not there. Raises BadFile."""
    file = folder / name
    if not file.is_file():
        return None
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{file} cannot be read ({error}).") from None


def pictures(path: Path, images: Path | None, names: Iterable[str]) -> dict[str, Path]:
    """The file of each picture.

    Args:
        path: the benchmark's file or folder; pictures are beside it, or in `images/` there, if `images` is None.
        names: relative ones; a name that leads out of the folder is refused.

    Raises:
        BadFile: says how many are missing, and the first of them.
    """
    home = path if path.is_dir() else path.parent
    folders = [home, home / "images"] if images is None else [images]
    if images is not None and not images.is_dir():
        raise BadFile(f"images: there is no folder {images}.")
    found: dict[str, Path] = {}
    missing: list[str] = []
    for name in dict.fromkeys(names):
        inside = PurePosixPath(name)
        if not name or "\0" in name or "\\" in name or inside.is_absolute() or ".." in inside.parts:
            raise BadFile(f"{path} names the image {name!r:.80}; it must be within the images' folder.")
        file = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if file is None:
            missing.append(name)
        else:
            found[name] = file
    if missing:
        more = len(missing) - _TOLD
        rest = f" and {more:,} more" if more > 0 else ""
        raise BadFile(
            f"{len(missing):,} of {len(found) + len(missing):,} images are not in "
            f"{' or '.join(str(one) for one in folders)}: {', '.join(missing[:_TOLD])}{rest}. "
            "Set the images' folder to the one that holds them."
        )
    return found


def only(replies: Mapping[str, str], items: Sequence[Item]) -> dict[str, str]:
    """The replies about these items, by item, where a request bears its item's id."""
    return {item.id: replies[item.id] for item in items if item.id in replies}


def why_unread(reply: str | None, wanted: str) -> str:
    """Why a judge's reply gives no grade, for people."""
    if reply is None:
        return "the judge gave no reply"
    told = reply.strip()
    shown = repr(told) if len(told) <= 80 else f"{told[:40]!r} … {told[-40:]!r}"
    return f"the judge's reply holds no {wanted}: {shown}"
