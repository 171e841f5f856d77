"""One judge at work: a row → requests → replies → a judgement (or a checklist).

Every reply is handed to `keep` before anything is made of it, and replies that were kept earlier are used before
anything new is asked: what was answered is never paid for again. Used by jobs and by "Score this sample".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jobs.configs import ChecklistConfig, JudgeConfig
from jobs.judges.caller import Caller, GaveUp
from jobs.judges.calls import Finish, Picture, Prompt
from jobs.judges.clients.texts import sendable
from jobs.judges.identity import key_of, rater_of
from jobs.judges.parsing import Parsed, Unparseable, parse_checklist, parse_scores
from jobs.judges.pictures import prepare
from jobs.judges.prompts import INSTRUCTIONS, checklist_prompt, judge_prompt, letters_of, order_of
from jobs.judges.tokens import prompt_tokens
from jobs.rubric import Rubric
from storage.errors import UserError
from storage.records import JudgementState

Fields = dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """A reply as it lies in events.jsonl. `part` tells the requests of one judgement apart; cost in dollars."""

    key: str
    part: str
    text: str
    finish: Finish
    detail: str
    tokens_in: int
    tokens_out: int
    cost: float


@dataclass(frozen=True)
class Read:
    """What one request came to, over all its tries."""

    state: JudgementState
    reason: str
    value: Any = None


Keep = Callable[[Kept, int], None]  # the reply, the sample's id
ImagePath = Callable[[str], Path]  # a picture's file by its name in the rows

_BLOCKED: dict[Finish, str] = {
    "safety": "The provider blocked the reply for safety.",
    "recitation": "The provider blocked the reply as recitation of a source.",
    "other": "The provider ended the reply without a usual reason.",
}
_READ_AGAIN = "Your last reply could not be used ({reason}) Reply with the JSON object alone, complete and short."


class Asker:
    """Judges rows one by one; safe to use from several threads.

    Args:
        caller: asks within limits and budget.
        picture: finds a picture's file.
        keep: stores a reply; called before the reply is looked at.
        kept: replies of earlier attempts.
    """

    def __init__(
        self, caller: Caller, picture: ImagePath, keep: Keep, second_tries: int, kept: Iterable[Kept] = ()
    ) -> None:
        self._caller = caller
        self._picture = picture
        self._keep = keep
        self._second_tries = second_tries
        self._kept: dict[tuple[str, str], list[Kept]] = {}
        for reply in kept:
            self._kept.setdefault((reply.key, reply.part), []).append(reply)

    def judge(self, row: Fields, config: JudgeConfig, rubric: Rubric) -> Fields:
        """The fields of a `judgement` event.

        Raises:
            Refused, BudgetSpent, Stopped: nothing more is to be asked; replies that came are kept.
        """
        rater = rater_of(config)
        key = key_of(row, rater, config.order_seed)
        try:
            pictures, note = self._pictures(row)
            requests = requests_of(row, config, rubric, pictures)
        except UserError as error:
            return _judgement(row, rater, key, Read("failed", str(error)), [], "")
        points = len((row.get("checklist") or {}).get("items", ()))
        replies: list[Kept] = []
        reads = []
        for part, letters, prompt in requests:
            parse = partial(parse_scores, letters=tuple(letters), points=points)
            read = self._read(key, part, row, prompt, parse, replies)
            reads.append((letters, read))
            if read.state != "ok":
                break  # its sample is to be asked again as a whole: the rest is not paid for now
        bad = next((read for _, read in reads if read.state != "ok"), None)
        whole = bad or Read("ok", "")
        fields = _judgement(row, rater, key, whole, replies, note)
        if bad is None:
            order = order_of(row, config.order_seed) if config.mode == "together" else ()
            fields |= _scores(reads, order)
        return fields

    def write_checklist(self, row: Fields, config: ChecklistConfig) -> Fields:
        """The fields of a `checklist` event; raises as `judge` does."""
        key = f"checklist:{row['sample_id']}"
        base = {"sample_id": row["sample_id"], "model": config.model, "instructions": INSTRUCTIONS}
        replies: list[Kept] = []
        try:
            pictures, _ = self._pictures(row)
            prompt = checklist_prompt(row, pictures, config.items)
        except UserError as error:
            return base | _outcome(Read("failed", str(error)), [])
        read = self._read(key, "all", row, prompt, lambda text: parse_checklist(text, config.items), replies)
        return base | _outcome(read, replies) | {"items": read.value or []}

    def reply(self, row: Fields) -> Fields:
        """The fields of an `item_reply` event: a judge's words on one answer to a benchmark; raises as `judge`."""
        prompt = Prompt(row["system"], (row["prompt"],))
        replies: list[Kept] = []
        read = self._read(f"item:{row['request']}", "all", row, prompt, str, replies)
        told = {name: row[name] for name in ("sample_id", "request", "item")}
        return told | {"reply": read.value or "", "state": read.state, "reason": read.reason}

    def _pictures(self, row: Fields) -> tuple[dict[str, Picture], str]:
        """The row's pictures by name, as they are sent, and what the reader should know of them."""
        pictures, notes = {}, []
        for message in row["messages"]:
            for part in message["content"]:
                if part["type"] == "image" and part["image"] not in pictures:
                    try:
                        pictures[part["image"]], note = prepare(self._picture(part["image"]))
                    except OSError as error:
                        raise UserError(
                            f"The image {part['image']} cannot be read ({error}); restore it from a backup."
                        ) from error
                    notes += [note] if note else []
        return pictures, "; ".join(notes)

    def _read(
        self,
        key: str,
        part: str,
        row: Fields,
        prompt: Prompt,
        parse: Callable[[str], Any],
        replies: list[Kept],
    ) -> Read:
        """Ask until a reply can be read, it is blocked, or the tries are used up; adds the replies it used."""
        earlier = list(self._kept.get((key, part), ()))
        read: Read | None = None
        for number in range(1 + self._second_tries):
            if earlier:
                reply = earlier.pop(0)
            else:
                asked = prompt
                if read is not None:
                    words = _READ_AGAIN.format(reason=read.reason)
                    asked = Prompt(prompt.system, (*prompt.parts, words), prompt.schema)
                try:
                    reply = self._ask(key, part, row, asked)
                except GaveUp as error:
                    return Read("failed", str(error)) if number == 0 or read is None else read
            replies.append(reply)
            read = _look(reply, parse)
            if read.state in ("ok", "blocked"):
                return read
        assert read is not None
        return read

    def _ask(self, key: str, part: str, row: Fields, prompt: Prompt) -> Kept:
        paid = self._caller.ask(prompt, prompt_tokens(prompt))
        reply = paid.reply
        kept = Kept(
            key,
            part,
            sendable(reply.text),  # half a character can be stored nowhere
            reply.finish,
            sendable(reply.detail),
            reply.tokens_in,
            reply.tokens_out,
            paid.money,
        )
        self._keep(kept, row["sample_id"])
        return kept


