"""Judge and checklist jobs against the test server, by the real SDKs: states, money, exactly once, pause, stop."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factories import USER, World, png
from gemini_server import GeminiServer, Step
from jobs.configs import parse_config
from jobs.event_file import read_events
from jobs.judges.identity import key_of, rater_of
from jobs.judges.keys import scrub
from jobs.judges.terms import ModelTerms
from jobs.places import judges_folder
from jobs.runs import RunFolder
from jobs.worker import work
from judging import KEY, MODEL, ask, events, judgements, perform, samples, terms
from storage import history
from storage import jobs as store
from storage.candidates import candidates_of
from storage.checklists import checklists_of, edit_checklist, latest_checklists
from storage.errors import PlumbError, UserError
from storage.images import ensure_image
from storage.records import METRICS, ChecklistItem, Job
from storage.samples import add_sample
from storage.scores import get_judgements

pytestmark = pytest.mark.slow  # as a whole: see the marker in pyproject.toml

Wait = Callable[..., None]


def by_text(prompt: str, pictures: list[bytes]) -> str:
    """A judge whose scores follow from an answer's own text, whatever its letter; it answers in another order."""
    numbers = [int(number) for number in re.findall(r"Answer (\d) about picture", prompt)]
    answers = [
        {"letter": chr(65 + place), "reasoning": "as it says", **dict.fromkeys(METRICS, number)}
        for place, number in enumerate(numbers)
    ]
    return "Here it is:\n```json\n" + json.dumps({"image": "a picture", "answers": answers[::-1]}) + "\n```"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_reach_the_right_candidates_whatever_the_order(
    world: World, server: GeminiServer, client: str, seed: int
) -> None:
    server.answer = by_text
    ids = samples(world, 5)
    assert perform(world, ask(world, order_seed=seed)) == 0
    orders = set()
    for sample_id in ids:
        texts = {one.id: one.text for one in candidates_of(world.db, [sample_id])[sample_id]}
        [found] = judgements(world, sample_id)
        assert (found.state, found.rater.name) == ("ok", MODEL), found.reason
        assert (found.rater.version, found.rater.mode) == ("plumb-1", "all answers together")
        for score in found.scores:
            assert f"Answer {score.helpfulness} about" in texts[score.candidate_id]
        orders.add(tuple(score.position or 0 for score in found.scores))
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert len(orders) > 1, "shuffled anew for each sample"


def test_money_tokens_and_the_reply_before_the_judgement(world: World, server: GeminiServer, client: str) -> None:
    ids = samples(world, 2)
    job = ask(world)
    assert perform(world, job) == 0
    found = judgements(world, *ids)
    price = ModelTerms(
        model=MODEL,
        input_price=1.0,
        output_price=10.0,
        requests_a_minute=1,
        tokens_a_minute=1,
        requests_a_day=1,
    )
    assert all(one.tokens_in > 0 < one.tokens_out for one in found)
    for one in found:
        assert one.cost == pytest.approx(price.money(one.tokens_in, one.tokens_out))
    kinds = [event["kind"] for event in read_events(RunFolder(world.folder.run(job.id)).events)]
    assert kinds.index("reply") < kinds.index("judgement")
    curve = store.metrics_of(world.db, job.id)
    assert curve["money"][-1][1] == pytest.approx(sum(one.cost for one in found))
    assert curve["requests"][-1][1] == server.received == 2


@pytest.mark.parametrize(
    ("steps", "state", "billed"),
    [
        (["blocked"], "blocked", 1),
        (["recitation"], "blocked", 1),
        (["truncated", "truncated"], "truncated", 2),
        (["malformed", "malformed"], "unparseable", 2),
        (["malformed", "ok"], "ok", 2),
        (["truncated", "ok"], "ok", 2),
        (["minute", "ok"], "ok", 1),
        (["500", "ok"], "ok", 1),
        (["reset", "ok"], "ok", 2),
    ],
)
def test_each_state(
    world: World, server: GeminiServer, client: str, steps: list[str], state: str, billed: int
) -> None:
    [sample] = samples(world, 1)
    server.script(*(Step(step, retry=0.1) if step == "minute" else step for step in steps))
    job = ask(world)
    assert perform(world, job) == 0
    [found] = judgements(world, sample)
    assert found.state == state, found.reason
    assert server.billed == billed
    assert bool(found.scores) is (state == "ok")
    assert found.reason if state != "ok" else not found.reason
    if state in ("truncated", "unparseable"):
        assert found.raw, "the raw reply is kept"
        assert found.raw.count("---") >= 1, "of both tries"
    if state != "ok":  # and it can be asked for again, blocked ones where that is wanted
        assert perform(world, ask(world, ask_blocked=True)) == 0
        assert judgements(world, sample)[-1].state == "ok"


