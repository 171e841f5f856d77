"""An answer tried again or gone on with, a question changed, a conversation cut: and all of it undone."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_server import USER, again, ask, everything, says, serving, stored, texts, trained
from factories import World, open_world, png
from storage import chat_edits, history
from storage.chat_edits import Answer, add_answers, replace_answer
from storage.chats import add_turn, delete_conversation, get_conversation, list_conversations, start_conversation
from storage.errors import Conflict, NotFound, PlumbError, UserError
from storage.records import Conversation, Turn
from storage.rows import count, rows
from workbench import chat_edit
from workbench.chat_again import unused_seed
from workbench.chat_desk import Cast, Decoding, opened
from workbench.chat_round import Stops, answer_last, send
from workbench.context import Context

pytestmark = pytest.mark.usefixtures("no_supervisor")


def words(world: World) -> list[str]:
    return [turn.content[-1]["text"] for turn in stored(world).turns]


def left(*texts: str, finish: str = "stop") -> list[dict[str, Any]]:
    """A script in which the left column alone speaks."""
    return [event for event in says(*texts, "x", finish=finish) if event["column"] == "left"]


def right(text: str, finish: str = "stop") -> list[dict[str, Any]]:
    return [event for event in says("x", text, finish=finish) if event["column"] == "right"]


def vote(world: World, verdict: str = "left") -> int:
    """A vote with a metric on the last round, as storage/votes.py leaves them; its id."""
    one, other = [turn for turn in stored(world).turns if turn.role == "assistant"][-2:]
    with history.action(world.db, USER, "vote") as change:
        made = change.insert(
            "votes",
            {
                "left_turn_id": one.id,
                "right_turn_id": other.id,
                "verdict": verdict,
                "user": USER,
                "created_at": "",
            },
        )
        for turn in (one, other):
            scored = {"turn_id": turn.id, "user": USER, "metric": "helpfulness", "value": 3}
            change.insert("turn_scores", scored)
    return made


def everything_of(world: World) -> dict[str, list[dict[str, Any]]]:
    tables = ("conversations", "turns", "votes", "turn_scores", "pairs")
    return {table: rows(world.db, f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in tables}


def test_a_retry_draws_anew_and_the_old_answer_can_be_brought_back(world: World, context: Context) -> None:
    with serving(context, says("Red.", "Round."), left("Blue."), left("Green.")) as server:
        number = ask(context, temperature=0.7, seed=5, system="Be brief.")[-1].conversation
        assert number is not None
        vote(world)
        before = everything_of(world)
        views = again(context, number, 0, temperature=0.7, seed=5, system="Be long.")
        again(context, number, 0, temperature=0.9, seed=5)
    assert any("Red. …" in texts(view, 0)[-1] for view in views[:-1]), "the old answer stays in sight meanwhile"
    assert texts(views[-1], 0) == ["What is it?", "Blue."]
    assert texts(views[-1], 1) == ["What is it?", "Round."]
    assert "Temperature 0" not in views[-1].status
    assert views[-1].answered == (True, True)
    assert [request["seed"] for request in server.requests] == [5, 6, 7]
    (column,) = server.requests[1]["columns"]
    assert (column["id"], column["adapter"], column.get("prefix")) == ("left", None, None)
    assert [message["role"] for message in column["messages"]] == ["system", "user"]
    assert column["messages"][0]["content"][0]["text"] == "Be brief.", "as the question was asked"
    assert words(world) == ["What is it?", "Green.", "Round."]
    kept = stored(world).turns[1].settings
    assert (kept["seed"], kept["tried"], kept["temperature"]) == (7, [5, 6], 0.9)
    assert everything_of(world)["votes"] == everything_of(world)["turn_scores"][:-1] == []
    history.undo(world.db, USER)
    assert words(world)[1] == "Blue."
    history.undo(world.db, USER)
    assert everything_of(world) == before


def test_a_retry_of_what_another_seed_is_asked_for_takes_that_one(world: World, context: Context) -> None:
    with serving(context, says("Red.", "Round."), right("Flat.")) as server:
        number = ask(context, temperature=1.0)[-1].conversation
        assert number is not None
        again(context, number, 1, temperature=1.0, seed=77)
    assert server.requests[1]["seed"] == 77


def test_a_greedy_retry_says_that_it_says_the_same(world: World, context: Context) -> None:
    with serving(context, says("Red.", "Round."), left("Red.")):
        number = ask(context)[-1].conversation
        assert number is not None
        assert "Temperature 0 gives the same answer again" in again(context, number, 0)[-1].status


def test_a_retry_keeps_the_pair_of_a_vote(world: World, context: Context) -> None:
    with serving(context, says("Red.", "Round."), left("Blue.")):
        number = ask(context)[-1].conversation
        assert number is not None
        one, other = world.candidates(world.sample(), ["a", "b"])
        made = vote(world)
        with history.action(world.db, USER, "pair") as change:
            values: dict[str, Any] = {"sample_id": one.sample_id, "chosen_id": one.id, "rejected_id": other.id}
            values |= {"origin": "vote", "status": "accepted", "user": USER, "created_at": ""}
            change.update("votes", {"id": made}, {"pair_id": change.insert("pairs", values)})
        before = everything_of(world)
        again(context, number, 0)
    assert (count(world.db, "SELECT count(*) FROM votes"), count(world.db, "SELECT count(*) FROM pairs")) == (0, 1)
    history.undo(world.db, USER)
    assert everything_of(world) == before


@pytest.mark.parametrize("script", [[{"error": "no"}], [*left("Bl")[:1], {"column": "left", "error": "no"}]])
def test_a_retry_that_comes_to_nothing_leaves_the_old_answer(
    world: World, context: Context, script: list[Any]
) -> None:
    with serving(context, says("Red.", "Round."), script):
        number = ask(context)[-1].conversation
        assert number is not None
        before = everything_of(world)
        last = again(context, number, 0)[-1]
    assert texts(last, 0)[-1] == "Red."
    assert last.answered == (True, True)
    assert not last.unanswered
    assert everything_of(world) == before


def test_a_try_that_came_to_nothing_has_used_no_seed(world: World, context: Context) -> None:
    script = [*left("Red."), {"column": "right", "error": "no"}]
    with serving(context, script, right("Round.")) as server:
        number = ask(context, seed=3, temperature=1.0)[-1].conversation
        assert number is not None
        again(context, number, 1, seed=3, temperature=1.0)
    assert server.requests[1]["seed"] == 3, "the same noise on both sides"


def test_going_on_sends_what_was_said_and_joins_it(world: World, context: Context) -> None:
    with serving(
        context, says("A red", "Round.", finish="length"), left(" circle,", finish="length"), left(" big.")
    ) as server:
        first = ask(context, seed=4)[-1]
        number = first.conversation
        assert number is not None
        assert first.cut == (True, True)
        before = everything_of(world)
        views = again(context, number, 0, go_on=True, seed=9)
        last = again(context, number, 0, go_on=True)[-1]
    assert any("A red …" in texts(view, 0)[-1] for view in views[:-1])
    assert [request["columns"][0].get("prefix") for request in server.requests] == [None, "A red", "A red circle,"]
    assert [request["seed"] for request in server.requests] == [4, 4, 4]
    assert server.requests[1]["columns"][0]["messages"][-1]["role"] == "user"
    assert words(world) == ["What is it?", "A red circle, big.", "Round."]
    assert texts(last, 0)[-1] == "A red circle, big."
    assert last.cut == (False, True)
    history.undo(world.db, USER)
    history.undo(world.db, USER)
    assert everything_of(world) == before


def test_what_has_its_end_is_not_gone_on_with(world: World, context: Context) -> None:
    with serving(context, says("Red.", "Round.")):
        number = ask(context)[-1].conversation
    assert number is not None
    with pytest.raises(UserError, match="This answer has its end"):
        again(context, number, 0, go_on=True)
    with pytest.raises(UserError, match="column = 2"):
        again(context, number, 2)
    with pytest.raises(NotFound):
        again(context, 99, 0)


def test_an_open_question_has_no_answer_to_try_again(world: World, context: Context) -> None:
    with serving(context, [{"error": "no"}]):
        number = ask(context)[-1].conversation
    assert number is not None
    with pytest.raises(Conflict, match="has no answer in this column yet"):
        again(context, number, 0)


def test_a_retry_goes_with_the_adapter_that_answered(world: World, context: Context) -> None:
    adapter = trained(world)
    with serving(context, says("a", "b"), right("c"), adapters=(adapter,)) as server:
        number = ask(context, cast=Cast.of("demo", None, adapter))[-1].conversation
        assert number is not None
        again(context, number, 1)
    assert server.requests[1]["columns"][0]["adapter"] == adapter
    assert stored(world).turns[2].adapter_id == adapter


def test_a_conversation_that_has_gone_on_keeps_its_answer(world: World, context: Context) -> None:
    with serving(context, says("a", "b")):
        number = ask(context)[-1].conversation
    assert number is not None
    seen = get_conversation(world.db, number, USER)
    chat_edits.ask(world.db, USER, number, [{"type": "text", "text": "More?"}], {})
    with pytest.raises(Conflict, match="has gone on in another tab"):
        replace_answer(world.db, seen, seen.turns[1], Answer(0, "demo", None, "c", "stop"), going_on=False)


def test_a_question_is_changed_with_its_images_and_all_comes_back(
    world: World, context: Context, tmp_path: Path
) -> None:
    files = []
    for shade in (10, 20):
        file = tmp_path / f"{shade}.png"
        file.write_bytes(png((shade, 0, 0)))
        files.append(str(file))
    with serving(context, says("a", "b"), says("c", "d"), says("e", "f"), says("g", "h")) as server:
        first = ask(context, "One?", files=tuple(files))[-1]
        number = first.conversation
        assert number is not None
        second = ask(context, "Two?", conversation=number)[-1]
        vote(world)
        before = everything_of(world)
        found = chat_edit.question(context, USER, number, first.questions[0])
        assert found.text == "One?"
        assert [Path(file).read_bytes() for file in found.files] == [png((10, 0, 0)), png((20, 0, 0))]
        last = ask(context, "Other?", (found.files[1],), number, replace=first.questions[0], seed=8)[-1]
        assert texts(last, 0)[-1] == "e"
        assert len(last.questions) == 1
        assert words(world) == ["Other?", "e", "f"]
        assert list_conversations(world.db, USER)[0].title == "Other?"
        assert len(server.requests[2]["columns"][0]["messages"]) == 1
        assert [part["type"] for part in stored(world).turns[0].content] == ["image", "text"]
        assert history.undo(world.db, USER).label == f"question changed in conversation {number}"
        assert everything_of(world) == before
        ask(context, "Two!", conversation=number, replace=second.questions[1])
    assert words(world) == ["One?", "a", "b", "Two!", "g", "h"]
    assert list_conversations(world.db, USER)[0].title == "One?"


def test_a_conversation_is_cut_and_whole_again(world: World, context: Context) -> None:
    with serving(context, says("a", "b"), says("c", "d")):
        number = ask(context, "One?")[-1].conversation
        assert number is not None
        last = ask(context, "Two?", conversation=number)[-1]
    vote(world)
    before = everything_of(world)
    chat_edit.cut_from(context, USER, number, last.questions[1])
    assert words(world) == ["One?", "a", "b"]
    chat_edit.cut_from(context, USER, number, last.questions[0])
    empty = opened(stored(world))
    assert (empty.columns, empty.unanswered, empty.answered) == (([], []), False, (False, False))
    history.undo(world.db, USER)
    history.undo(world.db, USER)
    assert everything_of(world) == before


def test_who_asks_on_has_accepted_what_was_changed(world: World, context: Context) -> None:
    """An undo would bring back turns that the later ones never saw; and votes elsewhere can still be undone."""
    with serving(context, says("a", "b"), left("c"), says("d", "e"), says("f", "g"), left("h")):
        number = ask(context)[-1].conversation
        assert number is not None
        vote(world)
        again(context, number, 0)
        ask(context, "On?", conversation=number)
        before = everything_of(world)
        with pytest.raises(Conflict):  # the vote, which stood on the answer that is gone; not the retry
            history.undo(world.db, USER)
        assert everything_of(world) == before
        other = ask(context, "Elsewhere?")[-1].conversation
        assert other is not None
        again(context, other, 0)
        chat_edits.ask(world.db, USER, number, _text("And on?"), {})
    assert history.undo(world.db, USER).label == f"answer tried again in conversation {other}"


def test_an_edit_is_not_undone_under_what_was_asked_since(world: World, context: Context) -> None:
    with serving(context, says("a", "b"), says("c", "d"), says("e", "f")):
        first = ask(context, "One?")[-1]
        ask(context, "Other?", conversation=first.conversation, replace=first.questions[0])
        ask(context, "On?", conversation=first.conversation)
    with pytest.raises(NotFound, match="nothing to undo"):
        history.undo(world.db, USER)
    assert words(world) == ["Other?", "c", "d", "On?", "e", "f"]


def test_an_undo_takes_no_vote_with_it_that_is_not_its_own(world: World, context: Context) -> None:
    with serving(context, says("a", "b"), left("c")):
        number = ask(context)[-1].conversation
        assert number is not None
        again(context, number, 0)
    made = vote(world)
    world.db.conn.execute("UPDATE actions SET refused_at = '' WHERE label = 'vote'")
    with pytest.raises(Conflict, match="somebody has voted"):
        history.undo(world.db, USER)
    assert count(world.db, "SELECT count(*) FROM votes WHERE id = ?", [made]) == 1


def test_answers_that_come_for_a_question_that_was_undone_are_told(world: World, context: Context) -> None:
    with serving(context, says("a", "b")):
        first = ask(context, "One?")[-1]
    assert first.conversation is not None
    content: list[Any] = [{"type": "text", "text": "Other?"}]
    chat_edits.replace_question(world.db, USER, first.conversation, first.questions[0], content, {})
    seen = stored(world)
    history.undo(world.db, USER)
    with pytest.raises(Conflict, match="changed or undone meanwhile"):
        add_answers(world.db, seen, {}, [Answer(0, "demo", None, "c", "stop")])
    assert words(world) == ["One?", "a", "b"]


def test_an_open_question_is_changed_too(world: World, context: Context) -> None:
    with serving(context, [{"error": "no"}], says("a", "b")):
        first = ask(context, "One?")[-1]
        assert ask(context, "Other?", conversation=first.conversation, replace=first.questions[0])
    assert words(world) == ["Other?", "a", "b"]
    history.undo(world.db, USER)
    assert words(world) == ["One?"]


@pytest.mark.parametrize("turn", ["answer", "missing"])
def test_only_a_question_is_changed(world: World, context: Context, turn: str) -> None:
    with serving(context, says("a", "b")):
        first = ask(context)[-1]
    assert first.conversation is not None
    number = stored(world).turns[1].id if turn == "answer" else 999
    for act in (chat_edit.question, chat_edit.cut_from):
        with pytest.raises(NotFound, match="not there any more"):
            act(context, USER, first.conversation, number)
    with pytest.raises(NotFound, match="not there any more"):
        ask(context, conversation=first.conversation, replace=number)
    with pytest.raises(NotFound):
        chat_edit.cut_from(context, "bob", first.conversation, first.questions[0])
    assert len(stored(world).turns) == 3


def contest(world: World) -> Conversation:
    """A conversation of ada's contest, answered."""
    with world.db.conn:
        job = world.job("contest")
        world.db.conn.execute(
            "INSERT INTO contests (name, user, job_id, created_at) VALUES ('c', ?, ?, '')", [USER, job.id]
        )
    number = start_conversation(world.db, USER, {"model": "demo", "columns": ["base", "base"]})
    world.db.conn.execute("UPDATE conversations SET contest_id = 1, number = 0 WHERE id = ?", [number])
    add_turn(world.db, number, 0, "user", [{"type": "text", "text": "What?"}])
    for column in range(2):
        said: list[Any] = [{"type": "text", "text": "Red."}]
        add_turn(world.db, number, 1, "assistant", said, column_number=column, model="demo", finish="length")
    return get_conversation(world.db, number, USER)


