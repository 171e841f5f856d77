"""The limit on guessing: by name, by address, by browser."""

from __future__ import annotations

import threading

import pytest

from at_the_door import OTHER, PASSWORD, Place
from storage import users
from workbench import door as doors
from workbench.attempts import Attempts, Limit, TooManyAttempts, address_key, name_key

pytestmark = pytest.mark.usefixtures("cheap_hashes")


def test_a_wrong_password_a_hundred_times_never_lets_a_right_one_through_early(place: Place) -> None:
    users.add_user(place.world.db, "ada", "annotator", PASSWORD)
    answers = [place.log_in("ada", f"wrong number {n}", client=f"10.0.{n}.1") for n in range(100)]
    assert answers == [401] * doors.NAME_ATTEMPTS + [429] * (100 - doors.NAME_ATTEMPTS)
    assert place.log_in("ada", PASSWORD, client="10.1.1.1") == 429, "right, and early"
    place.moment[0] += doors.NAME_SECONDS - 1
    assert place.log_in("ada", PASSWORD, client="10.1.1.1") == 429
    place.moment[0] += 2
    assert place.log_in("ada", PASSWORD, client="10.1.1.1") == 303


def test_a_flood_from_one_address_shuts_out_that_address_alone(place: Place) -> None:
    users.add_user(place.world.db, "ada", "annotator", PASSWORD)
    for n in range(100):
        place.log_in(f"somebody {n}", "wrong wrong wrong", client="10.6.6.6")
    assert place.log_in("ada", PASSWORD, client="10.6.6.6") == 429
    assert place.log_in("ada", PASSWORD, client="10.0.0.1") == 303
    place.moment[0] += doors.WINDOW_SECONDS + 1
    assert place.log_in("ada", PASSWORD, client="10.6.6.6") == 303


def test_guessing_at_a_name_does_not_shut_out_its_owners_browser(place: Place) -> None:
    users.add_user(place.world.db, "ada", "annotator", PASSWORD)
    mine = place.visitor(client="10.0.0.1")
    assert place.log_in("ada", PASSWORD, mine) == 303
    mine.post("/logout")
    for n in range(50):
        place.log_in("ada", f"wrong number {n}", client=f"10.0.{n}.2")
    assert place.log_in("ada", PASSWORD, client="10.0.0.1") == 429, "another browser waits"
    assert place.log_in("ada", PASSWORD, mine) == 303


def test_a_known_browser_gets_no_endless_guesses_and_none_at_others(place: Place) -> None:
    users.add_user(place.world.db, "ada", "annotator", PASSWORD)
    users.add_user(place.world.db, "eve", "annotator", PASSWORD)
    mine = place.visitor(client="10.0.0.1")
    assert place.log_in("eve", PASSWORD, mine) == 303
    device = mine.cookies[place.door.sessions.device_cookie]
    assert place.door.sessions.device_of(device, "eve")
    assert place.door.sessions.device_of(device, "ada") == ""
    answers = []
    for n in range(20):
        place.moment[0] += doors.WINDOW_SECONDS / doors.ATTEMPTS + 1  # slower than the address's limit
        answers.append(place.log_in("eve", f"wrong number {n}", mine))
    assert answers.count(401) == doors.NAME_ATTEMPTS


def test_a_success_between_guesses_does_not_start_the_count_anew(place: Place) -> None:
    users.add_user(place.world.db, "eve", "annotator", OTHER)
    wrong = 0
    for n in range(30):
        wrong += place.log_in(f"ada {n}", "wrong wrong wrong", client="10.0.0.9") == 401
        place.log_in("eve", OTHER, client="10.0.0.9")
    assert wrong == doors.ATTEMPTS


def test_right_logins_are_not_limited(place: Place) -> None:
    users.add_user(place.world.db, "ada", "annotator", PASSWORD)
    assert {place.log_in("ada", PASSWORD) for _ in range(30)} == {303}


def test_attempts_at_once_are_counted_before_they_are_judged() -> None:
    attempts, limit = Attempts(), [("one", Limit(10, 60.0))]
    gone, counted = threading.Barrier(40), []

    def attempt() -> None:
        gone.wait()
        try:
            attempts.begin(limit)
            counted.append(1)
        except TooManyAttempts:
            pass

    threads = [threading.Thread(target=attempt) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counted) == 10


def test_the_time_slides() -> None:
    """Ten in any sixty seconds: not ten, and ten more as soon as the first is old."""
    moment = [0.0]
    attempts, limit = Attempts(lambda: moment[0]), [("one", Limit(2, 60.0))]
    attempts.begin(limit)
    moment[0] = 50.0
    attempts.begin(limit)
    moment[0] = 61.0
    attempts.begin(limit)
    with pytest.raises(TooManyAttempts) as refused:
        attempts.begin(limit)
    assert refused.value.wait == 49.0


def test_what_is_refused_counts_nowhere_else() -> None:
    moment = [0.0]
    attempts = Attempts(lambda: moment[0])
    full, free = ("full", Limit(1, 60.0)), ("free", Limit(2, 60.0))
    attempts.begin([full])
    for _ in range(5):
        with pytest.raises(TooManyAttempts) as refused:
            attempts.begin([full, free])
        assert refused.value.wait == 60.0
    attempts.begin([free])
    attempts.begin([free])


def test_guesses_at_endless_names_take_no_endless_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.attempts.MOST_KEYS", 100)
    attempts = Attempts()
    for n in range(1000):
        attempts.begin([(name_key(f"name {n}" * 100, ""), Limit(10, 60.0))])
    assert len(attempts._past) == 100


def test_one_subscriber_is_one_address() -> None:
    assert address_key("2001:db8:1:2::1") == address_key("2001:db8:1:2:ffff::9")
    assert address_key("2001:db8:1:2::1") != address_key("2001:db8:1:3::1")
    assert address_key("::ffff:10.0.0.1") == address_key("10.0.0.1")
    assert address_key("testclient") != address_key("10.0.0.1")
