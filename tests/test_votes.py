"""Votes between two answers: stored, changed, undone, made into pairs, counted; blind ones keep their secret."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import World
from storage import history
from storage.candidates import get_candidate
from storage.chats import add_turn, delete_conversation, get_conversation, start_conversation
from storage.errors import Conflict, NotFound, PlumbError, UserError
from storage.records import Pair
from storage.rows import count
from storage.samples import get_sample
from storage.upkeep import check
from storage.votes import Duel, cast_vote, duels, make_pair, rounds_of, votes_of
from workbench.chat_desk import Cast
from workbench.context import Context
from workbench.vote_desk import ballot, hidden_cast, is_hidden, pair_up, shuffled, standings, vote
from workbench.vote_stats import interval, verdicts

USER = "ada"


def text(words: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": words}]


def talk(world: World, *rounds: tuple[str, str, str], blind: bool = False, finish: str = "stop") -> int:
    """A conversation of (question, left answer, right answer)."""
    settings: dict[str, Any] = {"model": "demo", "adapters": [None, None]} | ({"blind": True} if blind else {})
    number = start_conversation(world.db, USER, settings)
    for place, (question, *answers) in enumerate(rounds):
        add_turn(world.db, number, 2 * place, "user", text(question))
        for column, answer in enumerate(answers):
            model = f"base-{column}"
            add_turn(
                world.db,
                number,
                2 * place + 1,
                "assistant",
                text(answer),
                column_number=column,
                model=model,
                finish=finish,
            )
    return number


def left_of(world: World, number: int, place: int = -1) -> int:
    return rounds_of(get_conversation(world.db, number, USER))[place].left.id


@pytest.fixture
def context(world: World) -> Context:
    return Context(world.settings)


def test_a_vote_is_stored_changed_and_undone(world: World) -> None:
    number = talk(world, ("what?", "red", "a red circle"))
    left = left_of(world, number)
    first = cast_vote(world.db, USER, number, left, "right", " clearer ")
    assert (first.verdict, first.note) == ("right", "clearer")
    second = cast_vote(world.db, USER, number, left, "tie")
    assert (second.id, second.verdict) == (first.id, "tie")
    history.undo(world.db, USER)
    assert votes_of(world.db, number, USER)[left].verdict == "right"
    history.undo(world.db, USER)
    assert votes_of(world.db, number, USER) == {}


@pytest.mark.parametrize(
    ("verdict", "place", "error"),
    [("best", 0, UserError), ("left", 99, NotFound)],
)
def test_votes_that_are_none(world: World, verdict: str, place: int, error: type[PlumbError]) -> None:
    number = talk(world, ("what?", "red", "blue"))
    with pytest.raises(error):
        cast_vote(world.db, USER, number, place or left_of(world, number), verdict)
    with pytest.raises(NotFound):
        cast_vote(world.db, "eve", number, left_of(world, number), "left")
    assert count(world.db, "SELECT count(*) FROM votes") == 0


def test_answers_that_broke_off_cannot_be_voted_on(world: World) -> None:
    number = talk(world, ("what?", "red", "bl"), finish="failed")
    assert rounds_of(get_conversation(world.db, number, USER)) == []


def test_an_answer_stopped_before_a_word_is_none_and_one_in_mid_sentence_is_not_learned(world: World) -> None:
    number = talk(world, ("what?", " ", "blue"), finish="stopped")
    assert rounds_of(get_conversation(world.db, number, USER)) == []
    number = talk(world, ("what?", "", "blue"))
    assert rounds_of(get_conversation(world.db, number, USER)), "an empty answer that ended by itself"
    number = talk(world, ("what?", "A r", "blue"), finish="stopped")
    with pytest.raises(UserError, match="stopped before its end"):
        made(world, number, "left")
    assert count(world.db, "SELECT count(*) FROM pairs") == 0


def made(world: World, number: int, verdict: str) -> Pair:
    cast_vote(world.db, USER, number, left_of(world, number), verdict)
    return make_pair(world.db, USER, number, left_of(world, number))


def test_a_pair_of_a_vote_has_the_whole_conversation_as_its_prompt(world: World) -> None:
    number = talk(world, ("what?", "red", "a red circle"), ("sure?", "no", "Yes, I am."))
    pair = made(world, number, "right")
    assert (pair.origin, pair.status, pair.user) == ("vote", "accepted", USER)
    chosen, rejected = (get_candidate(world.db, one) for one in (pair.chosen_id, pair.rejected_id))
    assert (chosen.text, chosen.model) == ("Yes, I am.", "base-1")
    assert (rejected.text, rejected.model) == ("no", "base-0")
    sample = get_sample(world.db, pair.sample_id)
    assert [message["role"] for message in sample.messages] == ["user", "assistant", "user"]
    assert sample.messages[1]["content"] == text("a red circle"), "what the chosen one had said before"
    assert check(world.db, world.folder) == []
    with pytest.raises(Conflict, match="made of this vote already"):
        make_pair(world.db, USER, number, left_of(world, number))
    with pytest.raises(Conflict, match="was made of this vote"):
        cast_vote(world.db, USER, number, left_of(world, number), "left")
    history.undo(world.db, USER)
    assert count(world.db, "SELECT count(*) FROM pairs") == 0
    assert votes_of(world.db, number, USER)[left_of(world, number)].pair_id is None
    assert made(world, number, "left").chosen_id


def test_the_same_prompt_is_the_same_sample(world: World) -> None:
    first, second = (talk(world, ("what?", "red", "a red circle")) for _ in range(2))
    assert made(world, first, "left").sample_id == made(world, second, "right").sample_id


@pytest.mark.parametrize(
    ("answers", "verdict", "words"),
    [
        (("red", "blue"), "tie", "needs one answer that is better"),
        (("red", "blue"), "both bad", "needs one answer that is better"),
        (("red", " red"), "left", "teach nothing"),
        (("red", " "), "left", "teach nothing"),
    ],
)
def test_votes_that_make_no_pair(world: World, answers: tuple[str, str], verdict: str, words: str) -> None:
    number = talk(world, ("what?", *answers))
    with pytest.raises(UserError, match=words):
        made(world, number, verdict)
    assert count(world.db, "SELECT count(*) FROM samples WHERE source = 'chat'") == 0


# the page ----------------------------------------------------------------------------------------------------


def test_the_ballot_follows_the_last_round(world: World, context: Context) -> None:
    assert ballot(context, USER, None).left_turn is None
    number = talk(world, ("what?", "red", "a red circle"))
    found = ballot(context, USER, number)
    assert found.left_turn == left_of(world, number)
    assert not found.pairable
    voted = vote(context, USER, number, found.left_turn, "right", "clearer")
    assert "The right one is better." in voted.told
    assert "clearer" in voted.told
    assert "base (base-0)" in voted.told
    assert voted.pairable
    paired = pair_up(context, USER, number, found.left_turn)
    assert "Pair #1" in paired.told
    assert not paired.pairable
    refused = vote(context, USER, number, found.left_turn, "left", "")
    assert 'role="alert"' in refused.told
    assert refused.vote
    assert refused.vote.verdict == "right"
    add_turn(world.db, number, 2, "user", text("and now?"))
    assert ballot(context, USER, number).left_turn is None, "its answers are under way"
    for column in (0, 1):
        add_turn(world.db, number, 3, "assistant", text("red"), column_number=column, finish="stop")
    late = vote(context, USER, number, found.left_turn, "left", "")
    assert "gone on in another tab" in late.told
    assert late.left_turn == found.left_turn, "what the page shows"
    assert "gone on in another tab" in pair_up(context, USER, number, found.left_turn).told
    assert list(votes_of(world.db, number, USER)) == [found.left_turn], "the new answers have no vote"
    vote(context, USER, number, left_of(world, number), "right", "")
    late = vote(context, USER, number, found.left_turn, "left", "")
    assert (late.vote, late.pairable) == (None, False), "the newer round's vote is not shown as this one's"
    delete_conversation(world.db, USER, number)
    assert f"no conversation {number}" in vote(context, USER, number, found.left_turn, "left", "").told


def test_nothing_to_vote_on_is_told(world: World, context: Context) -> None:
    assert "ask something" in vote(context, USER, None, None, "left", "").told
    assert "There is no conversation 99" in ballot(context, USER, 99).told


def test_notes_are_never_markup(world: World, context: Context) -> None:
    number = talk(world, ("what?", "red", "blue"))
    assert "<img" not in vote(context, USER, number, left_of(world, number), "left", "<img src=x>").told


def test_a_blind_conversation_keeps_its_names_until_the_vote(world: World, context: Context) -> None:
    number = talk(world, ("what?", "red", "blue"), blind=True)
    assert is_hidden(world.db, get_conversation(world.db, number, USER))
    before = ballot(context, USER, number)
    assert before.names == ""
    assert "base-" not in before.told
    after = vote(context, USER, number, left_of(world, number), "tie", "")
    assert "base-0" in after.told
    assert not is_hidden(world.db, get_conversation(world.db, number, USER))
    assert hidden_cast(context, USER, number).model == "base-1", "whoever spoke last on the right"
    with pytest.raises(NotFound):
        hidden_cast(context, USER, None)


def test_each_stands_on_either_side_as_often() -> None:
    chance = random.Random(1)
    sides = [shuffled(Cast("demo", (None, 3)), chance).adapters for _ in range(400)]
    assert set(sides) == {(None, 3), (3, None)}
    assert 160 < sides.count((3, None)) < 240


# the verdict -------------------------------------------------------------------------------------------------


def duel(verdict: Any, swapped: bool = False, conversation: int = 1) -> Duel:
    base, adapter = ("demo", None), ("demo", 3)
    left, right = (adapter, base) if swapped else (base, adapter)
    lengths = (40, 10) if swapped else (10, 40)
    return Duel(conversation, left, right, verdict, *lengths, USER)


def test_the_verdict_counts_who_won_wherever_it_stood() -> None:
    met = [
        duel("right", conversation=1),
        duel("left", swapped=True, conversation=2),
        duel("left", conversation=3),
        duel("tie", conversation=3),
        duel("both bad", swapped=True, conversation=4),
    ]
    (few,) = verdicts(met)
    assert (few.low, few.high) == (None, None), "four conversations"
    met = [replace(one, conversation_id=one.conversation_id + 4 * copy) for one in met for copy in range(3)]
    (found,) = verdicts(met)
    assert (found.first, found.second) == (("demo", 3), ("demo", None))
    assert (found.wins, found.losses, found.ties, found.both_bad) == (6, 3, 3, 3)
    assert found.rate == pytest.approx((1 + 1 + 0 + 0.5 + 0.5) / 5)
    assert (found.left_wins, found.decided) == (6, 9)
    assert found.lengths == (40.0, 10.0)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.rate <= found.high


@given(st.lists(st.tuples(st.sampled_from(["left", "right", "tie", "both bad"]), st.booleans()), min_size=1))
def test_the_other_way_round_is_the_rest(votes: list[tuple[Any, bool]]) -> None:
    turned = {"left": "right", "right": "left"}
    met = [duel(verdict, swapped, place) for place, (verdict, swapped) in enumerate(votes)]
    other = [
        Duel(one.conversation_id, one.right, one.left, turned.get(one.verdict, one.verdict), 0, 0, USER)  # type: ignore[arg-type]
        for one in met
    ]
    (found,), (mirrored,) = verdicts(met), verdicts(other)
    assert found.rate == mirrored.rate
    assert found.left_wins + mirrored.left_wins == found.decided


def test_an_interval_needs_ten_conversations_and_knows_that_votes_hang_together() -> None:
    assert interval([1.0, 0.0], [7, 7]) == (None, None)
    assert interval([], []) == (None, None)
    assert interval([1.0, 0.0] * 9, list(range(9)) * 2) == (None, None)
    together = interval([1.0] * 20 + [0.0] * 20, [place // 4 for place in range(40)])
    apart = interval([1.0] * 20 + [0.0] * 20, list(range(40)))
    assert together[0] is not None
    assert apart[0] is not None
    assert together[0] < apart[0] < 0.5


def test_where_all_agree_the_interval_still_has_a_width() -> None:
    low, high = interval([1.0] * 20, list(range(10)) * 2)
    assert low == pytest.approx(0.7225, abs=1e-4), "Wilson's, of ten trials"
    assert high == pytest.approx(1.0)
    assert interval([0.0] * 10, list(range(10)))[1] == pytest.approx(0.2775, abs=1e-4)


def test_votes_between_one_and_the_same_are_not_counted(world: World, context: Context) -> None:
    assert "No votes between two different speakers yet" in standings(context)
    number = talk(world, ("what?", "red", "blue"))
    vote(context, USER, number, left_of(world, number), "left", "")
    assert len(duels(world.db)) == 1
    assert "base (base-1)" in standings(context)
    world.db.conn.execute("UPDATE turns SET model = 'demo'")
    assert duels(world.db) == []
