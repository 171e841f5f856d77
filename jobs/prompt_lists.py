"""Lists of prompts in files: what a contest asks, and what benchmarks ask. Pure but for reading; torch-free.

Lines of JSON, one prompt a line, in any mixture of these shapes:

    {"question_id", "category", "turns": [text, …], "reference"?}    MT-Bench, Vicuna (FastChat, question.jsonl)
    {"question_id", "image": name, "text", "category"}               LLaVA-Bench (questions.jsonl)
    {"prompt": text} or {"turns": […]} or {"messages": [{role, content}, …]}
                            with "images"? or "image"?, "category"?, "id"?, "reference"?, where one likes

or plain text, one prompt a line. `messages` may begin with a system message; then user and assistant take turns,
and the last one is the user's. Their content is a text, or parts {"type": "text", "text"} and {"type": "image",
"image": name}. Images are named relative to a folder and never lead out of it: a list may be a stranger's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from storage.errors import UserError
from storage.records import Message, Part

MOST_PROMPTS = 5000
MOST_TURNS = 32
MOST_TOLD = 10  #: problems named in one refusal
LARGEST_FILE = 64_000_000  # bytes

_ASKED = ("messages", "turns", "prompt", "text")
_NAMED = ("id", "question_id", "key")  # the last one is IFEval's
_LINES_OF_JSON = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Prompt:
    """One prompt of a list.

    Attributes:
        id: as the list names it, else `line 7`; each once in a list.
        messages: what is given, system message and earlier answers included; the last is the first question.
            Images in them are the paths of files.
        following: the contents of further questions, each asked after one's own answer to the one before.
        reference: answers that the list holds up as good, one a question.
        line: where it stands in its file.
    """

    id: str
    category: str
    messages: tuple[Message, ...]
    following: tuple[tuple[Part, ...], ...] = ()
    reference: tuple[str, ...] = ()
    line: int = 0

    @property
    def turns(self) -> int:
        """How many questions are asked."""
        return 1 + len(self.following)

    @property
    def text(self) -> str:
        """The first question's text."""
        return "\n".join(part["text"] for part in self.messages[-1]["content"] if part["type"] == "text")

    @property
    def images(self) -> tuple[Path, ...]:
        """The files that it shows, in their order."""
        return tuple(
            Path(part["image"])
            for message in self.messages
            for part in message["content"]
            if part["type"] == "image"
        )


class _Wrong(Exception):
    """What is wrong with a line, for the person who wrote it."""


def read_prompts(path: Path, images: Path | None = None, limit: int | None = None) -> tuple[Prompt, ...]:
    """The prompts of a file, in their order.

    Args:
        images: the folder that images are named in; None: the file's own, and `images/` in it.
        limit: no more than the first so many. The others are read, too: a broken line is told wherever it is.

    Raises:
        UserError: the file is missing, empty, too large, or not such a list. What is wrong with its lines is told
            at once, the first `MOST_TOLD` of them with their numbers and reasons.
    """
    lines = _lines(path)
    read = _from_json if _is_json(path, lines) else _from_text
    problems: list[str] = []
    prompts: list[Prompt] = []
    seen: dict[str, int] = {}
    for number, raw in lines:
        try:
            prompt = read(_text_of(raw), number)
            if prompt.id in seen:
                raise _Wrong(f"the id {prompt.id!r:.60} stands in line {seen[prompt.id]} already")
            seen[prompt.id] = number
            prompts.append(prompt)
        except _Wrong as wrong:
            problems.append(f"line {number}: {wrong}")
    asked = prompts[:limit] if limit else prompts
    problems += _find_images(asked, path, images)
    refuse(path.name, problems)
    if len(asked) > MOST_PROMPTS:
        raise UserError(
            f"prompts: {path.name} has {len(asked):,} prompts, and at most {MOST_PROMPTS:,} are taken. Set a "
            "limit, or split the file."
        )
    return tuple(asked)


def refuse(name: str, problems: Sequence[str]) -> None:
    """Raise UserError where there are problems: the first of them, and how many more there are."""
    if problems:
        more = len(problems) - MOST_TOLD
        rest = f"; and {more:,} more" if more > 0 else ""
        raise UserError(f"prompts: {name} cannot be used: {'; '.join(problems[:MOST_TOLD])}{rest}.")


