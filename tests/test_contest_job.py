"""The contest job on the tiny LLaVA, in its run folder: own speakers, an endpoint's, resuming, what goes wrong."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from factories import USER, World
from jobs import queue
from jobs.events import drain
from jobs.gpu.prompts import from_run
from jobs.gpu.talks import Said, Talk
from jobs.reporter import Reporter, Stopped
from jobs.runs import RunFolder
from jobs.steerlm import SENTENCE
from jobs.worker import work
from storage import jobs as store
from storage.adapters import add_adapter, keep_adapter
from storage.contests import entries, get_contest
from storage.errors import PlumbError, UserError
from storage.lifecycle import JobStatus
from test_generate_job import ended, make_adapter

CONFIG = {"dtype": "float32", "max_new_tokens": 6, "batch_size": 3, "seed": 3, "temperature": 1.0}
Answers = dict[tuple[int, int, int], str]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("made") / "adapter")


def row(number: int, messages: list[Any], *following: str, columns: int = 2, **more: Any) -> dict[str, Any]:
    made = {"number": number, "id": f"q{number}", "category": "", "reference": [], "system": ""}
    made |= {"messages": messages, "order": list(range(columns))}
    return {**made, "following": [[{"type": "text", "text": one}] for one in following], **more}


def contest_run(
    folder: Path, adapter: Path | None, rows: list[Any] | None = None, count: int = 5, **changes: Any
) -> RunFolder:
    """Prompts of one question and of two, with none, one or two images."""
    images = [tiny.store(folder.parent / "images", tiny.picture(colour)) for colour in ("red", "blue")]
    names = [name for name, _ in images]
    columns = changes.setdefault("columns", ["base", "5"])
    if rows is None:
        rows = [
            row(n + 1, tiny.ask(f"what {n}?", *names[: n % 3]), *["and why?"][: n % 2], columns=len(columns))
            for n in range(count)
        ]
    adapters = None if adapter is None else {5: adapter}
    return tiny.frozen_run(folder, "contest", {**CONFIG, **changes}, rows, images, adapters)


def answers(run: RunFolder) -> Answers:
    """{(prompt, column, question): text}; each is told once."""
    found = tiny.events(run, "contest_answer")
    texts = {(one["number"], one["column"], one["turn"]): one["text"] for one in found}
    assert len(texts) == len(found), "an answer was made twice"
    return texts


def notes(run: RunFolder) -> str:
    return " ".join(event["text"] for event in tiny.events(run, "note"))


def wanted(count: int, columns: int = 2) -> set[tuple[int, int, int]]:
    return {(n + 1, c, turn) for n in range(count) for c in range(columns) for turn in range(1 + n % 2)}


# our own speakers --------------------------------------------------------------------------------------------


def test_every_speaker_answers_every_question(tmp_path: Path, adapter: Path) -> None:
    run = contest_run(tmp_path / "run", adapter)
    assert work(run.path) == 0, ended(run)
    found = answers(run)
    assert found.keys() == wanted(5)
    assert any(found[n, 0, 0] != found[n, 1, 0] for n in range(1, 6)), "the adapter says other things"
    told = tiny.events(run, "contest_answer")
    assert [(one["number"], one["column"]) for one in told[:8]] == [
        *[(1, 0), (2, 0), (3, 0), (2, 0)],
        *[(1, 1), (2, 1), (3, 1), (2, 1)],
    ], "each speaker answers a whole batch, and people can vote on it before the next"
    assert [one["number"] for one in told if "prompt" in one] == [1, 2, 3, 4, 5]
    assert [one["question"] for one in told if one["turn"]] == [[{"type": "text", "text": "and why?"}]] * 4
    shown = [part for one in told if "prompt" in one for part in one["prompt"]["messages"][0]["content"]]
    assert all(len(part["image"]) == 64 for part in shown if part["type"] == "image"), "as the database has them"
    done = [(one["done"], one["total"], one["unit"]) for one in tiny.events(run, "progress")]
    assert done == [(passed, 14, "answers") for passed in (0, 4, 8, 11, 14)]
    assert ended(run)["status"] == "done"


def test_batches_do_not_change_the_answers(tmp_path: Path, adapter: Path) -> None:
    runs = [contest_run(tmp_path / str(size), adapter, batch_size=size) for size in (1, 5)]
    runs.append(contest_run(tmp_path / "seed", adapter, batch_size=5, seed=4))
    for run in runs:
        assert work(run.path) == 0
    assert answers(runs[0]) == answers(runs[1]) != answers(runs[2])


def test_a_second_question_comes_after_ones_own_answer(tmp_path: Path, adapter: Path) -> None:
    run = contest_run(tmp_path / "run", adapter, [row(1, tiny.ask("what?"), "why?")], temperature=0.0)
    assert work(run.path) == 0
    found = answers(run)
    assert found[1, 0, 0] != found[1, 1, 0]
    for column in (0, 1):
        said = {"role": "assistant", "content": [{"type": "text", "text": found[1, column, 0]}]}
        messages = [*tiny.ask("what?"), said, *tiny.ask("why?")]
        again = contest_run(tmp_path / f"again-{column}", adapter, [row(1, messages)], temperature=0.0)
        assert work(again.path) == 0
        assert answers(again)[1, column, 0] == found[1, column, 1]
        assert answers(again)[1, 1 - column, 0] != found[1, 1 - column, 1], "so the history matters"


def test_all_speakers_have_the_same_noise(tmp_path: Path) -> None:
    """An adapter that changes nothing says what the base says, also by chance."""
    silent = make_adapter(tmp_path / "silent", size=0.0)
    run = contest_run(tmp_path / "run", silent)
    assert work(run.path) == 0
    found = answers(run)
    assert all(text == found[n, 1, turn] for (n, column, turn), text in found.items() if column == 0)
    assert len(set(found.values())) > 3


def test_a_second_attempt_writes_only_what_is_missing(tmp_path: Path, adapter: Path) -> None:
    whole = contest_run(tmp_path / "whole", adapter)
    assert work(whole.path) == 0
    told = tiny.events(whole, "contest_answer")
    for kept in (1, 4, 6, 13):
        run = contest_run(tmp_path / f"run-{kept}", adapter)
        lines = [json.dumps(event) for event in told[:kept]]
        run.events.write_text("\n".join(lines) + "\n" + lines[0][:30], encoding="utf-8")
        assert work(run.path) == 0
        text = run.events.read_text(encoding="utf-8").replace(lines[0][:30] + "\n", "")
        run.events.write_text(text, encoding="utf-8")
        assert answers(run) == answers(whole)
        assert [one["number"] for one in tiny.events(run, "contest_answer") if "prompt" in one] == [1, 2, 3, 4, 5]
        progress = tiny.events(run, "progress")
        assert (progress[0]["done"], progress[-1]["done"], progress[-1]["total"]) == (kept, 14, 14)
    before = len(told)
    assert work(whole.path) == 0
    assert len(tiny.events(whole, "contest_answer")) == before
    assert "loading the model" not in str(tiny.events(whole)[-4:]), "nothing is loaded where nothing is left"


def test_a_stop_is_heard_between_two_tokens(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = contest_run(tmp_path / "run", adapter)
    told, checks = Reporter.event, []

    def stop_after_one(self: Reporter, kind: str, **fields: Any) -> None:
        told(self, kind, **fields)
        if kind == "contest_answer":
            run.ask_to_stop()

    def count(self: Reporter) -> None:
        checks.append(self.stop_requested())
        if checks[-1]:
            raise Stopped("stopped by request")

    monkeypatch.setattr(Reporter, "event", stop_after_one)
    monkeypatch.setattr(Reporter, "check_stop", count)
    assert work(run.path) == 0
    assert ended(run)["status"] == "stopped"
    assert len(answers(run)) == 3, "those that were made together are kept"
    assert checks.count(True) == 1


def test_a_bad_prompt_does_not_take_the_others_along(tmp_path: Path, adapter: Path) -> None:
    name, file = tiny.store(tmp_path / "images", tiny.picture("green"))
    rows = [
        row(1, tiny.ask("fine", name), "and?"),
        row(2, tiny.ask("gone", "9" * 64 + ".png"), "and?"),
        row(3, tiny.ask("long " * tiny.CONTEXT)),
        row(4, tiny.ask("fine"), "long " * tiny.CONTEXT, "never asked"),
    ]
    run = tiny.frozen_run(
        tmp_path / "run", "contest", {**CONFIG, "columns": ["base", "5"]}, rows, [(name, file)], {5: adapter}
    )
    assert work(run.path) == 0, ended(run)
    assert answers(run).keys() == {(1, c, t) for c in (0, 1) for t in (0, 1)} | {(4, c, 0) for c in (0, 1)}
    assert "Prompt q2, question 1, is left out for base: The image 999" in notes(run)
    assert "Prompt q3 is left out for 5: its" in notes(run)
    assert "Prompt q4, question 2, is left out for base" in notes(run)
    assert f"exceed the model's {tiny.CONTEXT}" in notes(run)
    last = tiny.events(run, "progress")[-1]
    assert last["done"] == last["total"] == 16, "what is passed over is done, too"


def test_where_a_speaker_has_no_answer_at_all_the_job_fails(tmp_path: Path, adapter: Path) -> None:
    run = contest_run(tmp_path / "run", adapter, [row(1, tiny.ask("long " * tiny.CONTEXT))])
    assert work(run.path) == 1
    assert "None of the 1 prompts could be answered by base" in ended(run)["reason"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": []}, "no prompts to answer"),
        ({"columns": ["base", "6"]}, "adapter 6 is not in the run folder"),
        ({"dtype": "float16"}, "not for the CPU"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path: Path, adapter: Path, changes: dict[str, Any], words: str) -> None:
    run = contest_run(tmp_path / "run", adapter, **changes)
    assert work(run.path) == 1
    assert words in ended(run)["reason"]


def test_steerlm_adapters_get_their_attribute_string(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = contest_run(tmp_path / "run", adapter, [row(1, tiny.ask("w?"), "y?")], attributes={"verbosity": 1})
    listed = json.loads((run.path / "data" / "adapters.json").read_text())
    listed["5"]["method"] = "steerlm"
    (run.path / "data" / "adapters.json").write_text(json.dumps(listed))
    seen: list[list[Any]] = []

    def watch(run: RunFolder, messages: Any) -> Any:
        seen.append(messages)
        # The sentence alone is longer than what the tiny model takes.
        short = json.loads(json.dumps(messages).replace(SENTENCE, "in"))
        return from_run(run, short)

    monkeypatch.setattr("jobs.gpu.talks.from_run", watch)
    assert work(run.path) == 0, ended(run)
    asked = [
        [part["text"] for one in messages if one["role"] == "user" for part in one["content"]] for messages in seen
    ]
    assert asked[:2] == [["w?"], ["w?", "y?"]]
    values = "Helpfulness:4,Correctness:4,Coherence:4,Complexity:4,Verbosity:1"
    assert asked[2:] == [[f"w?\n{SENTENCE}\n{values}"], ["w?", f"y?\n{SENTENCE}\n{values}"]]


def test_the_system_prompt_comes_first(tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = contest_run(tmp_path / "run", adapter, [row(1, tiny.ask("w?"), system="Be brief.")])
    seen: list[list[Any]] = []

    def watch(run: RunFolder, messages: Any) -> Any:
        seen.append(messages)
        return from_run(run, messages)

    monkeypatch.setattr("jobs.gpu.talks.from_run", watch)
    assert work(run.path) == 0
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert [messages[0] for messages in seen] == [system, system]


def test_an_answer_cut_off_before_a_word_is_left_out_of_the_history() -> None:
    first = [{"type": "text", "text": "One?"}]
    talk = Talk("q", [{"role": "user", "content": "One?"}], [[{"type": "text", "text": "Two?"}]])
    assert [message["role"] for message in talk.asked()] == ["user"]
    talk.answers.append(Said("", "length", 6))
    assert talk.asked() == [{"role": "user", "content": [*first, {"type": "text", "text": "Two?"}]}]
    assert talk.messages[0]["content"] == "One?", "what is given stays as it is"
    talk.answers[0] = Said("", "stop", 0)
    assert [message["role"] for message in talk.asked()] == ["user", "assistant", "user"]
    assert (talk.turn, talk.left, talk.open) == (1, 1, True)


# endpoints ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    text: str
    finish: str = "stop"
    tokens: int | None = 3


Ask = Callable[..., Answered]


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> Callable[[Ask], None]:
    """Put a function in the place of `jobs.outside.ask`."""

    def put(ask: Ask) -> None:
        try:
            module = importlib.import_module("jobs.outside")
        except ImportError:
            module = types.ModuleType("jobs.outside")
            monkeypatch.setitem(sys.modules, "jobs.outside", module)
            monkeypatch.setattr(module, "with_images", lambda run, messages: messages, raising=False)
        monkeypatch.setattr(module, "ask", ask, raising=False)

    return put


def last_text(messages: list[Any]) -> str:
    return str(messages[-1]["content"][-1]["text"])


def test_an_endpoint_beside_our_own(tmp_path: Path, outside: Callable[[Ask], None]) -> None:
    seen: list[Any] = []

    def ask(settings: Any, speaker: Any, messages: Any, **values: Any) -> Answered:
        seen.append((speaker.spelling, [message["role"] for message in messages], values))
        return Answered(f"to {last_text(messages)}")

    outside(ask)
    run = contest_run(tmp_path / "run", None, columns=["7b@lab", "base", "8b@lab"])
    assert work(run.path) == 0, ended(run)
    found = answers(run)
    assert found.keys() == wanted(5, 3)
    assert found[2, 0, 1] == found[2, 2, 1] == "to and why?"
    assert {spelling for spelling, _, _ in seen} == {"7b@lab", "8b@lab"}
    assert ["user", "assistant", "user"] in [roles for _, roles, _ in seen]
    values = {name: value for name, value in seen[0][2].items() if name != "check"}
    assert values == {"temperature": 1.0, "top_p": 1.0, "seed": 3, "max_tokens": 6}


def test_endpoints_alone_load_nothing(
    tmp_path: Path, outside: Callable[[Ask], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2, timeout=20)

    def ask(settings: Any, speaker: Any, messages: Any, **values: Any) -> Answered:
        together.wait()  # would break if one were asked after the other
        return Answered("yes")

    outside(ask)
    monkeypatch.setattr("jobs.gpu.contest.load_for", lambda *_: pytest.fail("a model was loaded"))
    rows = [row(number, tiny.ask("what?")) for number in (1, 2)]
    run = contest_run(tmp_path / "run", None, rows, columns=["7b@lab", "8b@lab"])
    assert work(run.path) == 0, ended(run)
    assert len(answers(run)) == 4


def test_what_an_endpoint_refuses_is_left_out(tmp_path: Path, outside: Callable[[Ask], None]) -> None:
    def ask(settings: Any, speaker: Any, messages: Any, **values: Any) -> Answered:
        if last_text(messages) in ("what 2?", "and why?"):
            raise UserError("lab refuses it: too long.")
        return Answered("yes")

    outside(ask)
    run = contest_run(tmp_path / "run", None, columns=["7b@lab", "8b@lab"])
    assert work(run.path) == 0, ended(run)
    assert answers(run).keys() == {(n, c, 0) for n in (1, 2, 4, 5) for c in (0, 1)}
    assert "Prompt q3 is left out for 7b@lab: lab refuses it: too long." in notes(run)
    assert "Prompt q2, question 2, is left out for 8b@lab" in notes(run)
    last = tiny.events(run, "progress")[-1]
    assert last["done"] == last["total"] == 14


def test_an_endpoint_that_refuses_everything_fails_the_job(tmp_path: Path, outside: Callable[[Ask], None]) -> None:
    def ask(settings: Any, speaker: Any, messages: Any, **values: Any) -> Answered:
        raise UserError("lab has no such model.")

    outside(ask)
    run = contest_run(tmp_path / "run", None, columns=["base", "7b@lab"])
    assert work(run.path) == 1
    assert ended(run)["reason"] == "None of the 5 prompts could be answered by 7b@lab; the notes say why."
    assert len(answers(run)) == 7, "the others' answers stay"


def test_an_endpoint_that_is_down_fails_the_job_which_goes_on_later(
    tmp_path: Path, outside: Callable[[Ask], None]
) -> None:
    asked: list[str] = []

    def ask(settings: Any, speaker: Any, messages: Any, **values: Any) -> Answered:
        asked.append(last_text(messages))
        if len(asked) > 3:
            raise PlumbError("The endpoint lab cannot be reached.")
        return Answered("yes")

    outside(ask)
    run = contest_run(tmp_path / "run", None, columns=["7b@lab", "8b@lab"], batch_size=1)
    assert work(run.path) == 1
    assert ended(run)["reason"] == "The endpoint lab cannot be reached."
    assert len(answers(run)) == 3
    outside(lambda *given, **values: Answered("later"))
    assert work(run.path) == 0
    assert sorted(answers(run).values()) == ["later"] * 11 + ["yes"] * 3


def test_a_stop_ends_requests_under_way(tmp_path: Path, outside: Callable[[Ask], None]) -> None:
    run = contest_run(tmp_path / "run", None, columns=["7b@lab", "8b@lab"])
    waiting = threading.Event()

    def ask(settings: Any, speaker: Any, messages: Any, *, check: Callable[[], None], **values: Any) -> Answered:
        run.ask_to_stop()
        while not waiting.wait(0.01):  # an endpoint that never answers
            check()
        return Answered("too late")

    outside(ask)
    try:
        assert work(run.path) == 0
    finally:
        waiting.set()
    assert ended(run)["status"] == "stopped"
    assert answers(run) == {}


# a real one --------------------------------------------------------------------------------------------------


def worker(run: RunFolder) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.worker", str(run.path)],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_killed_and_resumed_nothing_is_lost_or_said_twice(
    world: World, adapter: Path, tmp_path: Path, no_supervisor: None, wait_for: Callable[..., None]
) -> None:
    trained = world.job("dpo", model=str(tiny.tiny_llava()))
    sha256, size = keep_adapter(world.folder, adapter)
    add_adapter(world.db, trained, "mine", sha256, size, str(tiny.tiny_llava()), "dpo")
    world.db.conn.execute("UPDATE jobs SET status = 'done'")
    tiny.picture("red").save(tmp_path / "red.png")
    lines = [
        {"question_id": n, "turns": [f"what {n}?", "and why?"], "image": "red.png", "category": "test"}
        for n in range(12)
    ]
    file = tmp_path / "question.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    values: dict[str, Any] = {"model": str(tiny.tiny_llava()), "columns": ["1", "base"], "prompts": str(file)}
    values |= {"dtype": "float32", "max_new_tokens": 40, "temperature": 1.0, "batch_size": 2}
    jobs = [queue.submit(world.db, world.settings, "contest", values, USER) for _ in range(2)]
    runs = [RunFolder(world.folder.run(job.id)) for job in jobs]
    assert work(runs[1].path) == 0, ended(runs[1])

    def begin() -> int:
        world.db.conn.execute("UPDATE jobs SET status = 'starting' WHERE id = ?", [jobs[0].id])
        return store.start_attempt(world.db, jobs[0].id).id

    for least in (3, 21):
        attempt, process = begin(), worker(runs[0])
        try:
            wait_for(lambda least=least: told(runs[0]) >= least, f"{least} answers")
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert least <= told(runs[0]) < 48
        drain(world.db, world.folder, attempt)
        store.end_attempt(world.db, attempt, "failed", "killed")
    attempt = begin()
    assert work(runs[0].path) == 0
    drain(world.db, world.folder, attempt)
    found = [event for event in events_of(runs[0]) if event["kind"] == "contest_answer"]
    assert {key(event): event["text"] for event in found} == answers(runs[1])
    assert len(found) == 48
    contest = get_contest(world.db, 1, USER)
    assert (contest.total, contest.answered, contest.partial) == (12, 12, 0)
    assert [entry.complete for entry in entries(world.db, 1, USER)] == [True] * 12
    assert store.get_job(world.db, jobs[0].id).status is not JobStatus.QUEUED


def events_of(run: RunFolder) -> list[dict[str, Any]]:
    from jobs.event_file import read_events

    return list(read_events(run.events))


def told(run: RunFolder) -> int:
    return sum(event["kind"] == "contest_answer" for event in events_of(run))


def key(event: dict[str, Any]) -> tuple[int, int, int]:
    return event["number"], event["column"], event["turn"]