def kept_of(events: Iterable[Mapping[str, Any]]) -> list[Kept]:
    """The replies among a run folder's events."""
    names = Kept.__dataclass_fields__
    return [Kept(**{name: event[name] for name in names}) for event in events if event["kind"] == "reply"]


def as_event(kept: Kept) -> Fields:
    return asdict(kept)


def requests_of(
    row: Fields, config: JudgeConfig, rubric: Rubric, pictures: Mapping[str, Picture]
) -> list[tuple[str, dict[str, int], Prompt]]:
    """(part, letter → candidate's id, prompt) of each request that the row needs."""
    order = order_of(row, config.order_seed)
    if config.mode == "together":
        letters = letters_of(order)
        return [("all", letters, judge_prompt(row, rubric, letters, pictures))]
    letters_of(order[:1])  # raises where there is nobody to judge
    alone = [letters_of([candidate_id]) for candidate_id in order]
    return [(str(one["A"]), one, judge_prompt(row, rubric, one, pictures)) for one in alone]


def _look(reply: Kept, parse: Callable[[str], Any]) -> Read:
    """What one reply is worth."""
    if reply.finish in _BLOCKED and not (reply.finish == "other" and reply.text.strip()):
        return Read("blocked", f"{_BLOCKED[reply.finish]} {reply.detail}".strip())
    if reply.finish == "truncated":  # never read: JSON that stands in it may be one that the reply only quotes
        return Read("truncated", "The reply was cut off at the token limit; allow a longer one.")
    try:
        return Read("ok", "", parse(reply.text))
    except Unparseable as error:
        return Read("unparseable", str(error))


def _scores(reads: Sequence[tuple[Mapping[str, int], Read]], order: Sequence[int]) -> Fields:
    """Scores and points by candidate, with the place at which each was read; all alone: no place."""
    scores, points = [], []
    for letters, read in reads:
        parsed: Parsed = read.value
        for letter, candidate_id in letters.items():
            position = order.index(candidate_id) if order else None
            scores.append({"candidate_id": candidate_id, **parsed.scores[letter], "position": position})
            points += [
                {"candidate_id": candidate_id, "number": number, "met": met}
                for number, met in parsed.points.get(letter, {}).items()
            ]
    return {"scores": scores, "points": points}


def _judgement(
    row: Fields, rater: tuple[str, str, str], key: str, read: Read, replies: Sequence[Kept], note: str
) -> Fields:
    checklist = row.get("checklist")
    return {
        "sample_id": row["sample_id"],
        "rater": dict(zip(("name", "version", "mode"), rater, strict=True)),
        "key": key,
        "note": note,
        "checklist_id": checklist["id"] if checklist else None,
        "scores": [],
        "points": [],
        **_outcome(read, replies),
    }


def _outcome(read: Read, replies: Sequence[Kept]) -> Fields:
    """State, raw replies and what they cost together."""
    return {
        "state": read.state,
        "reason": read.reason,
        "raw": "\n\n---\n\n".join(reply.text or f"({reply.finish}) {reply.detail}" for reply in replies),
        "tokens_in": sum(reply.tokens_in for reply in replies),
        "tokens_out": sum(reply.tokens_out for reply in replies),
        "cost": sum(reply.cost for reply in replies),
    }
