"""Pairs that contradict or repeat each other are found by their texts."""

from __future__ import annotations

from factories import USER, World
from storage.pair_trouble import find_troubles
from storage.pairs import choose_by_hand, list_pairs, set_status
from workbench.context import Context
from workbench.pair_address import read_address
from workbench.pair_desk import show_list


def paired(world: World, sample: int, better: str, worse: str) -> int:
    one, two = world.candidates(sample, [better, worse])
    return choose_by_hand(world.db, USER, one.id, two.id).id


def test_troubles_are_found_by_texts_and_prompt(world: World, context: Context) -> None:
    same, other = world.sample(1), world.sample(2)
    first = paired(world, same, "circle", "square")
    assert find_troubles(world.db).contradiction == ()
    again = paired(world, same, "circle ", "square")
    against = paired(world, same, "square", " circle")
    paired(world, other, "square", "circle")  # another prompt
    found = find_troubles(world.db)
    assert found.contradiction == (first, again, against)
    assert found.duplicate == (first, again)

    tabs, cards = show_list(context, "?trouble=contradiction", USER)
    assert cards.count("data-card") == 3
    assert "those that contradict another" in tabs
    assert "2 say what another says" in tabs
    assert "trouble=duplicate" in tabs
    assert show_list(context, "?trouble=duplicate", USER)[1].count("data-card") == 2
    assert "3 contradict another" in show_list(context, "", USER)[0]
    assert read_address("?trouble=<b>").trouble is None

    set_status(world.db, USER, [against], "rejected")
    assert find_troubles(world.db).contradiction == ()
    assert "No contradiction is left" in show_list(context, "?trouble=contradiction", USER)[1]
    assert list_pairs(world.db, ids=[]) == []


def test_a_pair_that_came_with_data_says_so(world: World, context: Context) -> None:
    made = paired(world, world.sample(1), "circle", "square")
    world.db.conn.execute("UPDATE pairs SET imported = '<i>rlhf</i>' WHERE id = ?", [made])
    assert "came with &lt;i&gt;rlhf&lt;/i&gt;" in show_list(context, "", USER)[1]
