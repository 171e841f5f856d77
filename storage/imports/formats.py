"""The formats of rows: each turns one row into samples, or raises `Broken`.

Sources of the formats: LLaVA's conversations (github.com/haotian-liu/LLaVA, docs/Finetune_Custom_Data.md),
VQA-RAD (Lau et al. 2018), RLHF-V and RLAIF-V (arXiv 2312.00849, 2405.17220), VLFeedback (arXiv 2312.10665), and
TRL's preference rows (its documentation, "Dataset formats").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from storage.imports.incoming import (
    Broken,
    Incoming,
    IncomingAnswer,
    IncomingTurn,
    Picture,
    Piece,
    Role,
    asked,
    pictures_of,
    text_at,
    with_pictures,
)

Row = Mapping[str, Any]
Reader = Callable[[Row, Path], list[Incoming]]

_SPEAKERS: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def llava(row: Row, folder: Path) -> list[Incoming]:
    """{"id", "image"?, "conversations": [{"from": "human" | "gpt", "value"}]}: one sample a conversation.

    Its last question is what is asked, the answer to it the reference; what was said before is the history.
    """
    said = row.get("conversations")
    if not isinstance(said, list) or not said:
        raise Broken("it has no conversations")
    pictures = pictures_of(row.get("image", row.get("images")), folder)
    turns: list[IncomingTurn] = []
    used = 0
    for number, one in enumerate(said, start=1):
        if not isinstance(one, Mapping) or str(one.get("from")) not in _SPEAKERS:
            raise Broken(f"turn {number} is by neither human nor gpt")
        content, taken = with_pictures(text_at(one, "value"), pictures[used:])
        used += taken
        turns.append(IncomingTurn(_SPEAKERS[one["from"]], content))
    return [_with_reference(_id(row), _with_rest(turns, pictures[used:]), row)]


def vqa_rad(row: Row, folder: Path) -> list[Incoming]:
    """{"qid", "image_name" | "image", "question", "answer", …}; questions of one picture share it."""
    answer = row.get("answer")
    if answer is None or str(answer).strip() == "":
        raise Broken("it has no answer")
    image = row["image"] if row.get("image") is not None else text_at(row, "image_name")
    content = asked(text_at(row, "question"), pictures_of(image, folder))
    return [Incoming(_id(row), (IncomingTurn("user", content),), str(answer).strip(), _split(row))]


def jsonl(row: Row, folder: Path) -> list[Incoming]:
    """Plumb's own: {"id"?, "images"?, "prompt" | "messages", "reference"?, "split"?, "candidates"?}.

    `candidates` are texts or {"text", "model"?}; {"chosen": 0, "rejected": 2} names two of them.
    """
    pictures = pictures_of(row.get("images", row.get("image")), folder)
    turns = _turns(row.get("messages", row.get("prompt")), pictures, folder)
    answers = tuple(_answer(one) for one in _list(row, "candidates"))
    preferred: tuple[tuple[int, int], ...] = ()
    if "chosen" in row or "rejected" in row:
        preferred = (_two(row, len(answers)),)
    return [_checked(_id(row), turns, row, answers, preferred)]


def rlhf_v(row: Row, folder: Path) -> list[Incoming]:
    """RLHF-V, RLAIF-V: {"question", "chosen", "rejected", "image" | "image_path"}; the texts may be in "text"."""
    told: Row = row
    if isinstance(row.get("text"), str | Mapping):
        told = _parsed(row["text"], "text")
    image = row.get("image") if row.get("image") is not None else row.get("image_path")
    content = asked(text_at(told, "question", "prompt"), pictures_of(image, folder))
    return [_preference(_id(row), (IncomingTurn("user", content),), told, row)]


def vlfeedback(row: Row, folder: Path) -> list[Incoming]:
    """{"id", "prompt", "image", "completions": [{"model", "response", "annotations"?}]}: several models' answers.

    GPT-4V rated each from 1 to 5: {"annotations": {"Helpfulness": {"Rating": "4", "Rationale"}, "Visual
    Faithfulness", "Ethical Considerations"}}. See `_ratings` for what becomes of these.
    """
    content = asked(text_at(row, "prompt"), pictures_of(row.get("image"), folder))
    said = _records(row.get("completions"), "completions")
    answers = []
    for one in said:
        model = one.get("model")
        answers.append(
            IncomingAnswer(
                text_at(one, "response"),
                model if isinstance(model, str) else None,
                _ratings(one.get("annotations")),
            )
        )
    found = _checked(_id(row), [IncomingTurn("user", content)], row, tuple(answers))
    if not any(answer.scores for answer in answers):
        return [found]
    raw = json.dumps([one.get("annotations") for one in said], ensure_ascii=False, default=str)
    return [replace(found, rater=VLFEEDBACK_RATER, raw=raw[:_LONGEST_RAW])]


#: Who gave VLFeedback's ratings, as a judge with a version.
VLFEEDBACK_RATER = ("GPT-4V (VLFeedback)", "arXiv 2312.10665, 1-5 less 1")
_RATED = {"Helpfulness": "helpfulness", "Visual Faithfulness": "correctness"}
_LONGEST_RAW = 100_000


def _ratings(annotations: Any) -> dict[str, int]:
    """{metric: 0 to 4}: 1 to 5 less one. Visual Faithfulness, whether the answer is true to the image, is what
    `correctness` asks; Ethical Considerations has no metric here and stays in the judgement's raw text alone. A
    rating that is N/A, or no number from 1 to 5, is none.
    """
    found: dict[str, int] = {}
    if not isinstance(annotations, Mapping):
        return found
    for aspect, metric in _RATED.items():
        told = annotations.get(aspect)
        rating = told.get("Rating") if isinstance(told, Mapping) else None
        text = str(rating).strip()
        if text in ("1", "2", "3", "4", "5"):
            found[metric] = int(text) - 1
    return found


def _at(value: Any, place: int) -> Any:
    """What stands at this place in an object of lists, which may lie in objects."""
    if isinstance(value, Mapping):
        return {name: _at(one, place) for name, one in value.items()}
    return value[place] if isinstance(value, list) else value


def _records(value: Any, name: str) -> list[Row]:
    """A list of objects, which `datasets` may keep as an object of lists."""
    if isinstance(value, Mapping):
        lengths = {len(one) for one in value.values() if isinstance(one, list)}
        try:
            value = [_at(value, place) for place in range(max(lengths, default=0))]
        except IndexError:
            raise Broken(f"{name} is an object whose lists are not of one length") from None
    if not isinstance(value, list):
        raise Broken(f"it has no {name}")
    if not all(isinstance(one, Mapping) for one in value):
        raise Broken(f"{name} holds what is no object")
    return value


def trl(row: Row, folder: Path) -> list[Incoming]:
    """{"images"?, "prompt"?, "chosen", "rejected"}, texts or messages; the prompt may stand in both answers."""
    pictures = pictures_of(row.get("images", row.get("image")), folder)
    chosen, rejected = row.get("chosen"), row.get("rejected")
    prompt = row.get("prompt")
    if prompt is None:
        if not (isinstance(chosen, list) and isinstance(rejected, list)):
            raise Broken("it has no prompt, and its answers are no messages")
        prompt = chosen[:-1]
        if prompt != rejected[:-1]:
            raise Broken("it has no prompt, and chosen and rejected begin differently")
    told = {"chosen": _last(chosen, "chosen"), "rejected": _last(rejected, "rejected")}
    return [_preference(_id(row), _turns(prompt, pictures, folder), told, row)]


#: {kind: its reader}. Each takes JSON, JSON lines, parquet, or a saved Hugging Face data set.
FORMATS: dict[str, Reader] = {
    "llava": llava,
    "vqa-rad": vqa_rad,
    "jsonl": jsonl,
    "rlhf-v": rlhf_v,
    "vlfeedback": vlfeedback,
    "trl": trl,
}


def _id(row: Row) -> str:
    found = next((row[name] for name in ("id", "qid", "question_id", "idx") if row.get(name) is not None), "")
    return str(found).strip()


def _turns(value: Any, pictures: Sequence[Picture], folder: Path) -> list[IncomingTurn]:
    """A prompt, text or messages, whose images are marks in texts or parts {"type": "image"}, in their order."""
    if isinstance(value, str):
        if not value.strip():
            raise Broken("its prompt is empty")
        return [IncomingTurn("user", asked(value, pictures))]
    if not isinstance(value, list) or not value:
        raise Broken("it has no prompt or messages")
    turns: list[IncomingTurn] = []
    left = list(pictures)
    for number, message in enumerate(value, start=1):
        if not isinstance(message, Mapping) or str(message.get("role")) not in _SPEAKERS:
            raise Broken(f"message {number} has no role that is known (system, user, assistant)")
        content: list[Piece] = []
        parts = message.get("content")
        if not isinstance(parts, str | list):
            raise Broken(f"message {number} has neither text nor parts")
        for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
            if not isinstance(part, Mapping):
                raise Broken(f"message {number} has a part that is no object")
            if part.get("type") == "image" and part.get("image") is None:
                if not left:
                    raise Broken(f"message {number} shows an image more than the row has")
                content.append(left.pop(0))
            elif part.get("type") == "image":
                content += pictures_of(part["image"], folder)
            elif isinstance(part.get("text"), str):
                found, used = with_pictures(part["text"], left)
                content += found
                del left[:used]
        if not content:
            raise Broken(f"message {number} is empty")
        turns.append(IncomingTurn(_SPEAKERS[message["role"]], tuple(content)))
    return _with_rest(turns, left)


def _with_rest(turns: list[IncomingTurn], pictures: Sequence[Picture]) -> list[IncomingTurn]:
    """With the pictures that no mark named at the beginning of the first question."""
    first = next((place for place, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        raise Broken("no turn of it is a person's")
    if pictures:
        turns[first] = IncomingTurn("user", (*pictures, *turns[first].content))
    return turns


def _with_reference(name: str, turns: Sequence[IncomingTurn], row: Row) -> Incoming:
    last = max(place for place, turn in enumerate(turns) if turn.role == "user")
    rest = [piece for turn in turns[last + 1 :] for piece in turn.content if isinstance(piece, str)]
    return Incoming(name, tuple(turns[: last + 1]), "\n".join(rest) or None, _split(row))


def _checked(
    name: str,
    turns: Sequence[IncomingTurn],
    row: Row,
    answers: tuple[IncomingAnswer, ...] = (),
    preferred: tuple[tuple[int, int], ...] = (),
) -> Incoming:
    """A sample whose messages end with the user's turn; an assistant's last turn is the reference."""
    found = _with_reference(name, turns, row)
    reference = row.get("reference", found.reference)
    if reference is not None and not isinstance(reference, str):
        raise Broken("its reference is no text")
    return Incoming(name, found.turns, reference or None, found.split, answers, preferred)


def _preference(name: str, turns: Sequence[IncomingTurn], told: Row, row: Row) -> Incoming:
    texts = [text_at(told, "chosen"), text_at(told, "rejected")]
    if texts[0].strip() == texts[1].strip():
        raise Broken("chosen and rejected are the same")
    answers = tuple(IncomingAnswer(text) for text in texts)
    return _checked(name, turns, row, answers, ((0, 1),))


def _split(row: Row) -> str | None:
    return str(row["split"]) if isinstance(row.get("split"), str) and row["split"] else None


def _answer(value: Any) -> IncomingAnswer:
    if isinstance(value, str):
        return IncomingAnswer(text_at({"candidate": value}, "candidate"))
    if not isinstance(value, Mapping):
        raise Broken("a candidate is neither text nor an object with text")
    model = value.get("model")
    return IncomingAnswer(text_at(value, "text"), model if isinstance(model, str) else None)


def _list(row: Row, name: str) -> list[Any]:
    value = row.get(name) or []
    if not isinstance(value, list):
        raise Broken(f"{name} is no list")
    return value


def _two(row: Row, number: int) -> tuple[int, int]:
    places = (row.get("chosen"), row.get("rejected"))
    if not all(isinstance(place, int) and not isinstance(place, bool) and 0 <= place < number for place in places):
        raise Broken(f"chosen and rejected must be places among its {number} candidates, from 0")
    if places[0] == places[1]:
        raise Broken("chosen and rejected are the same candidate")
    return (int(places[0] or 0), int(places[1] or 0))


def _last(value: Any, name: str) -> str:
    """The text of an answer, given as text or as messages that end with it."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        content = value[-1].get("content")
        if isinstance(content, list):
            content = "".join(str(part.get("text") or "") for part in content if isinstance(part, Mapping))
        value = content
    return text_at({name: value}, name)


def _parsed(value: Any, name: str) -> Row:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise Broken(f"{name} is not JSON ({error})") from error
    if not isinstance(value, Mapping):
        raise Broken(f"{name} is no object")
    return value
