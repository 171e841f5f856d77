"""Votes between two answers: stored, changed, undone, made into pairs, counted; blind ones keep their secret."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from factories import World, png
from jobs.configs import DpoConfig
from jobs.freezing import freeze
from jobs.packing_training import pack_training
from storage import history
from storage.candidates import get_candidate
from storage.chat_edits import Answer, replace_answer
from storage.chats import add_turn, delete_conversation, get_conversation, start_conversation
from storage.errors import Conflict, NotFound, PlumbError, UserError
from storage.images import ensure_image
from storage.imports.formats import trl
from storage.pairs import list_pairs
from storage.records import Pair
from storage.rows import count
from storage.samples import get_sample
from storage.scores import get_judgements
from storage.upkeep import check
from storage.vote_pairs import make_pairs, prompt_of
from storage.votes import Duel, cast_vote, duels, rounds_of, set_turn_scores, votes_of
from workbench.chat_desk import Cast
from workbench.chat_history import history as sent
from workbench.context import Context
from workbench.pair_views import card
from workbench.vote_desk import ballot, hidden_cast, is_hidden, pair_up, score, shuffled, standings, vote
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
    return rounds_of(get_conversation(world.db, number, USER))[place].first


@pytest.fixture
def context(world: World) -> Context:
    return Context(world.settings)


def test_a_vote_is_stored_changed_and_undone(world: World) -> None:
    number = talk(world, ("what?", "red", "a red circle"))
    left = left_of(world, number)
    first = cast_vote(world.db, USER, number, left, "right", " clearer ")
    assert (first.best, first.note) == ("right", "clearer")
    second = cast_vote(world.db, USER, number, left, "tie")
    assert second.best == "tie"
    assert count(world.db, "SELECT count(*) FROM votes") == 1
    history.undo(world.db, USER)
    assert votes_of(world.db, number, USER)[left].best == "right"
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
    (pair,) = make_pairs(world.db, USER, number, left_of(world, number)).pairs
    return pair


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
        make_pairs(world.db, USER, number, left_of(world, number))
    with pytest.raises(Conflict, match="was made of this vote"):
        cast_vote(world.db, USER, number, left_of(world, number), "left")
    history.undo(world.db, USER)
    assert count(world.db, "SELECT count(*) FROM pairs") == 0
    assert votes_of(world.db, number, USER)[left_of(world, number)].pair_ids == ()
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
    assert ballot(context, USER, None).first_turn is None
    number = talk(world, ("what?", "red", "a red circle"))
    found = ballot(context, USER, number)
    assert found.first_turn == left_of(world, number)
    assert not found.pairable
    voted = vote(context, USER, number, found.first_turn, "right", "clearer")
    assert "The right one is better." in voted.told
    assert "clearer" in voted.told
    assert "base (base-0)" in voted.told
    assert voted.pairable
    paired = pair_up(context, USER, number, found.first_turn)
    assert 'Pair <a href="/pairs?after=0">#1</a>' in paired.told
    assert not paired.pairable
    refused = vote(context, USER, number, found.first_turn, "left", "")
    assert 'role="alert"' in refused.told
    assert refused.vote
    assert refused.vote.best == "right"
    add_turn(world.db, number, 2, "user", text("and now?"))
    assert ballot(context, USER, number).first_turn is None, "its answers are under way"
    for column in (0, 1):
        add_turn(world.db, number, 3, "assistant", text("red"), column_number=column, finish="stop")
    late = vote(context, USER, number, found.first_turn, "left", "")
    assert "gone on in another tab" in late.told
    assert late.first_turn == found.first_turn, "what the page shows"
    assert "gone on in another tab" in pair_up(context, USER, number, found.first_turn).told
    assert list(votes_of(world.db, number, USER)) == [found.first_turn], "the new answers have no vote"
    vote(context, USER, number, left_of(world, number), "right", "")
    late = vote(context, USER, number, found.first_turn, "left", "")
    assert (late.vote, late.pairable) == (None, False), "the newer round's vote is not shown as this one's"
    delete_conversation(world.db, USER, number)
    assert f"no conversation {number}" in vote(context, USER, number, found.first_turn, "left", "").told


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
    casts = [shuffled(Cast.of("demo", None, 3), chance) for _ in range(400)]
    sides = [tuple(one.adapter for one in cast.speakers) for cast in casts]
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


# three columns, scores, how it was asked ---------------------------------------------------------------------


def three(world: World, *answers: str, finish: str = "stop", **asked: Any) -> int:
    """A conversation of one question and three answers, asked with these settings."""
    columns = {"model": "demo", "columns": ["base", "7", "large@lab"]}
    number = start_conversation(world.db, USER, columns)
    add_turn(world.db, number, 0, "user", text("what?"), settings=columns | asked)
    for column, answer in enumerate(answers):
        model = f"base-{column}" if column < 2 else "large@lab"
        add_turn(world.db, number, 1, "assistant", text(answer), column_number=column, model=model, finish=finish)
    return number


@pytest.mark.parametrize(
    ("best", "compared"),
    [
        ("left", {(0, 1): "left", (0, 2): "left"}),
        ("middle", {(0, 1): "right", (1, 2): "left"}),
        ("right", {(0, 2): "right", (1, 2): "right"}),
        ("tie", {(0, 1): "tie", (0, 2): "tie", (1, 2): "tie"}),
        ("both bad", {(0, 1): "both bad", (0, 2): "both bad", (1, 2): "both bad"}),
    ],
)
def test_a_vote_among_three_is_comparisons_of_two(world: World, best: str, compared: dict[Any, str]) -> None:
    number = three(world, "red", "a red circle", "blue")
    first = left_of(world, number)
    cast_vote(world.db, USER, number, first, "middle")
    assert cast_vote(world.db, USER, number, first, best, "so").best == best
    found = world.db.query("SELECT left_turn_id, right_turn_id, verdict FROM votes")
    assert {
        (row["left_turn_id"] - first, row["right_turn_id"] - first): row["verdict"] for row in found
    } == compared
    assert {(one.left[0], one.right[0], one.verdict) for one in duels(world.db)} == {
        (("base-0", "base-1", "large@lab")[i], ("base-0", "base-1", "large@lab")[j], verdict)
        for (i, j), verdict in compared.items()
    }
    history.undo(world.db, USER)
    assert votes_of(world.db, number, USER)[first].best == "middle"


@pytest.mark.parametrize("best", ["left", "middle", "right", "tie", "both bad"])
@pytest.mark.parametrize("column", [0, 1, 2])
def test_another_answer_takes_the_whole_vote_away(world: World, best: str, column: int) -> None:
    number = three(world, "red", "a red circle", "blue")
    first = left_of(world, number)
    cast_vote(world.db, USER, number, first, best)
    found = get_conversation(world.db, number, USER)
    old = rounds_of(found)[0].answers[column]
    fresh = Answer(column, old.model or "", None, "another", "stop")
    replace_answer(world.db, found, old, fresh, going_on=False)
    assert votes_of(world.db, number, USER) == {}
    with pytest.raises(NotFound, match="no vote"):
        make_pairs(world.db, USER, number, left_of(world, number))
    history.undo(world.db, USER)
    assert votes_of(world.db, number, USER)[first].best == best


def test_the_same_vote_again_is_nothing_to_undo(world: World) -> None:
    number = three(world, "red", "a red circle", "blue")
    first = left_of(world, number)
    for _ in range(2):
        cast_vote(world.db, USER, number, first, "middle", "so", {first: {"verbosity": 2}})
    history.undo(world.db, USER)
    assert votes_of(world.db, number, USER) == {}
    cast_vote(world.db, USER, number, first, "middle", "so")
    assert cast_vote(world.db, USER, number, first, "middle", "so, and so").note == "so, and so"
    history.undo(world.db, USER)
    assert votes_of(world.db, number, USER)[first].note == "so"


def test_the_prompt_of_a_pair_is_what_was_sent(world: World, context: Context) -> None:
    number = talk(world, ("one?", "", "x"), ("two?", "yes", "no"))
    turns = rounds_of(get_conversation(world.db, number, USER))[-1].before
    for column in (0, 1):
        assert prompt_of(turns, column) == sent(context, turns, column)
    world.db.conn.execute("UPDATE turns SET finish = 'stopped' WHERE content LIKE '%\"\"%'")
    turns = get_conversation(world.db, number, USER).turns[:4]
    assert [message["role"] for message in prompt_of(turns, 0)] == ["user"]
    assert prompt_of(turns, 0) == sent(context, turns, 0)


def test_a_pair_leads_back_to_its_chat_for_those_who_may_open_it(world: World) -> None:
    number = talk(world, ("what?", "red", "a red circle"))
    made(world, number, "right")
    link = f'href="/chat?conversation={number}"'
    assert link in card(list_pairs(world.db, viewer=USER)[0])
    assert link not in card(list_pairs(world.db, viewer="eve")[0])
    assert link not in card(list_pairs(world.db)[0])
    world.db.conn.execute("PRAGMA foreign_keys = OFF")
    world.db.conn.execute("UPDATE conversations SET contest_id = 1, number = 1")
    assert link in card(list_pairs(world.db, viewer="eve")[0]), "everybody votes on a contest's conversations"


def test_a_pair_with_a_system_prompt_is_frozen_and_packed(world: World) -> None:
    number = three(world, "red", "a red circle", "blue", system="Be brief.")
    other = talk(world, ("why?", "so", "because"))
    for one, best in ((number, "middle"), (other, "left")):
        cast_vote(world.db, USER, one, left_of(world, one), best)
        make_pairs(world.db, USER, one, left_of(world, one))
    freeze(world.db, USER, "of chats", heldout_percent=50)
    rows = pack_training(world.db, DpoConfig(dataset="of chats", model="demo")).rows
    asked = {row["chosen"]: row["messages"] for row in rows}
    assert asked["a red circle"] == [
        {"role": "system", "content": text("Be brief.")},
        {"role": "user", "content": text("what?")},
    ]
    assert [message["role"] for message in asked["so"]] == ["user"]
    trl_row = {"prompt": asked["a red circle"], "chosen": "a red circle", "rejected": "red"}
    (back,) = trl(trl_row, Path())
    assert [turn.role for turn in back.turns] == ["system", "user"]


def test_two_columns_have_no_middle(world: World) -> None:
    number = talk(world, ("what?", "red", "blue"))
    with pytest.raises(UserError, match="use one of left, right, tie, both bad"):
        cast_vote(world.db, USER, number, left_of(world, number), "middle")


def test_an_answer_that_lacks_keeps_three_from_being_a_round(world: World) -> None:
    assert rounds_of(get_conversation(world.db, three(world, "red", "blue"), USER)) == []


def test_the_best_of_three_makes_two_pairs(world: World, context: Context) -> None:
    number = three(world, "red", "a red circle", "blue")
    first = left_of(world, number)
    cast_vote(world.db, USER, number, first, "middle")
    pairs = make_pairs(world.db, USER, number, first).pairs
    texts = [
        (get_candidate(world.db, pair.chosen_id).text, get_candidate(world.db, pair.rejected_id).text)
        for pair in pairs
    ]
    assert texts == [("a red circle", "red"), ("a red circle", "blue")]
    assert len({pair.chosen_id for pair in pairs}) == 1
    assert votes_of(world.db, number, USER)[first].pair_ids == (1, 2)
    assert "Pairs" in ballot(context, USER, number).told
    with pytest.raises(Conflict, match="Pair 1 was made of this vote"):
        cast_vote(world.db, USER, number, first, "left")
    history.undo(world.db, USER)
    assert count(world.db, "SELECT count(*) FROM pairs") == count(world.db, "SELECT count(*) FROM candidates") == 0


def test_what_teaches_nothing_is_passed_over_and_told(world: World, context: Context) -> None:
    number = three(world, "red", "a red circle", "")
    first = left_of(world, number)
    vote(context, USER, number, first, "middle", "")
    found = pair_up(context, USER, number, first)
    assert "The right one made none" in found.told
    assert count(world.db, "SELECT count(*) FROM pairs") == 1


def test_scores_of_answers_become_the_persons_scores_of_the_candidates(world: World, context: Context) -> None:
    number = talk(world, ("what?", "red", "a red circle"))
    first = left_of(world, number)
    score(context, USER, number, first, 0, "helpfulness", 1)
    score(context, USER, number, first, 1, "helpfulness", 4)
    found = score(context, USER, number, first, 1, "correctness", 3)
    assert found.scores == ({"helpfulness": 1}, {"helpfulness": 4, "correctness": 3})
    assert score(context, USER, number, first, 1, "correctness", None).scores[1] == {"helpfulness": 4}
    history.undo(world.db, USER)
    cast_vote(world.db, USER, number, first, "right", scores={first: {"verbosity": 0}})
    (pair,) = make_pairs(world.db, USER, number, first).pairs
    (judgement,) = get_judgements(world.db, [pair.sample_id])[pair.sample_id]
    assert (judgement.rater.kind, judgement.rater.name) == ("person", USER)
    given_ = {one.candidate_id: (one.helpfulness, one.correctness, one.verbosity) for one in judgement.scores}
    assert given_ == {pair.chosen_id: (4, 3, None), pair.rejected_id: (1, None, 0)}
    assert check(world.db, world.folder) == []
    history.undo(world.db, USER)
    assert count(world.db, "SELECT count(*) FROM scores") == 0
    assert ballot(context, USER, number).scores[1] == {"helpfulness": 4, "correctness": 3}


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({99: {"helpfulness": 1}}, "scores of answer 99"),
        ({0: {"beauty": 1}}, "Unknown metric 'beauty'"),
        ({0: {"helpfulness": 5}}, "helpfulness = 5"),
        ({0: {"helpfulness": True}}, "helpfulness = True"),
    ],
)
def test_scores_that_are_none(world: World, scores: dict[int, Any], words: str) -> None:
    number = talk(world, ("what?", "red", "blue"))
    first = left_of(world, number)
    with pytest.raises(UserError, match=words):
        cast_vote(
            world.db, USER, number, first, "left", scores={turn or first: one for turn, one in scores.items()}
        )
    assert count(world.db, "SELECT count(*) FROM votes") == 0


def test_the_prompt_of_a_pair_begins_with_the_system_prompt_and_lacks_what_was_left_out(world: World) -> None:
    number = start_conversation(world.db, USER, {"model": "demo", "columns": ["base", "7"]})
    images = [ensure_image(world.db, world.folder, png((colour, 9, 9))).sha256 for colour in (1, 2)]
    first: list[dict[str, str]] = [{"type": "image", "image": images[0]}, *text("what?")]
    second: list[dict[str, str]] = [{"type": "image", "image": images[1]}, *text("and this?")]
    for place, content in ((0, first), (2, second)):
        asked = {"system": f"Be brief, {place}.", "without_images": place // 2}
        add_turn(world.db, number, place, "user", content, settings=asked)
        for column, answer in enumerate(("red", "a red circle")):
            add_turn(world.db, number, place + 1, "assistant", text(answer), column_number=column, finish="stop")
    sample = get_sample(world.db, made(world, number, "right").sample_id)
    assert sample.messages[0] == {"role": "system", "content": text("Be brief, 2.")}
    assert [message["role"] for message in sample.messages] == ["system", "user", "assistant", "user"]
    assert (sample.images, sample.question) == ((images[1],), "and this?")


verdict_words = st.sampled_from(["left", "middle", "right", "tie", "both bad"])
steps = st.lists(
    st.one_of(
        st.tuples(st.just("vote"), verdict_words),
        st.tuples(st.just("score"), st.integers(0, 2)),
        st.tuples(st.just("pair"), st.none()),
    ),
    max_size=8,
)
TABLES = ("votes", "turn_scores", "candidates", "pairs", "judgements", "scores")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_whatever_is_voted_scored_and_paired_is_undone_step_by_step(world: World, chosen: list[Any]) -> None:
    number = three(world, "red", "a red circle", "blue")
    found = rounds_of(get_conversation(world.db, number, USER))[0]
    kept: list[Any] = []

    def state() -> list[Any]:
        return [list(world.db.query(f"SELECT * FROM {table}")) for table in TABLES]

    for verb, value in chosen:
        before, done = state(), history.last_action(world.db, USER)
        try:
            if verb == "vote":
                cast_vote(world.db, USER, number, found.first, value)
            elif verb == "score":
                scores = {found.answers[value].id: {"coherence": len(kept) % 5}}
                set_turn_scores(world.db, USER, number, found.first, scores)
            else:
                make_pairs(world.db, USER, number, found.first)
        except PlumbError:
            assert state() == before
        if history.last_action(world.db, USER) != done:
            kept.append(before)
    for before in reversed(kept):
        history.undo(world.db, USER)
        assert state() == before
