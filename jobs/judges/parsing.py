"""A judge's reply → scores by letter, or `Unparseable` with a reason for the reader (pure).

What a reply may look like: JSON as asked for, in a Markdown fence or not, with prose around it, with the answers
in any order, as a list or by letter, with trailing commas and keys of its own. What is never done: guessing. A
number is a whole number 0–4 as JSON writes it (3, and 3.0, which JSON Schema counts as the same); "3", 3.5 and
true are none. Every letter and every point must be there exactly once.

Answers under judgement may hold JSON of the reply's own shape, which a judge may repeat. Hence:
- only values at the top level of the reply count, never what stands inside another value or inside its strings;
- from broken JSON on nothing is read, since nobody knows where its strings end;
- where two values look like a reply they must say the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from storage.errors import PlumbError
from storage.records import HIGHEST, LOWEST, METRICS

LONGEST_REPLY = 1_000_000  # characters; the longest reply that can be asked for has a quarter of that
LONGEST_ITEM = 2000  # characters of a checklist's item, as many as a person may write

_OPENING = re.compile(r"[{\[]")
_IN_PROSE = re.compile(r"\{[^{}\[\]\"]*\}|\[[^{}\[\]\"]*\]")  # {so}, [1] or [sic]: holds nothing that could count
# The first group is a string, which stays as it is; all quantifiers are possessive or end at once: linear time.
_TRAILING_COMMA = re.compile(r'("(?:[^"\\]|\\.)*+"?)|,(?=\s*+[}\]])', re.DOTALL)
_UNSAFE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_LETTER = re.compile(r"(?:answer\s+)?([a-z])[.:)]?", re.IGNORECASE)

Found = TypeVar("Found")


class Unparseable(PlumbError):
    """A reply that cannot be read; its text is a sentence for the reader."""


@dataclass(frozen=True)
class Parsed:
    """What a judge said.

    Attributes:
        scores: letter → metric → 0 to 4, complete.
        reasoning: letter → why; "" where the judge gave none.
        points: letter → number of the checklist's point, from 1 → whether it is met; empty without a checklist.
        image: what the judge says that the image shows.
    """

    scores: dict[str, dict[str, int]]
    reasoning: dict[str, str]
    points: dict[str, dict[int, bool]]
    image: str = ""


@dataclass(frozen=True)
class _Literal:
    """A number that is no plain int, as it was written: no float stands between the reply and its check."""

    text: str


def parse_scores(text: str, letters: Sequence[str], points: int = 0) -> Parsed:
    """Read the reply to `jobs.judges.prompts.judge_prompt`.

    Args:
        letters: the capital letters that were asked about.
        points: how many points the checklist has; 0: there was none, and any in the reply are ignored.

    Raises:
        Unparseable: something is missing, twice, unknown or no number; the text names the letter, the metric and
            the value.
    """

    def read(value: Any) -> Parsed | None:
        entries = _entries(value)
        if entries is None:
            return None
        image = value.get("image") if isinstance(value, dict) else ""
        return _parsed(entries, letters, points, _clean(image))

    found = _all(text, read, "with scores")
    if any((one.scores, one.points) != (found[0].scores, found[0].points) for one in found):
        raise Unparseable(f"The reply holds {len(found)} JSON values with scores, and they differ.")
    return found[-1]


def parse_checklist(text: str, most: int) -> list[dict[str, Any]]:
    """Read the reply to `jobs.judges.prompts.checklist_prompt`: [{"text": one line, "essential": bool}].

    An item that comes twice is kept once. Of more than `most` items the first are kept, essential ones before
    additional ones, in the reply's order: they were asked for by importance, and asking again costs money.

    Raises:
        Unparseable: there is no list, no item, or an item without a text or a yes or no.
    """
    found = _all(text, _items, "with a checklist")
    if any(one != found[0] for one in found):
        raise Unparseable(f"The reply holds {len(found)} checklists, and they differ.")
    items = found[-1]
    by_weight = sorted(range(len(items)), key=lambda index: not items[index]["essential"])
    return [items[index] for index in sorted(by_weight[:most])]


def _all(text: str, read: Callable[[Any], Found | None], what: str) -> list[Found]:
    """What `read` makes of each of the reply's values that has the shape; at least one.

    Raises:
        Unparseable: there is none, or one that has the shape cannot be used.
    """
    values = _values(text)
    found = [one for value in values if (one := read(value)) is not None]
    if not found:
        raise Unparseable(f"The reply holds no JSON {what}." if text.strip() else "The reply is empty.")
    return found


def _values(text: str) -> list[Any]:
    """The JSON objects and lists at the top level of a text, in their order. Linear in the text's length.

    Raises:
        Unparseable: the text is too long, or JSON in it is broken, cut off or nested too deeply.
    """
    if len(text) > LONGEST_REPLY:
        raise Unparseable(f"The reply has {len(text):,} characters; {LONGEST_REPLY:,} are the most that is read.")
    values = []
    position, mended = 0, False
    while opening := _OPENING.search(text, position):
        start = opening.start()
        if prose := _IN_PROSE.match(text, start):
            position = prose.end()
            continue
        try:
            value, position = _DECODER.raw_decode(text, start)
            values.append(value)
        except RecursionError:
            raise Unparseable("The reply's JSON is nested too deeply.") from None
        except ValueError:
            if mended:
                where = f"it begins at character {start + 1:,}"
                raise Unparseable(f"The reply's JSON is broken or cut off; {where}.") from None
            text = text[:start] + _TRAILING_COMMA.sub(r"\1", text[start:])
            position, mended = start, True
    return values


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON's readers take the last of two equal keys without a word; here that would be guessing."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise Unparseable(f"In the reply's JSON the key {_shown(key)} stands twice in one object.")
        values[key] = value
    return values


_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_twins,
    parse_int=lambda digits: int(digits) if len(digits) < 20 else _Literal(digits),
    parse_float=_Literal,
    parse_constant=_Literal,  # NaN, Infinity
    strict=False,  # line breaks inside strings, which models write in their reasoning
)

Entry = tuple[Any, Mapping[str, Any]]  # the letter as the reply gives it, and what it says of that answer


def _entries(value: Any) -> list[Entry] | None:
    """The answers of a value that has a reply's shape, else None.

    Shapes: {"answers": [{"letter": …}]}, {"answers": {"A": {…}}}, the same without "answers", one such entry
    alone, and any of them as the only item of a list.
    """
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], dict) and "answers" in value[0]:
            return _entries(value[0])
        return _listed(value) if any(isinstance(one, dict) and "letter" in one for one in value) else None
    if "answers" in value:
        answers = value["answers"]
        if isinstance(answers, list):
            return _listed(answers)
        if isinstance(answers, dict):
            return [_of_letter(key, entry) for key, entry in answers.items()]
        raise Unparseable(f"The reply's answers are {_shown(answers)} instead of a list.")
    if "letter" in value:
        return _listed([value])
    lettered = {key: entry for key, entry in value.items() if _letter(key) and isinstance(entry, dict)}
    return [_of_letter(key, entry) for key, entry in lettered.items()] or None


def _listed(answers: Sequence[Any]) -> list[Entry]:
    for number, entry in enumerate(answers, start=1):
        if not isinstance(entry, dict):
            raise Unparseable(f"Entry {number} of the reply's answers is {_shown(entry)} instead of an object.")
        if "letter" not in entry:
            raise Unparseable(f"Entry {number} of the reply's answers has no letter.")
    return [(entry["letter"], entry) for entry in answers]


def _of_letter(key: str, entry: Any) -> Entry:
    if not isinstance(entry, dict):
        raise Unparseable(f"The reply's entry {_shown(key)} is {_shown(entry)} instead of an object.")
    if "letter" in entry and _letter(entry["letter"]) != _letter(key):
        raise Unparseable(f"The reply's entry {_shown(key)} says letter {_shown(entry['letter'])}.")
    return key, entry


def _letter(raw: Any) -> str | None:
    """ "b", "Answer B" and "B." → "B"; None for what is no letter."""
    match = _LETTER.fullmatch(raw.strip()) if isinstance(raw, str) and len(raw) < 40 else None
    return match[1].upper() if match and match[1].isascii() else None


def _parsed(entries: Iterable[Entry], letters: Sequence[str], points: int, image: str) -> Parsed:
    by_letter: dict[str, Mapping[str, Any]] = {}
    for raw, entry in entries:
        letter = _letter(raw)
        if letter is None or letter not in letters:
            raise Unparseable(f"The reply judges an answer {_shown(raw)} that it was not shown.")
        if letter in by_letter:
            raise Unparseable(f"The reply judges answer {letter} twice.")
        by_letter[letter] = entry
    missing = [letter for letter in letters if letter not in by_letter]
    if missing:
        raise Unparseable(f"The reply does not judge answer {', '.join(missing)}.")
    ordered = {letter: by_letter[letter] for letter in letters}
    return Parsed(
        scores={letter: _five(letter, entry) for letter, entry in ordered.items()},
        reasoning={letter: _clean(entry.get("reasoning")) for letter, entry in ordered.items()},
        points={letter: _points(letter, entry, points) for letter, entry in ordered.items()} if points else {},
        image=image,
    )


def _five(letter: str, entry: Mapping[str, Any]) -> dict[str, int]:
    scores = {}
    for metric in METRICS:
        if metric not in entry:
            raise Unparseable(f"Answer {letter}: {metric} is missing.")
        value = _whole(entry[metric])
        if value is None or not LOWEST <= value <= HIGHEST:
            raise Unparseable(
                f"Answer {letter}: {metric} is {_shown(entry[metric])}, no whole number {LOWEST} to {HIGHEST}."
            )
        scores[metric] = value
    return scores


def _points(letter: str, entry: Mapping[str, Any], count: int) -> dict[int, bool]:
    given = entry.get("points")
    if not isinstance(given, list):
        raise Unparseable(f"Answer {letter}: the points of the checklist are missing.")
    found: dict[int, bool] = {}
    for point in given:
        if not isinstance(point, dict) or "number" not in point:
            raise Unparseable(f"Answer {letter}: a point of the checklist is {_shown(point)}, without its number.")
        number, met = _whole(point["number"]), point.get("met")
        if number is None or not 1 <= number <= count:
            raise Unparseable(
                f"Answer {letter}: point {_shown(point['number'])} is none of the checklist's 1 to {count}."
            )
        if number in found:
            raise Unparseable(f"Answer {letter}: point {number} of the checklist stands twice.")
        if not isinstance(met, bool):
            raise Unparseable(f"Answer {letter}: point {number} is {_shown(met)}, neither true nor false.")
        found[number] = met
    missing = [str(number) for number in range(1, count + 1) if number not in found]
    if missing:
        raise Unparseable(f"Answer {letter}: point {', '.join(missing)} of the checklist is missing.")
    return dict(sorted(found.items()))


def _items(value: Any) -> list[dict[str, Any]] | None:
    """The items of a value that has a checklist's shape, without twins; else None."""
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], dict) and "items" in value[0]:
            return _items(value[0])
        given: Any = value if any(isinstance(one, dict) and "text" in one for one in value) else None
    else:
        given = value.get("items")
    if given is None:
        return None
    if not isinstance(given, list) or not given:
        raise Unparseable("The reply's checklist has no items.")
    kept: dict[str, dict[str, Any]] = {}
    for number, item in enumerate(given, start=1):
        text, essential = _item(number, item)
        before = kept.setdefault(text.casefold(), {"text": text, "essential": essential})
        before["essential"] = before["essential"] or essential
    return list(kept.values())