def test_blocked_ones_are_left_alone_unless_asked_for(world: World, server: GeminiServer) -> None:
    samples(world, 1)
    server.script("blocked")
    perform(world, ask(world))
    with pytest.raises(UserError, match="nothing to judge"):
        ask(world)


def test_what_was_answered_is_never_paid_for_again(world: World, server: GeminiServer, client: str) -> None:
    """A worker that dies between the reply and the judgement, at every place; and a torn last line."""
    ids = samples(world, 6)
    job = ask(world, concurrency=1)
    assert perform(world, job) == 0
    assert server.received == 6
    run = RunFolder(world.folder.run(job.id))
    whole = run.events.read_text()
    kept = [line for line in whole.splitlines(keepends=True) if json.loads(line)["kind"] in ("reply", "judgement")]
    before = judgements(world, *ids)
    for cut in range(0, 12, 3):
        world.db.conn.execute("DELETE FROM judgements")
        world.db.conn.execute("UPDATE attempts SET event_offset = 0")
        run.events.write_text("".join(kept[:cut]) + (kept[cut][:40] if cut % 2 else ""))
        replies = sum(json.loads(line)["kind"] == "reply" for line in kept[:cut])
        asked = server.received
        assert perform(world, job) == 0
        assert server.received - asked == 6 - replies
        after = judgements(world, *ids)
        assert sorted(one.sample_id for one in after) == ids
        assert {one.key for one in after} == {one.key for one in before}
        world.db.conn.execute("DELETE FROM attempts")


def test_the_same_judgement_is_not_asked_for_by_another_job(world: World, server: GeminiServer) -> None:
    ids = samples(world, 2)
    perform(world, ask(world, samples={"limit": 1}))
    job = ask(world)
    assert [row["sample_id"] for row in RunFolder(world.folder.run(job.id)).rows()] == ids[1:]
    perform(world, job)
    with pytest.raises(UserError, match="nothing to judge"):
        ask(world)
    other = ask(world, order_seed=1)
    assert len(list(RunFolder(world.folder.run(other.id)).rows())) == 2, "another seed is another judgement"
    world.db.conn.execute("UPDATE jobs SET status = 'done'")
    world.candidates(ids[0], ["one more answer"], world.job())
    world.db.conn.execute("UPDATE jobs SET status = 'done'")
    grown = ask(world)
    assert [row["sample_id"] for row in RunFolder(world.folder.run(grown.id)).rows()] == ids[:1]


def test_the_budget_is_a_hard_cap(world: World, server: GeminiServer, client: str) -> None:
    samples(world, 30, candidates=2)
    job = ask(world, budget=0.02, max_output_tokens=400, concurrency=8)
    assert perform(world, job) == 0
    ended = store.get_job(world.db, job.id)
    assert ended.status == "stopped"
    assert "0.02" in ended.reason
    assert "of 30 samples" in ended.reason
    spent = sum(event["cost"] for event in events(world, job, "reply"))
    assert 0 < spent <= 0.02
    assert 0 < server.billed < 30
    assert len(events(world, job, "judgement")) == server.billed


def test_the_budget_holds_where_the_ledger_is_lost(world: World, server: GeminiServer) -> None:
    """What a run folder's replies cost counts, whatever became of the ledger."""
    samples(world, 30, candidates=2)
    job = ask(world, budget=0.02, max_output_tokens=400)
    perform(world, job)
    asked = server.received
    (world.folder.judges / "ledger.json").unlink()
    perform(world, job)
    assert server.received == asked
    assert "0.02" in store.get_job(world.db, job.id).reason


def test_requests_are_capped_too(world: World, server: GeminiServer) -> None:
    samples(world, 10, candidates=2)
    job = ask(world, max_requests=4)
    perform(world, job)
    assert server.received == 4
    assert "4" in store.get_job(world.db, job.id).reason


