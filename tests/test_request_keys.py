"""A change that a browser names by a key is made once, however often it is sent."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pytest

from factories import USER, World
from storage import bulk, discarding, history, remarks, request_keys
from storage.database import session
from storage.errors import Conflict, UserError
from storage.request_keys import KEPT_DAYS, once, prune_keys
from storage.rows import count

KEY = "0f8fad5b-d9cb-469f-a165-70867728950e"


def flag(world: World, sample: int, user: str = USER, key: str = KEY, request: str = "flag") -> dict[str, object]:
    def change() -> dict[str, object]:
        return {"changed": remarks.set_flag(world.db, user, sample, True)}

    return once(world.db, user, key, request, change)


def keys(world: World) -> int:
    return count(world.db, "SELECT count(*) FROM request_keys")


def test_the_second_time_gets_the_first_answer(world: World) -> None:
    sample = world.sample()
    assert flag(world, sample) == flag(world, sample) == {"changed": True}
    assert flag(world, sample, key="") == {"changed": False}, "without a key it is asked anew"
    history.undo(world.db, USER)
    assert flag(world, sample) == {"changed": True}
    assert remarks.flags_of(world.db, [sample])[sample] == [], "what was undone since is not made again"


@pytest.mark.parametrize(("user", "request_"), [("bob", "flag"), (USER, "another")])
def test_a_key_is_one_persons_for_one_change(world: World, user: str, request_: str) -> None:
    sample = world.sample()
    flag(world, sample)
    with pytest.raises(Conflict, match=r"X-Plumb-Key: this key was used"):
        flag(world, sample, user, request=request_)
    assert remarks.flags_of(world.db, [sample])[sample] == [USER]


@pytest.mark.parametrize("key", ["short", "x" * 201, "with a blank in it", "tab\tinside", "schlüssel-1"])
def test_a_key_of_no_browser_of_ours_is_refused(world: World, key: str) -> None:
    with pytest.raises(UserError, match="X-Plumb-Key = "):
        flag(world, world.sample(), key=key)


def test_an_error_keeps_no_key_and_no_change(world: World) -> None:
    sample = world.sample()

    def change() -> dict[str, object]:
        remarks.set_flag(world.db, USER, sample, True)
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        once(world.db, USER, KEY, "flag", change)
    assert keys(world) == 0
    assert flag(world, sample) == {"changed": True}, "the first half was taken back with it"


def test_an_undo_that_was_refused_is_refused_again_and_takes_no_other_act(world: World) -> None:
    sample = world.sample()
    remarks.set_flag(world.db, USER, sample, True)
    bulk.bulk_discard(world.db, USER, [sample])
    discarding.keep(world.db, "bob", sample)

    def undo() -> dict[str, object]:
        return {"undone": history.undo(world.db, USER).label}

    for _ in range(3):
        with pytest.raises(Conflict, match=r"since by bob"):
            once(world.db, USER, KEY, "undo", undo)
    assert remarks.flags_of(world.db, [sample])[sample] == [USER]
    assert once(world.db, USER, "another-key", "undo", undo) == {"undone": f"sample {sample} flagged"}


def test_old_keys_are_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = [world.sample(number) for number in range(1, 5)]
    for sample in samples[:3]:
        flag(world, sample, key=f"key-number-{sample}")
    old = (datetime.now(UTC) - timedelta(days=KEPT_DAYS, minutes=1)).isoformat(timespec="milliseconds")
    young = (datetime.now(UTC) - timedelta(days=KEPT_DAYS, minutes=-1)).isoformat(timespec="milliseconds")
    world.db.conn.execute("UPDATE request_keys SET created_at = ? WHERE key <> 'key-number-2'", [old])
    world.db.conn.execute("UPDATE request_keys SET created_at = ? WHERE key = 'key-number-2'", [young])
    monkeypatch.setattr(request_keys, "_PRUNED_AT_ONCE", 1)
    flag(world, samples[3])
    assert keys(world) == 3, "few at a time"
    assert prune_keys(world.db) == 1
    assert prune_keys(world.db) == 0
    assert {row[0] for row in world.db.conn.execute("SELECT key FROM request_keys")} == {KEY, "key-number-2"}


def test_twenty_at_once_are_made_once(world: World) -> None:
    sample = world.sample()
    gate = threading.Barrier(20)
    answers: list[object] = []

    def send() -> None:
        gate.wait()
        with session(world.folder) as db:

            def change() -> dict[str, object]:
                with history.action(db, USER, "one more", sample) as act:
                    return {"note": act.insert("notes", note)}

            answers.append(once(db, USER, KEY, "note", change))

    note = {"sample_id": sample, "user": USER, "text": "x", "created_at": "now"}
    threads = [threading.Thread(target=send) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [{"note": 1}] * 20
    assert count(world.db, "SELECT count(*) FROM actions") == 1
