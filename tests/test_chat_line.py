"""The line before the chat's model: users take turns, and each sees the true number of those who come first."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as some

from jobs.gpu.chat_line import FairLine

Request = tuple[str, int]


def line_of(*users: str) -> FairLine[Request]:
    line: FairLine[Request] = FairLine(lambda request: request[0])
    for number, user in enumerate(users):
        line.add((user, number))
    return line


def test_five_tabs_of_one_hold_nobody_up() -> None:
    line = line_of("ada", "ada", "ada", "ada", "ada", "bob", "eve")
    assert [line.pop()[0] for _ in range(3)] == ["ada", "bob", "eve"]
    line.add(("bob", 9))
    assert [user for user, _ in line] == ["ada", "bob", "ada", "ada", "ada"]


def test_within_a_user_first_come_first_served() -> None:
    line = line_of("ada", "bob", "ada", "bob")
    assert [line.pop()[1] for _ in range(4)] == [0, 1, 2, 3]


def test_requests_without_a_name_do_not_come_before_all_others() -> None:
    line = line_of("ada", "")
    assert [line.pop()[0] for _ in range(2)] == ["ada", ""]
    line.add(("", 2))
    line.add(("ada", 3))
    assert line.pop()[0] == "ada"


def test_requests_of_nobody_keep_their_order() -> None:
    line = line_of("", "", "")
    assert [line.pop()[1] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(IndexError, match="nobody waits"):
        line.pop()


users = some.sampled_from(["ada", "bob", "eve", "joe"])
acts = some.lists(some.one_of(users, some.none()), max_size=40)  # a request of a user, or somebody is served


@given(acts)
def test_nobody_is_served_twice_while_another_waits_who_was_there_before(acts: list[str | None]) -> None:
    line = line_of()
    waiting: dict[int, tuple[str, Counter[str]]] = {}  # since it came: whom it has seen being served
    for number, user in enumerate(acts):
        if user is not None:
            line.add((user, number))
            waiting[number] = (user, Counter())
        elif len(line):
            foretold = list(line)
            served, place = line.pop()
            assert foretold[0] == (served, place)
            assert [*line] == foretold[1:], "the others' places were told truly"
            del waiting[place]
            for mine, seen in waiting.values():
                seen[served] += 1
                own = sum(other == mine for other, _ in waiting.values()) + seen[mine]
                assert seen[served] <= own, "at most once for each request that the waiting one's user had"