def test_a_contests_conversation_is_open_to_all_and_stays_as_it_is(world: World, context: Context) -> None:
    found = contest(world)
    question = found.turns[0].id
    assert get_conversation(world.db, found.id, "bob") == found
    assert list_conversations(world.db, USER) == []
    assert (opened(found).cut, opened(found).answered) == ((False, False), (False, False))
    acts: list[Callable[[], object]] = [
        lambda: again(context, found.id, 0),
        lambda: chat_edit.cut_from(context, USER, found.id, question),
        lambda: ask(context, conversation=found.id, replace=question),
    ]
    for act in acts:
        with pytest.raises(UserError, match="belongs to a contest"):
            act()
    acts = [
        lambda: chat_edits.ask(world.db, "bob", found.id, [], {}),
        lambda: delete_conversation(world.db, "bob", found.id),
        lambda: everything_as("bob", context, found.id),
    ]
    for act in acts:
        with pytest.raises(UserError, match="belongs to a contest of ada"):
            act()
    assert get_conversation(world.db, found.id, USER) == found
    with serving(context, says("a", "b")):
        ask(context, "On?", conversation=found.id)
    assert len(get_conversation(world.db, found.id, USER).turns) == 6


def everything_as(user: str, context: Context, number: int) -> None:
    values = Decoding().model_dump()
    asyncio.run(everything(send(context, Stops(), "s", user, number, "Mine?", (), Cast(), values)))


