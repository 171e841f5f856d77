"""What the Contests page shows of a contest, and where it goes next. Plain functions above Gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from sqlite_utils import Database

from storage import history
from storage.chats import get_conversation, text_of
from storage.contests import (
    GIVEN,
    Contest,
    Entry,
    delete_contest,
    entries,
    get_contest,
    list_contests,
    next_to_vote,
)
from storage.errors import UserError
from storage.jobs import get_job
from storage.lifecycle import ENDED
from storage.records import Conversation, Turn
from storage.speakers import read_speaker, speakers_of
from storage.votes import Duel, duels
from workbench import chat_view, contest_views, vote_views
from workbench.context import Context
from workbench.events import read_id
from workbench.vote_stats import VerdictBetween, verdicts

ROUNDS = 4  # questions of one conversation that stand side by side; longer ones show their last

# How the undo log calls what is done in the booth (storage/votes.py, vote_pairs.py).
_OWN = ("vote", "pair of a vote", "scores of answers")

View = Literal["new", "vote", "waiting", "standings"]


@dataclass(frozen=True)
class Place:
    """What an address asks for.

    Attributes:
        number: of a prompt; None leaves the choice to the page.
    """

    contest: int | None = None
    number: int | None = None
    standings: bool = False


@dataclass(frozen=True)
class Round:
    """One question, as HTML, and what each column answered, as Markdown; no columns where the answer was given."""

    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """What the page shows at one moment.

    Attributes:
        listing, strip, head: HTML.
        conversation: the one that stands there to be voted on.
        voted: this person has voted on it.
        before: the number of the prompt before this one that can be shown.
        instead: HTML in place of a prompt.
        questions: how many the conversation has, those that are not shown among them.
        alive: a job still answers, so that more will come.
        open: there is a prompt that this person can vote on.
        deletable: it is this person's, and its job has ended.
        problem: what stood in the way of what was asked for, in words.
    """

    view: View
    place: Place
    listing: str
    strip: str = ""
    head: str = ""
    conversation: int | None = None
    rounds: tuple[Round, ...] = ()
    questions: int = 0
    columns: int = 2
    voted: bool = False
    before: int | None = None
    instead: str = ""
    standings: str = ""
    alive: bool = False
    open: bool = False
    deletable: bool = False
    problem: str = ""


def read_place(query: Mapping[str, str]) -> Place:
    """What an address asks for; what cannot be read is passed over."""
    return Place(
        read_id(query.get("contest")), read_id(query.get("number")), standings=query.get("view") == "standings"
    )


def look(context: Context, user: str, place: Place, problem: str = "") -> Scene:
    """What the page shows of a place: the prompt asked for, else the first that this person has not voted on.

    A contest or a prompt that is not there is told in the scene, not raised.
    """
    now = datetime.now(UTC)
    with context.database() as db:
        known = list_contests(db, user)
        if place.contest is None:
            return _new(db, user, known, now, problem)
        contest = next((one for one in known if one.id == place.contest), None)
        if contest is None:
            gone = f"There is no contest {place.contest} (any more); choose another."
            return _new(db, user, known, now, problem or gone)
        job = get_job(db, contest.job_id)
        prompts = entries(db, contest.id, user)
        alive = job.status not in ENDED
        by_number = {entry.number: entry for entry in prompts if entry.complete}
        number = place.number
        if number is not None and number not in by_number:
            problem = problem or f"Prompt {number} of this contest is not answered (yet); here is another."
            number = None
        if number is None and not place.standings:
            number = _next(db, contest.id, user, by_number)
        over = number is None and contest.answered > 0 and not alive
        view: View = "standings" if place.standings or over else "vote" if number is not None else "waiting"
        at = replace(place, number=number if view == "vote" else None, standings=view == "standings")
        entry = by_number[number] if view == "vote" and number is not None else None
        scene = Scene(
            view=view,
            place=at,
            listing=_listing(db, user, known, now, at),
            strip=contest_views.strip(contest, prompts, at.number),
            head=contest_views.head(contest, entry, job, now),
            alive=alive,
            open=not is_done(contest),
            deletable=contest.user == user and not alive,
            problem=problem,
        )
        if view == "standings":
            return replace(scene, standings=standings(db, contest, not alive and is_done(contest)))
        if entry is None or entry.conversation_id is None:
            return replace(scene, instead=contest_views.waiting(contest, job))
        conversation = get_conversation(db, entry.conversation_id, user)
        asked = sum(turn.role == "user" and turn.position < _end(conversation) for turn in conversation.turns)
        return replace(
            scene,
            conversation=conversation.id,
            rounds=rounds_shown(conversation),
            questions=asked,
            columns=len(speakers_of(conversation)),
            voted=entry.voted,
            before=max((other for other in by_number if other < entry.number), default=None),
        )


def following(context: Context, user: str, place: Place) -> Scene:
    """The next prompt after the shown one that this person has not voted on; the standings where there is none."""
    if place.contest is None:
        return look(context, user, place)
    with context.database() as db:
        conversation = next_to_vote(db, place.contest, user, place.number)
        number = get_conversation(db, conversation, user).number if conversation is not None else None
    return look(context, user, Place(place.contest, number))


def resumed(context: Context, user: str, place: Place) -> Scene:
    """The shown prompt, where it still waits for this person's vote, else the next that does."""
    scene = look(context, user, replace(place, standings=False))
    return following(context, user, scene.place) if scene.voted else scene