def test_a_wrong_key_ends_the_job_at_once(
    world: World, server: GeminiServer, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples(world, 20)
    monkeypatch.setenv("GEMINI_API_KEY", "sk-another-key-altogether")
    job = ask(world)
    assert perform(world, job) == 1
    ended = store.get_job(world.db, job.id)
    assert ended.status == "failed"
    assert "GEMINI_API_KEY" in ended.reason
    assert "altogether" not in ended.reason
    assert server.received <= 4


def test_an_unknown_model_ends_the_job(world: World, server: GeminiServer, client: str) -> None:
    samples(world, 5)
    server.script(default="model")
    job = ask(world)
    assert perform(world, job) == 1
    assert MODEL in store.get_job(world.db, job.id).reason


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"budget": 0}, "budget = 0"),
        ({"budget": -1}, "budget = -1"),
        ({"model": "gemini-nobody-knows"}, "has no row in the table"),
        ({"rubric": "plumb-99"}, "plumb-99"),
        ({"mode": "both"}, "mode = 'both'"),
        ({"checklists": True}, "and a checklist"),
    ],
)
def test_what_cannot_start(world: World, server: GeminiServer, values: dict[str, Any], text: str) -> None:
    samples(world, 1)
    with pytest.raises(PlumbError) as caught:
        ask(world, **values)
    assert text in str(caught.value)


