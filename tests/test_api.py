"""The JSON API: what is saved at a key, by whom, once; what two people at one sample tell each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient

from factories import World
from people_at_work import dump
from storage import history, remarks
from storage.candidates import candidates_of, get_candidate
from storage.pairs import choose_by_hand, pairs_of_sample, set_status
from storage.records import METRICS
from storage.rows import count
from storage.scores import get_judgements, set_score
from workbench.context import Context
from workbench.door import Door
from workbench.ui import build_api

EVIL = "<img src=x onerror=alert(1)> שלום 🙂 “quoted” 'x' \\ \u202eabc"
BOB = "bob"


@pytest.fixture
def me(context: Context, monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """A browser; `as bob` in its headers is somebody else's."""
    door = Door(context.settings)
    monkeypatch.setattr(door, "identify", lambda request: request.headers.get("as", "ada"))
    return TestClient(build_api(context, door), base_url="http://127.0.0.1")


def post(web: TestClient, path: str, body: Any = None, user: str = "ada", key: str = "") -> dict[str, Any]:
    answer = web.post(f"/api/{path}", json=body, headers={"as": user, **({"X-Plumb-Key": key} if key else {})})
    told: dict[str, Any] = answer.json()
    return told if answer.status_code == 200 else {**told, "status": answer.status_code}


def test_every_save_tells_the_sample_and_its_stamps(world: World, me: TestClient) -> None:
    sample = world.sample()
    one, two = (candidate.id for candidate in world.judged(sample, [9, 3]))
    judgement = get_judgements(world.db, [sample])[sample][0].id
    known = history.stamp(world.db, sample)
    acts: list[tuple[str, Any, dict[str, Any]]] = [
        ("scores", {"candidate": one, "metric": "coherence", "value": 2}, {"candidate": one, "value": 2}),
        ("pairs", {"chosen": one, "rejected": two}, {"chosen": one, "rejected": two}),
        ("pairs/1/reject", None, {"pair": 1}),
        ("pairs/1/flip", None, {"pair": 1}),
        ("flag", {"sample": sample, "on": True}, {"on": True, "changed": True}),
        ("note", {"sample": sample, "text": f" {EVIL} "}, {"text": EVIL, "changed": True}),
        ("skip", {"sample": sample, "on": True}, {"on": True, "changed": True}),
        ("discard", {"sample": sample, "on": True}, {"on": True, "changed": True}),
        ("discard", {"sample": sample, "on": False}, {"on": False, "changed": True}),
        (
            "answer",
            {"sample": sample, "text": EVIL, "parent": one},
            {"text": EVIL, "author": "ada", "parent": one},
        ),
        ("suggestion", {"judgement": judgement, "candidate": two}, {}),
        ("checklist", {"sample": sample, "items": [{"text": EVIL, "essential": True}]}, {"version": 1}),
    ]
    for path, body, told in acts:
        answer = post(me, path, body)
        assert answer.items() >= {"sample": sample, "before": known, **told}.items(), (path, answer)
        known = answer["stamp"]
        assert known == history.stamp(world.db, sample) != answer["before"], path
    assert count(world.db, "SELECT count(*) FROM actions") == 12


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("flag", {"sample": 99, "on": True}, 404, "no sample 99"),
        ("flag", {"sample": 1, "on": 1}, 422, "on = 1"),
        ("flag", {"sample": 2**63, "on": True}, 422, "sample = "),
        ("flag", {"sample": 1, "on": True, "user": "bob"}, 422, "user = 'bob'"),
        ("skip", {"sample": 99, "on": False}, 404, "no sample 99"),
        ("discard", {"sample": 99, "on": True}, 404, "no sample 99"),
        ("note", {"sample": 99, "text": "x"}, 404, "no sample 99"),
        ("note", {"sample": 1, "text": "x" * 10_001}, 400, "10,001 characters; 10,000 are the most"),
        ("note", {"sample": 1, "text": "a\0b"}, 400, "character zero"),
        ("answer", {"sample": 1, "text": " \n\t\u3000 "}, 400, "The answer is empty"),
        ("answer", {"sample": 1, "text": "x" * 20_001}, 400, "20,000 are the most"),
        ("answer", {"sample": 99, "text": "x"}, 404, "no sample 99"),
        ("answer", {"sample": 1, "text": "x", "parent": 99}, 404, "no candidate 99"),
        ("answer", {"sample": 1, "text": "x", "parent": 3}, 400, "does not answer sample 1"),
        ("answer", {"sample": 1, "text": " answer 0 of 1 "}, 409, "Candidate 1 reads the same"),
        ("answer", {"sample": 1, "text": "x", "edit": 1}, 400, "is by demo: only its author"),
        ("answer", {"sample": 1, "text": "x", "edit": 3}, 400, "does not answer sample 1"),
        ("answer", {"sample": 1, "text": "x", "edit": 1, "parent": 1}, 400, "give one of them"),
        ("suggestion", {"judgement": 99}, 404, "no judgement 99"),
        ("suggestion", {"judgement": 1, "candidate": 3}, 400, "gives no scores here"),
        ("pairs", {"chosen": 1, "rejected": 1}, 400, "both chosen and rejected"),
        ("scores", {"candidate": 99, "metric": "coherence", "value": 1}, 404, "no candidate 99"),
        ("pairs/7/accept", None, 404, "no pair 7"),
        ("pairs/7/dance", None, 404, "7"),
        ("undo", None, 404, "nothing to undo"),
        ("redo", None, 404, "nothing to redo"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    world: World, me: TestClient, path: str, body: Any, status: int, text: str
) -> None:
    for number in (1, 2):
        world.judged(world.sample(number), [9, 2])
    before = dump(world.db)
    answer = post(me, path, body, key="a-key-of-mine")
    assert (answer["status"], text in answer["error"]) == (status, True), answer
    assert dump(world.db) == before
    assert count(world.db, "SELECT count(*) FROM request_keys") == 0