def test_answers_that_others_voted_on_stay(world: World, context: Context) -> None:
    found = contest(world)
    world.db.conn.execute("INSERT INTO users (name, created_at) VALUES ('bob', '')")
    world.db.conn.execute(
        "INSERT INTO votes (left_turn_id, right_turn_id, verdict, user, created_at)"
        " VALUES (?, ?, 'tie', 'bob', '')",
        [found.turns[1].id, found.turns[2].id],
    )
    with pytest.raises(Conflict, match="Others have voted"):
        delete_conversation(world.db, USER, found.id)
    assert get_conversation(world.db, found.id, USER) == found


@given(wanted=st.integers(0, 2**31 - 1), tried=st.lists(st.integers(0, 2**31 - 1), max_size=20))
def test_a_seed_is_never_used_twice(wanted: int, tried: list[int]) -> None:
    tried = [*tried, wanted, 2**31 - 1]
    assert unused_seed(wanted, tried) not in tried
    assert 0 <= unused_seed(wanted, tried) < 2**31
    assert unused_seed(wanted, []) == wanted


STEP = st.tuples(st.sampled_from(["edit", "cut", "retry", "go on", "vote"]), st.integers(0, 5))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.integers(1, 3), columns=st.integers(2, 3), steps=st.lists(STEP, min_size=1, max_size=6))
@pytest.mark.slow
def test_whatever_is_changed_is_undone_step_by_step(
    rounds: int, columns: int, steps: list[tuple[str, int]]
) -> None:
    """Edits, cuts, other answers and votes in any order: each undo brings back exactly what was there before."""
    with tempfile.TemporaryDirectory() as folder:
        world = open_world(Path(folder) / "data")
        try:
            number = _talk(world, rounds, columns)
            states = [everything_of(world)]
            for place, (what, which) in enumerate(steps):
                if _change(world, number, columns, what, which, f"{what} {place}"):
                    states.append(everything_of(world))
            while len(states) > 1:
                assert everything_of(world) == states.pop()
                history.undo(world.db, USER)
            assert everything_of(world) == states[0]
        finally:
            world.db.close()