def test_no_key(world: World, server: GeminiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    samples(world, 1)
    monkeypatch.delenv("GEMINI_API_KEY")
    monkeypatch.delenv("GOOGLE_API_KEY", raising=False)
    with pytest.raises(UserError, match="Set GEMINI_API_KEY"):
        ask(world)


def test_one_candidate_26_and_too_many(world: World, server: GeminiServer) -> None:
    job = world.job()
    ids = [world.sample(n, f"Question {n}") for n in (1, 2, 3, 4)]
    for sample_id, number in zip(ids, (1, 26, 27, 2), strict=True):
        texts = [f"answer {n}" if sample_id != ids[3] else "" for n in range(number)]
        world.candidates(sample_id, texts, job)
    world.db.conn.execute("UPDATE jobs SET status = 'done'")
    assert perform(world, ask(world)) == 0
    one, most, many, empty = judgements(world, *ids)
    assert (one.state, most.state, many.state, empty.state) == ("ok", "ok", "failed", "ok")
    assert "27" in many.reason
    assert len(most.scores) == 26
    assert server.received == 3
    assert perform(world, ask(world, mode="alone", samples={"ids": [ids[2]]})) == 0
    assert len(judgements(world, ids[2])[-1].scores) == 27


def test_alone_asks_once_an_answer_and_keeps_what_came(world: World, server: GeminiServer, client: str) -> None:
    [sample] = samples(world, 1, candidates=3)
    server.script("ok", "blocked", "ok")
    perform(world, ask(world, mode="alone", concurrency=1))
    [found] = judgements(world, sample)
    assert found.rater.mode == "each answer alone"
    assert found.state == "blocked"
    assert found.scores == ()
    assert perform(world, ask(world, mode="alone", ask_blocked=True)) == 0
    last = judgements(world, sample)[-1]
    assert last.state == "ok"
    assert [score.position for score in last.scores] == [None] * 3
    assert len(last.scores) == 3


def test_a_large_image_is_sent_smaller_and_said_so(world: World, server: GeminiServer) -> None:
    sha = ensure_image(world.db, world.folder, png(size=(4000, 1000))).sha256
    content = [{"type": "image", "image": sha}, {"type": "text", "text": "What is it?"}]
    sample = add_sample(world.db, "plain", "1", [{"role": "user", "content": content}])
    assert sample is not None
    world.candidates(sample, ["red", "a red bar"])
    world.db.conn.execute("UPDATE jobs SET status = 'done'")
    perform(world, ask(world))
    [found] = judgements(world, sample)
    assert found.state == "ok"
    assert "4000 × 1000" in found.note
    assert "3072 × 768" in found.note


def test_checklists_are_written_once_edited_and_answered(world: World, server: GeminiServer, client: str) -> None:
    ids = samples(world, 3)
    assert perform(world, ask(world, kind="checklist")) == 0
    lists = latest_checklists(world.db, ids)
    assert set(lists) == set(ids)
    assert all(one.model == MODEL and one.items and one.instructions for one in lists.values())
    with pytest.raises(UserError, match="has a checklist"):
        ask(world, kind="checklist")
    assert perform(world, ask(world)) == 0
    assert perform(world, ask(world, checklists=True)) == 0
    first = get_judgements(world.db, ids)[ids[0]]
    assert [one.rater.mode for one in first] == ["all answers together", "all answers together, with checklist"]
    items = len(lists[ids[0]].items)
    assert first[0].points == ()
    assert len(first[1].points) == 4 * items
    assert first[1].checklist_id == lists[ids[0]].id
    edited = edit_checklist(world.db, USER, ids[0], [ChecklistItem("Names the colour.", True)])
    again = ask(world, checklists=True)
    frozen = [row["sample_id"] for row in RunFolder(world.folder.run(again.id)).rows()]
    assert frozen == ids[:1], "an edit judges anew"
    perform(world, again)
    last = get_judgements(world.db, ids)[ids[0]][-1]
    assert (last.checklist_id, len(last.points)) == (edited.id, 4)
    assert [one.version for one in checklists_of(world.db, ids[0])] == [1, 2]


def test_a_checklist_that_fails_is_visible(world: World, server: GeminiServer) -> None:
    [sample] = samples(world, 1)
    server.script("blocked")
    perform(world, ask(world, kind="checklist"))
    [found] = checklists_of(world.db, sample)
    assert (found.state, found.items) == ("blocked", ())
    assert latest_checklists(world.db, [sample]) == {}
    perform(world, ask(world, kind="checklist"))
    assert [one.state for one in checklists_of(world.db, sample)] == ["blocked", "ok"]


def test_pause_go_on_and_stop(world: World, server: GeminiServer, wait_for: Wait) -> None:
    samples(world, 40, candidates=2)
    server.latency = 0.05
    job = ask(world, concurrency=2)
    run = RunFolder(world.folder.run(job.id))
    thread = threading.Thread(target=perform_alone, args=(world, job))
    thread.start()
    try:
        wait_for(lambda: server.received >= 4, "it asks")
        run.ask_to_pause()
        wait_for(lambda: any(e.get("text") == "paused" for e in events(world, job, "phase")), "it says so")
        wait_for(lambda: len(events(world, job, "reply")) == server.received, "replies on their way are kept")
        held = server.received
        threading.Event().wait(0.6)
        assert server.received <= held + 2
        run.ask_nothing()
        wait_for(lambda: server.received >= held + 6, "it goes on")
        run.ask_to_stop()
    finally:
        thread.join(30)
    assert not thread.is_alive()
    assert events(world, job, "end")[-1]["status"] == "stopped"
    assert len(events(world, job, "reply")) == server.billed < 40, "what was paid for is kept"
    run.ask_nothing()
    server.latency = 0.0
    assert work(run.path) == 0
    judged = [event["sample_id"] for event in events(world, job, "judgement")]
    assert sorted(judged) == sorted(set(judged))
    assert len(judged) == server.billed == 40


def perform_alone(world: World, job: Job) -> None:
    """In another thread than the database's."""
    work(world.folder.run(job.id))


def test_a_quota_of_the_day_pauses_and_says_so(world: World, server: GeminiServer, wait_for: Wait) -> None:
    samples(world, 5, candidates=2)
    terms(world, requests_a_day=3)
    job = ask(world, concurrency=2)
    thread = threading.Thread(target=perform_alone, args=(world, job))
    thread.start()
    try:
        wait_for(lambda: any("UTC" in e["text"] for e in events(world, job, "phase")), "it says until when")
        wait_for(lambda: server.received == 3, "what was reserved arrives")
        assert not events(world, job, "end")
        terms(world, requests_a_day=100)  # people raise the limit while it waits
    finally:
        thread.join(30)
    assert events(world, job, "end")[-1]["status"] == "done"
    assert server.received == 5


def test_random_deaths_judge_each_sample_once(world: World, server: GeminiServer) -> None:
    """Cut the events anywhere, again and again, as kill -9 does."""
    ids = samples(world, 12, candidates=2)
    draw = random.Random(7)
    job = ask(world)
    run = RunFolder(world.folder.run(job.id))
    for _ in range(4):
        work(run.path)
        data = run.events.read_bytes()
        run.events.write_bytes(data[: draw.randrange(len(data))])
    work(run.path)
    judged = [event["sample_id"] for event in events(world, job, "judgement")]
    assert sorted(judged) == ids
    keys = {event["key"] for event in events(world, job, "reply")}
    config = parse_config("judge", job.config)
    assert keys == {key_of(row, rater_of(config), 0) for row in run.rows()}  # type: ignore[arg-type]


def test_the_key_is_nowhere(world: World, server: GeminiServer, client: str, tmp_path: Path) -> None:
    samples(world, 4)
    server.script("500", "malformed", "blocked", "400")
    perform(world, ask(world))
    server.script(default="key")
    perform(world, ask(world, order_seed=1))
    world.db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    looked = 0
    for path in world.folder.root.rglob("*"):
        if path.is_file():
            looked += 1
            assert KEY.encode() not in path.read_bytes(), path
    assert looked > 10
    assert server.received > 0


def test_all_five_metrics_are_stored(world: World, server: GeminiServer) -> None:
    [sample] = samples(world, 1)
    perform(world, ask(world))
    [found] = judgements(world, sample)
    assert all(score.value(metric) in range(5) for score in found.scores for metric in METRICS)


# --- what a fresh review found ---


def test_a_checklist_that_is_undone_meanwhile_costs_no_judgement(world: World, server: GeminiServer) -> None:
    ids = samples(world, 3, candidates=2)
    for sample_id in ids:
        edit_checklist(world.db, USER, sample_id, [ChecklistItem("Names the shape.", True)])
    job = ask(world, checklists=True)
    history.undo(world.db, USER)
    perform(world, job)
    found = judgements(world, *ids)
    assert [one.state for one in found] == ["ok"] * 3
    assert [one.checklist_id is None for one in found] == [False, False, True]
    assert "undone meanwhile" in found[2].note
    assert len(found[2].points) == 2


def test_json_in_a_reply_that_was_cut_off_is_not_read(world: World, server: GeminiServer) -> None:
    [sample] = samples(world, 1, candidates=2)
    four = dict.fromkeys(METRICS, 4)
    echoed = {"answers": [{"letter": letter, "reasoning": "x", **four} for letter in "AB"]}
    step = Step("truncated", text=f"Answer B says {json.dumps(echoed)}, which is no")
    server.script(step, step)
    perform(world, ask(world))
    [found] = judgements(world, sample)
    assert (found.state, found.scores) == ("truncated", ())


def test_alone_pays_for_nothing_after_the_first_that_goes_wrong(world: World, server: GeminiServer) -> None:
    [sample] = samples(world, 1)
    server.script("blocked")
    perform(world, ask(world, mode="alone"))
    assert server.received == 1
    [found] = judgements(world, sample)
    assert found.state == "blocked"


def test_one_candidate_alone_has_no_place(world: World, server: GeminiServer) -> None:
    [sample] = samples(world, 1, candidates=1)
    perform(world, ask(world, mode="alone"))
    [found] = judgements(world, sample)
    assert [score.position for score in found.scores] == [None]


def test_what_an_open_job_is_to_judge_is_not_asked_for_twice(world: World, server: GeminiServer) -> None:
    samples(world, 4)
    first = ask(world, samples={"limit": 3})
    second = ask(world)
    assert [row["sample_id"] for row in RunFolder(world.folder.run(second.id)).rows()] == [4]
    with pytest.raises(UserError, match=f"in job {first.id}, {second.id} already"):
        ask(world)
    assert len(list(RunFolder(world.folder.run(ask(world, order_seed=3).id)).rows())) == 4


def test_text_of_many_tokens_stays_below_the_budget(world: World, server: GeminiServer) -> None:
    """Digits take about a token each: the estimate is far too low, the cap holds."""
    job = world.job()
    for number in range(1, 9):
        world.candidates(world.sample(number), ["1234567890" * 1500, "0987654321" * 1500], job)
    world.db.conn.execute("UPDATE jobs SET status = 'done'")
    server.script(default=Step("ok", usage={"promptTokenCount": 31_000, "candidatesTokenCount": 50}))
    mine = ask(world, budget=0.1, max_output_tokens=128, concurrency=8)
    perform(world, mine)
    spent = sum(event["cost"] for event in events(world, mine, "reply"))
    assert 0 < spent <= 0.1


def test_an_outage_ends_the_job_before_it_fails_every_sample(
    world: World, server: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.judges.caller.BACKOFF", lambda state: 0.0)
    samples(world, 40, candidates=1)
    server.script(default="500")
    job = ask(world)
    assert perform(world, job) == 1
    assert "No reply to 10 requests in a row" in store.get_job(world.db, job.id).reason
    assert events(world, job, "end")[-1]["cause"] == "network", "it may be over later: the supervisor tries again"
    assert len(events(world, job, "judgement")) < 20
    server.script(default="ok")
    assert perform(world, job) == 0


@pytest.mark.parametrize("key", ["sk-aaaa\nbbbb", "sk-aaaa bbbb", "sk-ключ-12345"])
def test_a_key_that_cannot_be_one(
    world: World, server: GeminiServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    samples(world, 1)
    monkeypatch.setenv("GEMINI_API_KEY", key)
    with pytest.raises(UserError, match="holds a character that no key has") as caught:
        ask(world)
    assert key not in str(caught.value)
    assert repr(key)[1:-1] not in scrub(f"invalid header {key!r}")


def test_a_moved_data_folder_keeps_its_ledger(world: World, server: GeminiServer) -> None:
    samples(world, 1)
    job = ask(world)
    run = RunFolder(world.folder.run(job.id))
    moved = run.job().model_copy(update={"judges_dir": "/somewhere/else/judges"})
    assert judges_folder(run, moved) == world.folder.judges