def test_half_a_character_in_a_text_is_refused(world: World, me: TestClient) -> None:
    world.sample()
    for path in ("note", "answer"):
        body = '{"sample": 1, "text": "a\\ud800b"}'
        answer = me.post(
            f"/api/{path}", content=body, headers={"content-type": "application/json", "X-Plumb-Key": "12345678"}
        )
        assert (answer.status_code, "half a character" in answer.json()["error"]) == (400, True)


def test_the_longest_answer_and_note_are_kept_whole(world: World, me: TestClient) -> None:
    sample = world.sample()
    text = ("שלום 🙂 <script> " * 2000)[:10_000].strip()
    number = post(me, "answer", {"sample": sample, "text": text})["candidate"]
    post(me, "note", {"sample": sample, "text": text})
    assert get_candidate(world.db, number).text == text
    assert [note.text for note in remarks.notes_of(world.db, sample)] == [text]


def test_a_change_sent_again_is_made_once(world: World, me: TestClient) -> None:
    sample = world.sample()
    body = {"sample": sample, "text": "a circle"}
    first = post(me, "answer", body, key="key-number-1")
    assert post(me, "answer", body, key="key-number-1") == first
    assert post(me, "answer", {**body, "text": "b"}, key="key-number-1")["status"] == 409
    assert post(me, "answer", body, user=BOB, key="key-number-1")["status"] == 409
    assert post(me, "undo", key="key-number-2") == post(me, "undo", key="key-number-2")
    assert candidates_of(world.db, [sample])[sample] == []
    redone = post(me, "redo", key="key-number-3")
    assert redone == post(me, "redo", key="key-number-3")
    assert redone.items() >= {"redone": f"new answer to sample {sample}", "sample": sample}.items()
    assert redone["stamp"] == history.stamp(world.db, sample) == first["stamp"]
    assert count(world.db, "SELECT count(*) FROM actions") == 1