# the file ----------------------------------------------------------------------------------------------------


def _lines(path: Path) -> list[tuple[int, bytes]]:
    """(number, content) of the lines that hold something."""
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise UserError(
                f"prompts: {path.name} has {size / 1e6:,.0f} MB, and a list of prompts at most "
                f"{LARGEST_FILE / 1e6:.0f}. Is it the right file?"
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"prompts: there is no file {path}; give the path of a list of prompts.") from None
    except IsADirectoryError:
        raise UserError(f"prompts: {path} is a folder; give the path of the list in it.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UserError(f"prompts: {path} cannot be read ({error}).") from error
    data = data.removeprefix(b"\xef\xbb\xbf")
    lines = [(number, line.strip()) for number, line in enumerate(data.split(b"\n"), start=1)]
    found = [(number, line) for number, line in lines if line]
    if not found:
        raise UserError(f"prompts: {path.name} is empty; give a list with one prompt a line.")
    if found[0][1] == b"[" or (found[0][1].startswith(b"[") and path.suffix.lower() in _LINES_OF_JSON):
        raise UserError(
            f"prompts: {path.name} holds one list in brackets; write one object a line instead (JSONL)."
        )
    return found


def _is_json(path: Path, lines: Sequence[tuple[int, bytes]]) -> bool:
    """Whether lines are objects: by the file's name, else by its first line."""
    if path.suffix.lower() in _LINES_OF_JSON:
        return True
    try:
        return isinstance(json.loads(lines[0][1]), dict)
    except (ValueError, RecursionError):
        return False


def _text_of(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Wrong(f"it is not UTF-8 (byte {error.start + 1}); save the file as UTF-8") from None


def _find_images(prompts: list[Prompt], path: Path, images: Path | None) -> Iterator[str]:
    """Put the paths of files in place of images' names; yields what is missing."""
    folders = [path.parent, path.parent / "images"] if images is None else [images]
    if images is not None and not images.is_dir():
        yield f"images: there is no folder {images}"
        return
    for place, prompt in enumerate(prompts):
        try:
            prompts[place] = _with_files(prompt, folders)
        except _Wrong as wrong:
            yield f"line {prompt.line}: {wrong}"


def _with_files(prompt: Prompt, folders: Sequence[Path]) -> Prompt:
    def found(part: Part) -> Part:
        if part["type"] != "image":
            return part
        files = [folder / part["image"] for folder in folders]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            where = "beside the list" if len(folders) > 1 else f"in {folders[0]}"
            raise _Wrong(f"the image {part['image']!r:.80} is not {where}")
        return {"type": "image", "image": str(file)}

    messages = [{**one, "content": [found(part) for part in one["content"]]} for one in prompt.messages]
    return replace(prompt, messages=tuple(messages))


# a line ------------------------------------------------------------------------------------------------------


def _from_text(line: str, number: int) -> Prompt:
    return Prompt(
        f"line {number}", "", (_user([{"type": "text", "text": _checked(line, "the prompt")}]),), line=number
    )


def _from_json(line: str, number: int) -> Prompt:
    try:
        row = json.loads(line)
    except RecursionError:
        raise _Wrong("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise _Wrong(f"it is not JSON ({error.msg}, at character {error.pos + 1})") from None
    except ValueError as error:  # a number of thousands of digits
        raise _Wrong(f"it cannot be read ({error})") from None
    if not isinstance(row, dict):
        raise _Wrong(f"it is no object with a prompt, but {_kind(row)}")
    given = [name for name in _ASKED if name in row]
    if len(given) != 1:
        told = " and ".join(given) or "none"
        raise _Wrong(f"it needs one of {', '.join(_ASKED)}, and has {told}")
    shown: list[Part] = [{"type": "image", "image": name} for name in _image_names(row)]
    following: list[tuple[Part, ...]] = []
    if given[0] == "messages":
        messages = _messages(row["messages"], shown)
    else:
        value = row[given[0]]
        questions = value if given[0] == "turns" else [value]
        if not isinstance(questions, list) or not 0 < len(questions) <= MOST_TURNS:
            raise _Wrong(f"turns must be a list of 1 to {MOST_TURNS} questions, not {_kind(questions)}")
        texts = [_checked(one, given[0]) for one in questions]
        messages = [_user([*shown, {"type": "text", "text": texts[0]}])]
        following = [({"type": "text", "text": text},) for text in texts[1:]]
    return Prompt(
        id=next(filter(None, (_name(row, field) for field in _NAMED)), f"line {number}"),
        category=_name(row, "category"),
        messages=tuple(messages),
        following=tuple(following),
        reference=_references(row.get("reference")),
        line=number,
    )


def _messages(value: Any, shown: list[Part]) -> list[Message]:
    """A chat that ends with a question; `shown` goes before the text of its first one."""
    if not isinstance(value, list) or not value:
        raise _Wrong(f"messages must be a list of {{role, content}}, not {_kind(value)}")
    messages: list[Message] = []
    for place, message in enumerate(value):
        role = message.get("role") if isinstance(message, dict) else None
        turns = [one["role"] for one in messages if one["role"] != "system"]
        wanted = "assistant" if len(turns) % 2 else "user"
        if not (role == wanted or (role == "system" and place == 0)):
            raise _Wrong(f"message {place + 1} is of {role!r:.40}, where {wanted!r} has its turn")
        messages.append({"role": role, "content": _content(message.get("content"), f"message {place + 1}", role)})
    if messages[-1]["role"] != "user":
        raise _Wrong(f"the last message is of {messages[-1]['role']!r}; it must be the user's question")
    first = next(one for one in messages if one["role"] == "user")
    first["content"] = [*shown, *first["content"]]
    return messages


def _content(value: Any, where: str, role: str) -> list[Part]:
    if not isinstance(value, list):
        return [{"type": "text", "text": _checked(value, where)}]
    parts: list[Part] = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            parts.append({"type": "text", "text": _checked(part.get("text"), where)})
        elif kind == "image" and role == "user":
            parts.append({"type": "image", "image": _image_name(part.get("image"))})
        else:
            raise _Wrong(f"{where} has a part of type {kind!r:.40}, where text, or a user's image, can stand")
    if not parts:
        raise _Wrong(f"{where} is empty")
    return parts


def _image_names(row: dict[str, Any]) -> list[str]:
    if "images" in row and "image" in row:
        raise _Wrong("it has both image and images; keep one")
    found = row.get("images", row.get("image"))
    if found is None:
        return []
    return [_image_name(one) for one in (found if isinstance(found, list) else [found])]


def _image_name(value: Any) -> str:
    name = _checked(value, "an image's name")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise _Wrong(f"the image {name!r:.80} must be named within the list's folder, without “..”")
    return name


def _checked(value: Any, what: str) -> str:
    """A text that can be asked and stored."""
    if not isinstance(value, str):
        raise _Wrong(f"{what} must be a text, not {_kind(value)}")
    if not value.strip():
        raise _Wrong(f"{what} is empty")
    _whole(value, what)
    return value


def _whole(value: str, what: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _Wrong(f"{what} holds half a character (a lone surrogate)") from None
    return value


def _name(row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _Wrong(f"{field} must be a text or a whole number, not {_kind(value)}")
    name = _whole(str(value).strip(), field)
    if len(name) > 200:
        raise _Wrong(f"{field} has {len(name):,} characters; at most 200")
    return name


def _references(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    found = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) for one in found):
        raise _Wrong("reference must be a text, or a list of texts")
    return tuple(_whole(one, "reference") for one in found)


def _user(parts: list[Part]) -> Message:
    return {"role": "user", "content": parts}


_KINDS: tuple[tuple[type, Callable[[Any], str]], ...] = (
    (bool, lambda value: "true" if value else "false"),
    (str, lambda value: "a text"),
    (int, lambda value: "a number"),
    (float, lambda value: "a number"),
    (list, lambda value: f"a list of {len(value):,}"),
    (dict, lambda value: "an object"),
)


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    return next((told(value) for kind, told in _KINDS if isinstance(value, kind)), "nothing")