def before_standings(context: Context, user: str, place: Place) -> str:
    """What a person is asked before the standings, as HTML; "" for one who has voted on all, or for no contest."""
    if place.contest is None:
        return ""
    with context.database() as db:
        contest = get_contest(db, place.contest, user)
    return "" if is_done(contest) else contest_views.before_standings(contest)


def delete(context: Context, user: str, place: Place) -> str:
    """Delete one's own contest with everybody's votes in it; returns what was done. Raises as `delete_contest`."""
    if place.contest is None:
        raise UserError("No contest is open; choose one from the list.")
    with context.database() as db:
        name = get_contest(db, place.contest, user).name
        delete_contest(db, user, place.contest)
    return f"“{name}” is deleted; “Undo” on Samples or Pairs brings it back."


def take_back(context: Context, user: str) -> str:
    """Undo this person's last vote, or the pair made of it; returns what was undone, in words.

    Raises:
        UserError: what this person did last was no vote; other pages undo it.
        NotFound, Conflict: as `history.undo`.
    """
    with context.database() as db:
        latest = history.last_action(db, user)
        if latest is not None and not latest.label.startswith(_OWN):
            raise UserError(
                f"Your last change was no vote but “{latest.label}”: nothing was undone. “Undo” on Samples or "
                "Pairs takes it back."
            )
        return f"Undone: {history.undo(db, user).label}."


def is_done(contest: Contest) -> bool:
    """Whether this person has voted on all there is to vote on."""
    return contest.answered > 0 and contest.voted >= contest.answered


def standings(db: Database, contest: Contest, done: bool = False) -> str:
    """Who won how often in this contest, over all and within each category, as HTML with names."""
    found = duels(db, contest.id)
    names = speaker_names(db, contest)
    head = contest_views.standings_head(contest, names, done)
    table = vote_views.table(db, verdicts(found))
    return head + table + contest_views.by_category(_by_category(db, found))


def speaker_names(db: Database, contest: Contest) -> list[str]:
    """The speakers as the form listed them, which says nothing about where one stands in a conversation."""
    model = str(contest.settings.get("model", ""))
    spelt: Sequence[str] = contest.settings.get("columns") or ()
    speakers = [read_speaker(one, model) for one in spelt]
    return [vote_views.name_of(db, (one.model, one.adapter)) for one in speakers]


def rounds_shown(conversation: Conversation) -> tuple[Round, ...]:
    """The contest's questions with all columns' answers, the last `ROUNDS` of them.

    What the owner went on to say in Chat lies behind them, and is not the contest's.
    """
    number = len(speakers_of(conversation))
    turns = [turn for turn in conversation.turns if turn.position <= _end(conversation)]
    asked = [turn for turn in turns if turn.role == "user"]
    shown = []
    for place, turn in enumerate(asked, 1):
        said = {other.column_number: other for other in turns if other.position == turn.position + 1}
        given = next((text_of(other.content) for other in said.values() if other.finish == GIVEN), None)
        words = contest_views.question(turn.content, place, len(asked), given)
        answers = tuple(_said(said.get(column)) for column in range(number))
        shown.append(Round(words, answers if given is None else ()))
    return tuple(shown[-ROUNDS:])


def _said(answer: Turn | None) -> str:
    return "" if answer is None else str(chat_view.answer(text_of(answer.content), answer.finish)["content"])


def _end(conversation: Conversation) -> int:
    """The position of the answers that are voted on."""
    last = conversation.turns[-1].position if conversation.turns else 0
    return int(conversation.settings.get("last_answer", last))


def _new(db: Database, user: str, known: Sequence[Contest], now: datetime, problem: str) -> Scene:
    return Scene("new", Place(), _listing(db, user, known, now, Place()), problem=problem)


def _listing(db: Database, user: str, known: Sequence[Contest], now: datetime, at: Place) -> str:
    """The list; who speaks in a blind contest is told to whoever has voted through it to its end."""
    names = {
        one.id: contest_views.speakers(speaker_names(db, one))
        for one in known
        if not one.settings.get("blind", True) or (is_done(one) and get_job(db, one.job_id).status in ENDED)
    }
    url = contest_views.address(at.contest, at.number, at.standings)
    return contest_views.contest_list(known, names, at.contest, now, url)


def _next(db: Database, contest_id: int, user: str, by_number: Mapping[int, Entry]) -> int | None:
    conversation = next_to_vote(db, contest_id, user)
    return next((n for n, entry in by_number.items() if entry.conversation_id == conversation), None)


def _by_category(db: Database, found: Sequence[Duel]) -> dict[str, list[tuple[str, str, VerdictBetween]]]:
    groups: dict[str, list[Duel]] = {}
    for duel in found:
        groups.setdefault(duel.category, []).append(duel)
    return {
        category: [
            (vote_views.name_of(db, one.first), vote_views.name_of(db, one.second), one)
            for one in verdicts(groups[category])
        ]
        for category in sorted(groups)
    }