def test_the_same_change_many_times_at_once_is_made_once(world: World, me: TestClient) -> None:
    sample = world.sample()
    with ThreadPoolExecutor(8) as threads:
        body = {"sample": sample, "text": "a circle"}
        answers = list(threads.map(lambda _: post(me, "answer", body, key="key-number-1"), range(16)))
    assert all(answer == answers[0] for answer in answers)
    assert len(candidates_of(world.db, [sample])[sample]) == 1


def test_two_tabs_do_not_write_over_each_others_note_or_answer(world: World, me: TestClient) -> None:
    sample = world.sample()
    post(me, "note", {"sample": sample, "text": "first", "was": ""})
    stale = post(me, "note", {"sample": sample, "text": "second", "was": ""})
    assert (stale["status"], "in another window" in stale["error"]) == (409, True)
    assert post(me, "note", {"sample": sample, "text": "first", "was": ""})["changed"] is False
    assert post(me, "note", {"sample": sample, "text": "", "was": "first"})["changed"] is True
    number = post(me, "answer", {"sample": sample, "text": "a circle"})["candidate"]
    edit = {"sample": sample, "edit": number, "was": "a circle"}
    assert post(me, "answer", {**edit, "text": "one circle"})["candidate"] == number
    assert post(me, "answer", {**edit, "text": "two circles"})["status"] == 409
    assert get_candidate(world.db, number).text == "one circle"
    set_score(world.db, BOB, number, "coherence", 1)
    scored = post(me, "answer", {**edit, "was": "one circle", "text": "two circles"})
    assert "bob has scored the answer" in scored["error"]


def test_two_people_at_one_sample_keep_their_own(world: World, me: TestClient) -> None:
    sample = world.sample()
    one = world.candidates(sample, ["a"])[0].id
    for user, value in (("ada", 1), (BOB, 4)):
        post(me, "scores", {"candidate": one, "metric": "coherence", "value": value}, user)
        post(me, "note", {"sample": sample, "text": user, "was": ""}, user)
        post(me, "flag", {"sample": sample, "on": True}, user)
    given = {j.rater.name: j.scores[0].coherence for j in get_judgements(world.db, [sample])[sample]}
    assert given == {"ada": 1, BOB: 4}
    assert {(note.user, note.text) for note in remarks.notes_of(world.db, sample)} == {("ada", "ada"), (BOB, BOB)}
    post(me, "flag", {"sample": sample, "on": False}, BOB)
    assert remarks.flags_of(world.db, [sample])[sample] == ["ada"]


def test_a_pair_that_somebody_made_meanwhile_is_not_turned_unseen(world: World, me: TestClient) -> None:
    sample = world.sample()
    one, two = (candidate.id for candidate in world.candidates(sample, ["a", "b"]))
    known = history.stamp(world.db, sample)
    theirs = choose_by_hand(world.db, BOB, one, two)
    mine = {"chosen": two, "rejected": one, "stamp": known}
    refused = post(me, "pairs", mine)
    assert (refused["status"], "bob was here meanwhile" in refused["error"]) == (409, True)
    assert pairs_of_sample(world.db, sample) == [theirs]
    agreed = post(me, "pairs", {"chosen": one, "rejected": two, "stamp": known})
    assert agreed["pair"] == theirs.id, "the same way round is no contradiction"
    seen = history.stamp(world.db, sample)
    assert post(me, "pairs", {**mine, "stamp": seen})["chosen"] == two