def _item(number: int, item: Any) -> tuple[str, bool]:
    if not isinstance(item, dict):
        raise Unparseable(f"Item {number} of the checklist is {_shown(item)} instead of an object.")
    line, essential = " ".join(_clean(item.get("text")).split()), item.get("essential")
    if not line:
        raise Unparseable(f"Item {number} of the checklist has no text.")
    if not isinstance(essential, bool):
        raise Unparseable(f"Item {number} of the checklist: essential is {_shown(essential)}, not true or false.")
    if len(line) > LONGEST_ITEM:
        raise Unparseable(
            f"Item {number} of the checklist has {len(line):,} characters; {LONGEST_ITEM:,} at most."
        )
    return line, essential


def _whole(value: Any) -> int | None:
    """A whole number as JSON writes it: 3, or 3.0; None for anything else, true among it."""
    if isinstance(value, _Literal):
        whole = re.fullmatch(r"([0-9]{1,4})\.0+", value.text)
        return int(whole[1]) if whole else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _clean(value: Any) -> str:
    """The text of a string without what no database takes (half characters, NUL); "" for anything else."""
    return _UNSAFE.sub(" ", value) if isinstance(value, str) else ""


def _shown(value: Any) -> str:
    """A value in a sentence, short: it may come from an answer that speaks to its reader."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if value is None:
        return "nothing"
    text = _clean(value.text if isinstance(value, _Literal) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 40 else text[:39] + "…"
