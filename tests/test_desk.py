"""“Score this sample” and the estimate, against the test server."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest

from factories import USER, World
from gemini_server import GeminiServer
from jobs import desk
from jobs.configs import JudgeConfig
from jobs.judges.caller import Caller, Paid
from jobs.judges.calls import Prompt
from jobs.judges.estimate import estimate
from jobs.judges.ledger import Ledger
from jobs.judges.terms import read_terms
from jobs.settings import load_settings
from judging import KEY, MODEL, ask, judgements, perform, samples, terms
from storage.checklists import edit_checklist
from storage.errors import Conflict, NotFound, PlumbError, UserError
from storage.records import ChecklistItem


def at_the_desk(world: World, **values: Any) -> JudgeConfig:
    config = JudgeConfig(**{"judge": "gemini", "model": MODEL, "budget": 10.0, "timeout": 2.0, **values})
    desk.write_desk(world.folder, config)
    return config


def score(world: World, sample_id: int) -> desk.Outcome:
    return desk.score_now(world.folder, load_settings(data=world.folder.root), sample_id, USER)


def test_one_sample_is_judged_and_paid_once(world: World, server: GeminiServer, client: str) -> None:
    [sample] = samples(world, 1)
    at_the_desk(world)
    first = score(world, sample)
    assert (first.state, first.already, first.rater) == ("ok", False, (MODEL, "plumb-1", "all answers together"))
    [stored] = judgements(world, sample)
    assert (stored.asked_by, stored.job_id, stored.cost) == (USER, None, first.cost)
    assert first.cost > 0
    again = score(world, sample)
    assert (again.already, again.cost, server.received) == (True, 0.0, 1)
    with pytest.raises(UserError, match="nothing to judge"):
        ask(world)  # the job finds it done: the same key


def test_a_reply_outlives_the_process_that_asked(
    world: World, server: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    [sample] = samples(world, 1)
    at_the_desk(world)
    with monkeypatch.context() as patch:
        patch.setattr(desk, "_store", lambda *arguments: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            score(world, sample)
    assert judgements(world, sample) == []
    assert score(world, sample).state == "ok"
    assert server.received == 1, "the reply that was kept is used"
    assert not list((world.folder.judges / "desk").glob("*.jsonl"))


def test_a_blocked_one_can_be_asked_again(world: World, server: GeminiServer) -> None:
    [sample] = samples(world, 1)
    at_the_desk(world)
    server.script("blocked")
    assert score(world, sample).state == "blocked"
    assert score(world, sample).state == "ok"
    assert [one.state for one in judgements(world, sample)] == ["blocked", "ok"]


def test_two_at_once_are_one(world: World, server: GeminiServer, wait_for: Any) -> None:
    [sample] = samples(world, 1)
    at_the_desk(world)
    server.latency = 1.0
    outcomes: list[object] = []

    def press() -> None:
        try:
            outcomes.append(score(world, sample).state)
        except Conflict as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=press) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(map(str, outcomes))[1] == "ok"
    assert "right now" in sorted(map(str, outcomes))[0]
    assert server.received == 1


def test_it_shares_limits_and_caps_with_jobs(world: World, server: GeminiServer) -> None:
    ids = samples(world, 4)
    at_the_desk(world)
    terms(world, requests_a_day=2)
    perform(world, ask(world, samples={"limit": 2}))
    with pytest.raises(PlumbError, match=r"Not asked: .*day"):
        score(world, ids[3])
    assert server.received == 2
    terms(world, money_a_day=0.0001)
    with pytest.raises(PlumbError, match="a day"):
        score(world, ids[3])
    terms(world)
    assert score(world, ids[3]).state == "ok"
    table = Ledger(world.folder.judges).tell(read_terms(world.folder.judges))
    assert table.models[MODEL].requests == server.received == 3


def test_what_cannot_be_asked(world: World, server: GeminiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    [sample] = samples(world, 1)
    bare = world.sample(9)
    at_the_desk(world)
    with pytest.raises(UserError, match="no answers to judge"):
        score(world, bare)
    with pytest.raises(NotFound, match="no sample 77"):
        score(world, 77)
    at_the_desk(world, checklists=True)
    with pytest.raises(UserError, match="has no checklist"):
        score(world, sample)
    edit_checklist(world.db, USER, sample, [ChecklistItem("Names the shape.", True)])
    assert score(world, sample).state == "ok"
    at_the_desk(world, budget=0.000001)
    with pytest.raises(PlumbError, match="budget"):
        score(world, sample)
    at_the_desk(world)
    monkeypatch.delenv("GEMINI_API_KEY")
    with pytest.raises(UserError, match="Set GEMINI_API_KEY") as caught:
        score(world, sample)
    assert KEY not in str(caught.value)
    (world.folder.judges / "desk.json").write_text("{")
    with pytest.raises(UserError, match="choose the judge anew"):
        score(world, sample)


def test_the_rules_cost_nothing_and_are_asked_once(world: World) -> None:
    [sample] = samples(world, 1)
    desk.write_desk(world.folder, JudgeConfig(judge="easy-vqa-rules"))
    assert (score(world, sample).already, score(world, sample).already) == (False, True)
    assert len(judgements(world, sample)) == 1


# --- the estimate ---


def test_the_estimate_counts_what_the_job_then_asks(world: World, server: GeminiServer) -> None:
    samples(world, 12)
    values = {"judge": "gemini", "model": MODEL, "budget": 100.0}
    told = estimate(world.db, world.settings, "judge", values)
    assert (told.samples, told.requests) == (12, 12)
    perform(world, ask(world))
    assert server.received == 12
    alone = estimate(world.db, world.settings, "judge", {**values, "mode": "alone"})
    assert (alone.samples, alone.requests) == (12, 48)
    assert alone.tokens_in > told.tokens_in, "the picture and the rubric go with each answer"
    assert told.money <= told.money_most
    with pytest.raises(UserError, match="nothing to judge"):
        estimate(world.db, world.settings, "judge", values)
    lists = estimate(world.db, world.settings, "checklist", values)
    assert (lists.samples, lists.requests) == (12, 12)


def test_the_estimate_says_when_the_limit_is_not_reached(world: World, server: GeminiServer) -> None:
    samples(world, 40)
    terms(world, requests_a_minute=600)
    values = {"judge": "gemini", "model": MODEL, "budget": 100.0, "concurrency": 4}
    told = estimate(world.db, world.settings, "judge", values)
    assert told.seconds == 60.0, "ten rounds of four"
    assert any("60 would" in note for note in told.notes)
    told = estimate(world.db, world.settings, "judge", {**values, "concurrency": 60})
    assert told.seconds == 6.0
    assert not any("would" in note for note in told.notes)


def test_the_estimate_goes_by_earlier_replies_and_warns(world: World, server: GeminiServer) -> None:
    samples(world, 30)
    perform(world, ask(world, samples={"limit": 20}))
    terms(world, requests_a_day=3, requests_a_minute=2)
    values = {"judge": "gemini", "model": MODEL, "budget": 0.0001, "max_requests": 5}
    told = estimate(world.db, world.settings, "judge", values)
    mean = sum(one.tokens_in for one in judgements(world, *range(1, 21))) / 20
    assert told.tokens_in == pytest.approx(10 * mean, abs=10)
    assert told.seconds >= 10 / 2 * 60
    notes = " ".join(told.notes)
    assert "earlier judgements" in notes
    assert "None would be sent: for a request $0." in notes
    assert "may make 5 requests" in notes
    assert "over 4 days" in notes
    enough = {**values, "budget": told.money / 2, "max_output_tokens": 64, "max_requests": None}
    notes = " ".join(estimate(world.db, world.settings, "judge", enough).notes)
    assert "None would be sent" in notes or "used up after about 5 of 10 samples" in notes


def test_the_rules_estimate(world: World) -> None:
    samples(world, 2)
    told = estimate(world.db, world.settings, "judge", {})
    assert (told.samples, told.requests, told.money) == (2, 0, 0.0)


def test_what_a_job_is_about_to_judge_is_left_to_it(world: World, server: GeminiServer) -> None:
    [sample] = samples(world, 1)
    at_the_desk(world)
    job = ask(world)
    with pytest.raises(Conflict, match=f"Job {job.id} is about to judge"):
        score(world, sample)
    assert server.received == 0


def test_half_a_character_in_a_reply_is_no_lost_money(
    world: World, server: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    [sample] = samples(world, 1)
    at_the_desk(world)
    real = Caller.ask

    def torn(self: Caller, prompt: Prompt, tokens_in: int) -> Paid:
        paid = real(self, prompt, tokens_in)
        return replace(paid, reply=replace(paid.reply, text=paid.reply.text + " \ud800", detail="\udfff"))

    monkeypatch.setattr(Caller, "ask", torn)
    assert score(world, sample).state == "ok"
    assert len(judgements(world, sample)) == 1


def test_one_that_was_ok_stays_so(world: World, server: GeminiServer) -> None:
    """Judged again on purpose, and blocked then: the scores that are there still count."""
    [sample] = samples(world, 1)
    at_the_desk(world)
    assert score(world, sample).state == "ok"
    server.script("blocked")
    perform(world, ask(world, samples={"only_missing": False}))
    assert [one.state for one in judgements(world, sample)] == ["ok", "blocked"]
    assert score(world, sample).already
