"""Saved views: one's own, others', and all of it undone."""

from __future__ import annotations

import pytest

from factories import World
from storage import history
from storage.errors import Conflict, NotFound, UserError
from storage.finding import SampleFilter
from storage.saved_views import delete_view, get_view, list_views, save_view, share_view

NASTY = "<script>alert(1)</script> “ad & co” שלום 🙂"


def names(world: World, user: str) -> list[str]:
    return [view.name for view in list_views(world.db, user)]


def test_a_view_keeps_its_filter(world: World) -> None:
    where = SampleFilter(q="a & b = c? #1 +", source="x/y", state="paired", order="gap")
    view = save_view(world.db, "ada", f"  {NASTY}  ", where.as_query())
    assert view.name == NASTY
    assert not view.shared
    assert SampleFilter.from_query(get_view(world.db, "ada", view.id).parameters) == where
    assert save_view(world.db, "ada", NASTY, f"?{view.query}") == view


def test_own_views_come_first_and_others_only_when_shared(world: World) -> None:
    for user, name, shared in (
        ("ada", "Zebra", False),
        ("ada", "apple", True),
        ("bob", "bee", True),
        ("bob", "hidden", False),
        ("eve", "apple", True),
    ):
        save_view(world.db, user, name, {"state": "paired"}, shared)
    assert names(world, "ada") == ["apple", "Zebra", "apple", "bee"]
    assert [view.user for view in list_views(world.db, "ada")] == ["ada", "ada", "eve", "bob"]
    assert names(world, "bob") == ["bee", "hidden", "apple", "apple"]
    assert names(world, "new") == ["apple", "apple", "bee"]


def test_saving_under_a_name_again_replaces_the_view(world: World) -> None:
    first = save_view(world.db, "ada", "mine", {"state": "paired"})
    second = save_view(world.db, "ada", "mine", {"state": "judged", "q": ""})
    assert (second.id, second.parameters) == (first.id, {"state": "judged"})
    assert history.undo(world.db, "ada").label == "view “mine” replaced"
    assert get_view(world.db, "ada", first.id) == first
    save_view(world.db, "ada", "mine", {"state": "paired"})  # as it is: no act
    assert history.undo(world.db, "ada").label == "view “mine” saved"
    assert names(world, "ada") == []
    history.redo(world.db, "ada")
    assert get_view(world.db, "ada", first.id) == first


def test_deleting_and_sharing_can_be_undone(world: World) -> None:
    view = save_view(world.db, "ada", "mine", {"state": "paired"})
    assert share_view(world.db, "ada", view.id, True).shared
    assert names(world, "bob") == ["mine"]
    history.undo(world.db, "ada")
    assert names(world, "bob") == []
    assert delete_view(world.db, "ada", view.id) == view
    assert names(world, "ada") == []
    history.undo(world.db, "ada")
    assert list_views(world.db, "ada") == [view]


def test_a_deletion_is_not_undone_over_a_new_view_of_that_name(world: World) -> None:
    old = save_view(world.db, "ada", "mine", {"state": "paired"})
    delete_view(world.db, "ada", old.id)
    new = save_view(world.db, "ada", "mine", {"state": "judged"})
    history.undo(world.db, "ada")
    history.undo(world.db, "ada")
    assert list_views(world.db, "ada") == [old]
    history.redo(world.db, "ada")
    history.redo(world.db, "ada")
    assert list_views(world.db, "ada") == [new]


def test_nobody_changes_anothers_view(world: World) -> None:
    shared = save_view(world.db, "ada", "shared", {"state": "paired"}, shared=True)
    hidden = save_view(world.db, "ada", "hidden", {"state": "paired"})
    with pytest.raises(Conflict, match="“shared” is ada's"):
        delete_view(world.db, "bob", shared.id)
    with pytest.raises(Conflict, match="“shared” is ada's"):
        share_view(world.db, "bob", shared.id, False)
    with pytest.raises(NotFound, match=f"no view {hidden.id}"):
        delete_view(world.db, "bob", hidden.id)
    save_view(world.db, "bob", "shared", {"state": "judged"})
    assert get_view(world.db, "ada", shared.id) == shared


@pytest.mark.parametrize(
    ("name", "query", "said"),
    [
        ("", {}, "name is empty"),
        (" \n ", {}, "name is empty"),
        ("x" * 81, {}, "81 characters"),
        ("a\ud800", {}, "half a character"),
        ("a\0", {}, "character zero"),
        ("a", {"q": "x" * 2_001}, "2,001 characters"),
        ("a", {"q": "x" * 1_500, "source": "y" * 1_500}, "3,010 characters"),
        ("a", {"q": "\ud800"}, "half a character"),
    ],
)
def test_what_is_no_view_is_refused(world: World, name: str, query: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        save_view(world.db, "ada", name, query)
    assert list_views(world.db, "ada") == []