def test_a_card_that_shows_what_was_decides_nothing(world: World, me: TestClient) -> None:
    sample = world.sample()
    one, two = (candidate.id for candidate in world.candidates(sample, ["a", "b"]))
    pair = choose_by_hand(world.db, "ada", one, two)
    set_status(world.db, BOB, [pair.id], "rejected")
    stale = post(me, f"pairs/{pair.id}/flip", {"was": "accepted", "chosen": one})
    assert (stale["status"], "changed since by bob" in stale["error"]) == (409, True)
    assert post(me, f"pairs/{pair.id}/flip", {"was": "rejected", "chosen": two})["status"] == 409
    assert post(me, f"pairs/{pair.id}/flip", {"was": "rejected", "chosen": one})["pair"] == pair.id
    assert post(me, f"pairs/{pair.id}/reject")["pair"] == pair.id


def test_a_page_learns_who_changed_its_sample(world: World, me: TestClient) -> None:
    sample = world.sample()
    one = world.candidates(sample, ["a"])[0].id
    path = f"/api/sample/{sample}/stamp"
    known = me.get(path).json()
    assert known == {"sample": sample, "stamp": history.stamp(world.db, sample), "holders": [], "changed_by": ""}
    post(me, "scores", {"candidate": one, "metric": "coherence", "value": 1}, BOB)
    mine = post(me, "flag", {"sample": sample, "on": True})
    assert mine["before"] != known["stamp"], "bob was here since"
    told = me.get(path, params={"since": known["stamp"]}).json()
    assert (told["changed_by"], told["stamp"]) == (BOB, mine["stamp"])
    assert me.get(path, params={"since": mine["stamp"]}).json()["changed_by"] == ""
    world.db.conn.execute(
        "INSERT INTO leases VALUES (?, 'bob', strftime('%s') + 60.0), (?, 'ada', 9e9)", [sample] * 2
    )
    assert me.get(path).json()["holders"] == [BOB]
    assert me.get("/api/sample/99/stamp").status_code == 404
    assert me.get("/api/sample/0/stamp").status_code == 422


def test_a_samples_history_is_told(world: World, me: TestClient) -> None:
    sample = world.sample()
    post(me, "note", {"sample": sample, "text": EVIL}, "<b>eve</b>")
    post(me, "flag", {"sample": sample, "on": True})
    post(me, "undo")
    told = me.get(f"/api/sample/{sample}/history").json()
    assert [(act["user"], act["label"], act["undone"]) for act in told["acts"]] == [
        ("ada", f"sample {sample} flagged", True),
        ("<b>eve</b>", f"note on sample {sample} written", False),
    ]
    assert len(me.get(f"/api/sample/{sample}/history?limit=1").json()["acts"]) == 1
    assert me.get("/api/sample/99/history").status_code == 404
    assert me.get(f"/api/sample/{sample}/history?limit=0").status_code == 422


def test_accepted_suggestions_are_told_and_undone_at_once(world: World, me: TestClient) -> None:
    sample = world.sample()
    one, two = (candidate.id for candidate in world.judged(sample, [9, 2]))
    answer = post(me, "suggestion", {"judgement": 1})
    assert {(score["candidate"], score["metric"]) for score in answer["scores"]} == {
        (number, metric) for number in (one, two) for metric in METRICS
    }
    assert post(me, "suggestion", {"judgement": 1})["status"] == 409
    assert post(me, "suggestion", {"judgement": 2})["status"] == 400, "one's own is no suggestion"
    assert post(me, "undo")["sample"] == sample
    assert len(get_judgements(world.db, [sample])[sample]) == 1


def test_a_refused_undo_says_who_and_goes_on_with_the_act_before(world: World, me: TestClient) -> None:
    sample = world.sample()
    post(me, "flag", {"sample": sample, "on": True})
    number = post(me, "answer", {"sample": sample, "text": "a circle"})["candidate"]
    post(me, "scores", {"candidate": number, "metric": "coherence", "value": 4}, BOB)
    for _ in range(2):
        refused = post(me, "undo", key="key-number-1")
        assert (refused["status"], "bob has scored the answer since" in refused["error"]) == (409, True)
    assert post(me, "undo")["undone"] == f"sample {sample} flagged"
