"""What the test server's model says: valid replies to the prompts of `jobs.judges.prompts`, the same each time.

Answers and points are read from the prompt between the fences whose code its first line names, as a careful judge
would read them; where the request carries a schema, the letters are its.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from gemini_wire import Asked

# As in storage.records, which a server that runs as a process cannot import.
METRICS = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
LOWEST, HIGHEST = 0, 4

_CODE = re.compile(r"Code of the fences in this message: (\w+)")


def answer_by_default(asked: Asked) -> str:
    """Scores, a checklist, or a plain text, by what is asked for."""
    text = "\n".join(asked.texts)
    properties = (asked.schema or {}).get("properties", {})
    answers = _fenced(text, r"ANSWER [A-Z]")
    if "items" in properties or (not properties and "Write the checklist now" in text):
        return json.dumps({"items": _items(text)})
    if "answers" in properties:
        letters = properties["answers"]["items"]["properties"]["letter"]["enum"]
        answers = {letter: answers.get(letter, "") for letter in letters}
    if not answers:
        return f"A reply of {_number(text, 'plain', 1000)}."
    return judge_reply(answers, _points(text))


def judge_reply(answers: dict[str, str], points: int = 0) -> str:
    """A judge's reply on these answers by letter; scores follow from letter and text."""
    entries = [_entry(letter, text, points) for letter, text in answers.items()]
    return json.dumps({"image": "A shape on a plain ground.", "answers": entries})


def score_of(letter: str, text: str, metric: str) -> int:
    """The number that this judge gives."""
    return LOWEST + _number(text, f"{letter} {metric}", HIGHEST - LOWEST + 1)


def _entry(letter: str, text: str, points: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"letter": letter}
    if points:
        entry["points"] = [
            {"number": number, "met": _number(text, f"{letter} {number}", 2) == 1}
            for number in range(1, points + 1)
        ]
    entry["reasoning"] = f"Answer {letter} has {len(text)} characters."
    return entry | {metric: score_of(letter, text, metric) for metric in METRICS}


def _items(text: str) -> list[dict[str, Any]]:
    most = re.search(r"at most (\d+) items", text)
    count = min(3, int(most[1]) if most else 3)
    number = _number(text, "checklist", 1000)
    texts = [f"Names detail {number + index} of the image" for index in range(count)]
    return [{"text": item, "essential": index == 0} for index, item in enumerate(texts)]


def _points(text: str) -> int:
    listed = _fenced(text, "CHECKLIST").get("CHECKLIST", "")
    return len([line for line in listed.splitlines() if re.match(r"\d+\. ", line)])


def _fenced(text: str, name: str) -> dict[str, str]:
    """What stands between the fences of this name (a pattern) with the message's own code, by the name's end."""
    code = _CODE.search(text)
    if not code:
        return {}
    pattern = rf"^<<<({name}) {code[1]}>>>\n(.*?)\n<<<END OF \1 {code[1]}>>>$"
    return {match[1].split()[-1]: match[2] for match in re.finditer(pattern, text, re.DOTALL | re.MULTILINE)}


def _number(text: str, what: str, below: int) -> int:
    digest = hashlib.sha256(f"{what}\0{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % below
