"""The Contests page: what it shows of a contest, the way from prompt to prompt, undo, standings."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from contest_rows import COLUMNS, MadeContest, make_contest
from factories import USER, World, png
from storage import history
from storage.chats import add_turn, get_conversation
from storage.contests import entries, list_contests, rename_contest
from storage.errors import Conflict, PlumbError, UserError
from storage.lifecycle import JobStatus
from storage.vote_pairs import make_pairs
from storage.votes import cast_vote
from workbench import contest_desk as desk
from workbench import contest_views
from workbench.contest_desk import Place
from workbench.context import Context
from workbench.navigation import header
from workbench.pages import contests as page

NAMES = ("base (demo)", "7@lab", "8@lab", "base-")


def vote(made: MadeContest, number: int, best: str = "left", user: str = USER) -> None:
    """A vote on the last round of a prompt."""
    (entry,) = [one for one in entries(made.world.db, made.id, user) if one.number == number]
    talk = get_conversation(made.world.db, entry.conversation_id, user)
    position = talk.settings["last_answer"]
    left = next(turn for turn in talk.turns if turn.position == position and turn.column_number == 0)
    cast_vote(made.world.db, user, entry.conversation_id, left.id, best)


def everything(scene: desk.Scene) -> str:
    return " ".join(
        [scene.listing, scene.strip, scene.head, scene.instead, scene.standings, scene.problem]
        + [part for one in scene.rounds for part in (one.question, *one.answers)]
    )


# --- what is shown ---


def test_with_no_contest_the_page_says_what_to_do(context: Context) -> None:
    scene = desk.look(context, USER, Place())
    assert scene.view == "new"
    assert "No contests yet" in scene.listing
    assert "two or three speakers" in scene.listing


def test_a_contest_opens_at_the_first_prompt_without_ones_vote(world: World, context: Context) -> None:
    made = make_contest(world, total=4)
    for number in (1, 2, 3):
        made.answer(number, category="writing" if number == 2 else "")
    vote(made, 1)
    scene = desk.look(context, USER, Place(made.id))
    assert (scene.view, scene.place) == ("vote", Place(made.id, 2))
    assert 'data-url="?contest=1&amp;number=2"' in scene.listing
    assert "Prompt 2 of 4" in scene.head
    assert ">writing<" in scene.head
    assert "1 of 4 voted by you" in scene.head
    assert "3 of 4 answered · 1 voted by you" in scene.listing
    assert scene.rounds[0].answers == (
        "answer 1 of speaker 2 to prompt 2",
        "answer 1 of speaker 1 to prompt 2",
    )
    assert scene.before == 1


def test_each_person_votes_in_their_own_place(world: World, context: Context) -> None:
    made = make_contest(world, total=2)
    made.answer(1)
    made.answer(2)
    vote(made, 1)
    assert desk.look(context, USER, Place(made.id)).place.number == 2
    assert desk.look(context, "bob", Place(made.id)).place.number == 1
    assert "0 of 2 voted by you" in desk.look(context, "bob", Place(made.id)).head


def test_no_name_is_told_before_the_end(world: World, context: Context) -> None:
    made = make_contest(world, total=3, columns=COLUMNS)
    for number in (1, 2, 3):
        made.answer(number, ("first", "second"))
    made.end()
    vote(made, 1, "tie")
    vote(made, 2, "tie")
    for place in (Place(), Place(made.id), Place(made.id, 1), Place(made.id, 3)):
        shown = everything(desk.look(context, USER, place))
        assert not [name for name in NAMES if name in shown]
        assert "speakers hidden" in shown
    vote(made, 3, "tie")
    listing = desk.look(context, USER, Place()).listing
    assert "base (demo) · 7@lab · 8@lab" in listing
    assert "speakers hidden" in desk.look(context, "bob", Place()).listing


def test_while_the_job_answers_the_names_stay_hidden_from_whoever_is_up_to_date(
    world: World, context: Context
) -> None:
    made = make_contest(world, total=2)
    made.answer(1)
    vote(made, 1)
    assert "speakers hidden" in desk.look(context, USER, Place()).listing


def test_who_speaks_in_an_open_contest_is_told(world: World, context: Context) -> None:
    make_contest(world, blind=False)
    assert "base (demo) · 7@lab" in desk.look(context, USER, Place()).listing


def test_both_turns_of_a_conversation_are_shown_and_the_vote_is_on_the_last(
    world: World, context: Context
) -> None:
    made = make_contest(world, columns=COLUMNS)
    made.answer(1, ("Write a blog.", "Rewrite it."))
    scene = desk.look(context, USER, Place(made.id))
    assert [len(one.answers) for one in scene.rounds] == [3, 3]
    assert "Question 1 of 2" in scene.rounds[0].question
    assert "Rewrite it." in scene.rounds[1].question
    assert scene.rounds[1].answers[0] == "answer 2 of speaker 1 to prompt 1"
    assert "question 2, the last one" in contest_views.last_round(scene.questions)
    assert contest_views.last_round(1) == ""


def test_what_its_owner_says_afterwards_is_not_the_contests(world: World, context: Context) -> None:
    made = make_contest(world)
    talk = made.answer(1)
    add_turn(world.db, talk, 2, "user", [{"type": "text", "text": "and then?"}])
    scene = desk.look(context, USER, Place(made.id))
    assert "and then?" not in everything(scene)
    assert scene.questions == len(scene.rounds) == 1


def test_an_answer_that_came_with_the_prompt_is_nobodys(world: World, context: Context) -> None:
    made = make_contest(world)
    made.answer(1, given=("Hello <b>you</b>.", "Hello <i>too</i>."))
    first, second = desk.look(context, USER, Place(made.id)).rounds
    assert first.answers == ()
    assert "came with the prompt" in first.question
    assert "&lt;b&gt;you" in first.question
    assert "&lt;i&gt;too" in first.question
    assert len(second.answers) == 2


def test_pictures_are_whole_and_what_models_write_is_never_html(world: World, context: Context) -> None:
    made = make_contest(world)
    made.answer(1, ("<script>q()</script>",), picture=png(), texts={0: "<script>a()</script> ![x](http://x)"})
    (only,) = desk.look(context, USER, Place(made.id)).rounds
    assert re.search(r'<a href="/images/\w{64}" target="_blank"[^>]*><img src="/images/\w{64}"', only.question)
    assert "&lt;script&gt;q()" in only.question
    assert "<script>" not in "".join(only.answers)
    assert "![x]" not in "".join(only.answers)


def test_of_a_long_conversation_the_last_rounds_are_shown(world: World, context: Context) -> None:
    made = make_contest(world)
    made.answer(1, tuple(f"question {n}" for n in range(7)))
    scene = desk.look(context, USER, Place(made.id))
    assert [f"Question {n} of 7" in one.question for n, one in enumerate(scene.rounds, 4)] == [True] * 4
    assert "question 7, the last one" in contest_views.last_round(scene.questions)


def test_a_prompt_can_be_voted_on_as_soon_as_all_have_answered_it(world: World, context: Context) -> None:
    made = make_contest(world, total=2)
    assert desk.look(context, USER, Place(made.id)).view == "waiting"
    made.answer(1, speakers=(0,))
    scene = desk.look(context, USER, Place(made.id))
    assert (scene.view, scene.alive) == ("waiting", True)
    assert "No prompt is answered by all yet" in scene.instead
    assert '<a href="/jobs?job=1">' in scene.head
    made.answer(1)
    assert desk.look(context, USER, Place(made.id)).place.number == 1
    vote(made, 1)
    up_to_date = desk.look(context, USER, Place(made.id))
    assert up_to_date.view == "waiting"
    assert "all that is answered so far" in up_to_date.instead


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.STOPPED])
def test_a_job_that_ended_early_is_told_and_its_answers_are_voted_on(
    world: World, context: Context, status: JobStatus
) -> None:
    made = make_contest(world, total=5)
    made.answer(1)
    made.end(status, "the <device> is gone")
    scene = desk.look(context, USER, Place(made.id))
    assert (scene.view, scene.alive) == ("vote", False)
    assert "the &lt;device&gt; is gone." in scene.head
    assert "1 of 5 answered; those can be voted on" in scene.head


def test_a_contest_whose_job_answered_nothing_says_so(world: World, context: Context) -> None:
    made = make_contest(world)
    made.end(JobStatus.FAILED, "no model")
    scene = desk.look(context, USER, Place(made.id))
    assert scene.view == "waiting"
    assert "No prompt has been answered" in scene.instead


@pytest.mark.parametrize("place", [Place(77), Place(10**14)])
def test_a_contest_that_is_not_there_is_told(context: Context, place: Place) -> None:
    scene = desk.look(context, USER, place)
    assert (scene.view, scene.place) == ("new", Place())
    assert f"There is no contest {place.contest}" in scene.problem


def test_a_prompt_that_is_not_there_is_told_and_another_shown(world: World, context: Context) -> None:
    made = make_contest(world, total=9)
    made.answer(2)
    made.answer(3, speakers=(0,))
    for number in (0, 3, 99):
        scene = desk.look(context, USER, Place(made.id, number))
        assert scene.place.number == 2
        assert f"Prompt {number} of this contest is not answered" in scene.problem


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "99999999999999999999"])
def test_an_address_that_cannot_be_read_is_passed_over(text: str) -> None:
    assert desk.read_place({"contest": text, "number": text}) == Place()
    assert desk.read_place({"contest": "3", "number": "17"}) == Place(3, 17)
    assert desk.read_place({"contest": "3", "view": "standings"}) == Place(3, standings=True)


def test_names_of_contests_and_titles_are_escaped(world: World, context: Context) -> None:
    made = make_contest(world, name="<script>n</script>")
    made.answer(1, ('"><script>t</script>',), category="<script>c</script>")
    assert "<script>" not in everything(desk.look(context, USER, Place(made.id)))


def test_of_many_prompts_those_around_the_shown_one_are_listed(world: World) -> None:
    made = make_contest(world, total=5000)
    (contest,) = list_contests(world.db, USER)
    for number, ends in ((1, (1, 200)), (2500, (2400, 2599)), (5000, (4801, 5000))):
        shown = [int(found) for found in re.findall(r">(\d+)</span>", contest_views.strip(contest, [], number))]
        assert (shown[0], shown[-1], len(shown)) == (*ends, contest_views.MOST_CELLS)
    assert made.id == contest.id


# --- the way ---


def test_next_goes_on_behind_the_shown_one_and_comes_round(world: World, context: Context) -> None:
    made = make_contest(world, total=3)
    for number in (1, 2, 3):
        made.answer(number)
    assert desk.following(context, USER, Place(made.id, 2)).place.number == 3
    vote(made, 2)
    assert desk.following(context, USER, Place(made.id, 1)).place.number == 3
    assert desk.following(context, USER, Place(made.id, 3)).place.number == 1


def test_after_the_last_vote_come_the_standings(world: World, context: Context) -> None:
    made = make_contest(world, total=2)
    for number in (1, 2):
        made.answer(number, category=("math", "writing")[number - 1])
        vote(made, number, "left")
    made.end()
    scene = desk.following(context, USER, Place(made.id, 2))
    assert (scene.view, scene.place) == ("standings", Place(made.id, standings=True))
    assert "You have voted on every prompt" in scene.standings
    assert "view=standings" in scene.listing
    assert f'href="/api/conversations.jsonl?contest={made.id}"' in scene.standings


def test_the_standings_are_of_this_contest_by_category_and_of_all_people(world: World, context: Context) -> None:
    made, other = make_contest(world, total=2), make_contest(world, total=1, columns=("base", "8@lab"))
    other.answer(1)
    vote(other, 1)
    made.answer(1, category="math")
    made.answer(2, category="<writing>")
    for user in (USER, "bob"):
        vote(made, 1, "left", user)  # speaker 1 stands on the left there, on the right in prompt 2
        vote(made, 2, "left", user)
    shown = desk.look(context, "eve", Place(made.id, standings=True)).standings
    assert "8@lab" not in shown
    assert "7@lab" in shown
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", shown)]
    by_category = {row[0]: row[3] for row in rows if row[0] in ("math", "&lt;writing&gt;")}
    assert sorted(by_category.values()) == ["0%", "100%"]
    assert [row[5] for row in rows if row[0] in by_category] == ["2", "2"]


def test_whoever_still_votes_is_asked_before_the_standings(world: World, context: Context) -> None:
    made = make_contest(world, total=2)
    made.answer(1)
    made.answer(2)
    assert "2 prompts are" in desk.before_standings(context, USER, Place(made.id))
    vote(made, 1)
    assert "1 prompt is" in desk.before_standings(context, USER, Place(made.id))
    vote(made, 2)
    assert desk.before_standings(context, USER, Place(made.id)) == ""


def test_undo_takes_back_a_vote_and_nothing_else(world: World, context: Context) -> None:
    made = make_contest(world, total=1)
    made.answer(1)
    vote(made, 1)
    vote(made, 1, user="bob")
    assert "Undone: vote" in desk.take_back(context, USER)
    assert desk.look(context, USER, Place(made.id)).place.number == 1
    assert desk.look(context, "bob", Place(made.id)).view != "vote"
    with pytest.raises(PlumbError, match="nothing to undo"):
        desk.take_back(context, USER)


def test_undo_leaves_other_pages_work_alone(world: World, context: Context) -> None:
    made = make_contest(world)
    made.answer(1)
    vote(made, 1)
    rename_contest(world.db, USER, made.id, "another")
    with pytest.raises(UserError, match=r"renamed.*nothing was undone"):
        desk.take_back(context, USER)
    assert list_contests(world.db, USER)[0].voted == 1


def test_a_contest_is_deleted_by_its_owner_once_its_job_has_ended(world: World, context: Context) -> None:
    made = make_contest(world)
    talk = made.answer(1)
    vote(made, 1, user="bob")
    assert not desk.look(context, USER, Place(made.id)).deletable
    with pytest.raises(Conflict, match="still at this contest"):
        desk.delete(context, USER, Place(made.id))
    made.end()
    assert not desk.look(context, "bob", Place(made.id)).deletable
    with pytest.raises(UserError, match="who alone"):
        desk.delete(context, "bob", Place(made.id))
    assert desk.look(context, USER, Place(made.id)).deletable
    updates = handlers(context)["deleting"](Place(made.id), request())
    assert "is deleted" in by_id(updates)["contest-problem"]
    assert place_of(updates) == Place()
    assert list_contests(world.db, USER) == []
    history.undo(world.db, USER)
    assert list_contests(world.db, "bob")[0].voted == 1
    assert get_conversation(world.db, talk, USER).number == 1


# --- the handlers ---


def handlers(context: Context) -> dict[str, Callable[..., Any]]:
    built = page.build(context)
    return {getattr(fn.fn, "__name__", ""): fn.fn for fn in built.fns.values() if fn.fn is not None}


def request(user: str = USER, **query: str) -> Any:
    return SimpleNamespace(username=user, session_hash="s", query_params=query)


def by_id(updates: dict[Any, Any]) -> dict[str, Any]:
    return {component.elem_id: value for component, value in updates.items() if getattr(component, "elem_id", "")}


def place_of(updates: dict[Any, Any]) -> Place:
    (found,) = [value for value in updates.values() if isinstance(value, Place)]
    return found


def test_an_address_opens_its_prompt(world: World, context: Context) -> None:
    made = make_contest(world)
    made.answer(1)
    made.answer(2)
    opening = handlers(context)["opening"]
    updates = opening(request(contest=str(made.id), number="2"))
    assert place_of(updates) == Place(made.id, 2)
    assert by_id(updates)["contest-form"]["visible"] is False
    assert by_id(updates)["contest-middle-0"]["visible"] is False
    assert "Prompt 2 of" in by_id(updates)["contest-head"]
    assert by_id(opening(request()))["contest-form"]["visible"] is True


def test_a_click_on_something_else_opens_nothing(world: World, context: Context) -> None:
    choosing = handlers(context)["choosing"]
    for data in ({"contest": 9}, {"contest": "x"}, {}, None, {"contest": 10**20, "number": None}):
        assert place_of(choosing(SimpleNamespace(_data=data), request())) == Place()


def test_after_a_vote_the_page_goes_on_where_that_is_wanted(world: World, context: Context) -> None:
    made = make_contest(world, total=2)
    made.answer(1)
    made.answer(2)
    voting = handlers(context)["voting"]
    vote(made, 1)
    place = Place(made.id, 1)
    moving = by_id(voting(place, "<p>The left one is better.</p>", True, request()))
    assert f'data-after="{page.MOMENT}"' in moving["contest-after"]
    assert "1 of 2 voted by you" in moving["contest-head"]
    assert by_id(voting(place, "<p>…</p>", False, request()))["contest-after"] == ""
    refused = '<p class="plumb-error">There is a pair of it.</p>'
    assert by_id(voting(place, refused, True, request()))["contest-after"] == ""


def test_back_and_next_walk_through_the_prompts(world: World, context: Context) -> None:
    made = make_contest(world)
    for number in (1, 3):
        made.answer(number)
    found = handlers(context)
    assert place_of(found["going_on"](Place(made.id, 1), request())).number == 3
    assert place_of(found["going_back"](Place(made.id, 3), request())).number == 1
    assert place_of(found["going_back"](Place(made.id, 1), request())).number == 1


def test_an_undo_goes_back_to_the_prompt_of_the_vote(world: World, context: Context) -> None:
    made = make_contest(world)
    for number in (1, 2):
        made.answer(number)
    vote(made, 1)
    undoing = handlers(context)["undoing"]
    updates = undoing(Place(made.id, 2), Place(made.id, 1), request())
    assert place_of(updates).number == 1
    assert "Undone" in by_id(updates)["contest-problem"]
    refused = undoing(Place(made.id, 2), None, request())
    assert "nothing to undo" in by_id(refused)["contest-problem"]


def test_the_standings_are_asked_for_and_shown(world: World, context: Context) -> None:
    made = make_contest(world, total=2)
    made.answer(1)
    made.answer(2)
    found = handlers(context)
    asked = by_id(found["asking_standings"](Place(made.id, 1), request()))
    assert asked["contest-ask"]["visible"] is True
    assert "contest-standings-shown" not in asked
    shown = by_id(found["showing_standings"](Place(made.id, 1), request()))
    assert "7@lab" in shown["contest-standings-shown"]
    assert shown["contest-booth"]["visible"] is False
    assert place_of(found["resuming"](Place(made.id, standings=True), request())) == Place(made.id, 1)
    assert place_of(found["resuming"](Place(made.id, 2), request())) == Place(made.id, 2)
    vote(made, 2)
    assert place_of(found["resuming"](Place(made.id, 2), request())) == Place(made.id, 1)


def test_a_tick_leaves_the_shown_prompt_alone_and_brings_the_first_one(world: World, context: Context) -> None:
    made = make_contest(world, total=2)
    ticking = handlers(context)["ticking"]
    empty = by_id(ticking(Place(made.id), request()))
    assert "data-after" not in str(empty["contest-after"])
    made.answer(1)
    assert 'data-after="0"' in by_id(ticking(Place(made.id), request()))["contest-after"]
    made.answer(2)
    updates = ticking(Place(made.id, 1), request())
    assert "2 of 2 answered" in by_id(updates)["contest-list"]
    assert "data-after" not in str(by_id(updates)["contest-after"])
    assert not {"contest-question-0", "contest-booth", "contest-form"} & by_id(updates).keys()
    assert not [value for value in updates.values() if isinstance(value, Place)]


def test_every_event_of_the_page_has_a_concurrency_limit(context: Context) -> None:
    events = [fn for fn in page.build(context).fns.values() if fn.fn is not None]
    assert len(events) > 15
    assert all(isinstance(fn.concurrency_limit, int) and fn.concurrency_limit > 1 for fn in events)


def test_the_page_stands_behind_chat() -> None:
    names = re.findall(r'href="(/[a-z]*)"', header("contests"))
    assert names.index("/chat") + 1 == names.index("/contests")


def test_every_key_presses_a_button_that_is_there(context: Context) -> None:
    ids = {block.elem_id for block in page.build(context).blocks.values()}
    assert set(contest_views.KEYS) <= ids
    assert contest_views.PRESSED["ArrowLeft"] == contest_views.PRESSED["1"] == "vote-left"
    assert contest_views.PRESSED["ArrowDown"] == contest_views.PRESSED["m"] == "vote-middle"
    assert "middle" not in contest_views.keys(2)
    assert "middle" in contest_views.keys(3)


def test_a_vote_on_what_a_pair_was_made_of_is_refused(world: World) -> None:
    """The ballot tells it; the page stays where it is (`voting`)."""
    made = make_contest(world)
    talk = made.answer(1)
    vote(made, 1, "left")
    left = get_conversation(world.db, talk, USER).turns[1].id
    make_pairs(world.db, USER, talk, left)
    with pytest.raises(Conflict):
        vote(made, 1, "right")