def _text(words: str) -> list[Any]:
    return [{"type": "text", "text": words}]


def _answers(columns: int, words: str) -> list[Answer]:
    return [Answer(number, "demo", None, f"{words} {number}", "length") for number in range(columns)]


def _talk(world: World, rounds: int, columns: int) -> int:
    number = start_conversation(world.db, USER, {"model": "demo", "columns": ["base"] * columns})
    for place in range(rounds):
        chat_edits.ask(world.db, USER, number, _text(f"question {place}"), {})
        seen = get_conversation(world.db, number, USER)
        add_answers(world.db, seen, {"seed": place}, _answers(columns, f"answer {place}"))
    return number


def _change(world: World, number: int, columns: int, what: str, which: int, words: str) -> bool:
    """One undoable step; False where there is nothing to do it to."""
    found = get_conversation(world.db, number, USER)
    questions = [turn for turn in found.turns if turn.role == "user"]
    answers = [turn for turn in found.turns if turn.role == "assistant"]
    if not questions:
        return False
    question = questions[which % len(questions)]
    if what == "edit":
        chat_edits.replace_question(world.db, USER, number, question.id, _text(words), {"seed": 1})
        seen = get_conversation(world.db, number, USER)
        add_answers(world.db, seen, {"seed": 2}, _answers(columns, words))
    elif what == "cut":
        chat_edits.cut_from(world.db, USER, number, question.id)
    elif what == "vote":
        pair = [turn.id for turn in answers if turn.position == question.position + 1][:2]
        try:
            with history.action(world.db, USER, "vote") as change:
                values = {"left_turn_id": pair[0], "right_turn_id": pair[1], "verdict": "tie", "user": USER}
                change.insert("votes", {**values, "created_at": ""})
                scored = {"turn_id": pair[0], "user": USER, "metric": "coherence", "value": which % 5}
                change.insert("turn_scores", scored)
        except Exception:
            return False  # there is one already
    else:
        last = [turn for turn in answers if turn.position == found.turns[-1].position]
        old = last[which % len(last)]
        _replace(world, found, old, what == "go on", words)
    return True


def _replace(world: World, found: Conversation, old: Turn, going_on: bool, words: str) -> None:
    assert old.column_number is not None
    text = old.content[0]["text"] + words if going_on else words
    answer = Answer(old.column_number, "demo", None, text, "length", {"seed": 3})
    replace_answer(world.db, found, old, answer, going_on=going_on)


def test_an_answer_that_goes_wrong_is_told(world: World, context: Context) -> None:
    with pytest.raises(PlumbError):
        asyncio.run(everything(answer_last(context, Stops(), "s", USER, 5, Cast(), Decoding())))
