"""Contests without a model: packing, who stands where, answers into conversations, votes, deleting."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from contest_rows import COLUMNS, make_contest
from data_folders import trained
from factories import USER, World, open_world, png
from jobs import bin as recycling
from jobs import queue, steering
from jobs.__main__ import app
from jobs.configs import parse_config
from jobs.events import apply, drain
from jobs.packing_contest import orders
from jobs.runs import RunFolder
from jobs.settings import Settings
from storage import contests, history
from storage import jobs as store
from storage.adapters import get_adapter, uses_of
from storage.backup import backup
from storage.chats import text_of
from storage.contests import delete_contest, entries, get_contest, list_contests, next_to_vote, rename_contest
from storage.database import session
from storage.errors import Conflict, NotFound, PlumbError, UserError
from storage.folder import DataFolder
from storage.lifecycle import JobStatus
from storage.records import Conversation, Job, Turn
from storage.restore import restore
from storage.results import results_of
from storage.rows import one, rows, with_json
from storage.upkeep import check
from storage.users import ensure_user
from workbench import job_views, job_words

OTHER = "grace"


def conversation(world: World, conversation_id: int) -> Conversation:
    """A conversation, whoever asks."""
    found = one(world.db, "SELECT * FROM conversations WHERE id = ?", [conversation_id])
    assert found is not None
    turns = rows(
        world.db,
        "SELECT id, position, column_number, role, content, model, adapter_id, finish, settings FROM turns"
        " WHERE conversation_id = ? ORDER BY position, column_number, id",
        [conversation_id],
    )
    return Conversation(
        **with_json(found, "settings"), turns=tuple(Turn(**with_json(one, "content", "settings")) for one in turns)
    )


def vote(world: World, conversation_id: int, user: str = USER, position: int | None = None) -> None:
    """A vote on the last answers, or on those of a position."""
    ensure_user(world.db, user)
    turns = [one for one in conversation(world, conversation_id).turns if one.role == "assistant"]
    place = max(one.position for one in turns) if position is None else position
    left, right = [one.id for one in turns if one.position == place][:2]
    world.db.conn.execute(
        "INSERT INTO votes (left_turn_id, right_turn_id, verdict, user, created_at) VALUES (?, ?, 'tie', ?, '')",
        [left, right, user],
    )


def mt_bench(folder: Path, count: int = 4) -> Path:
    """A list of two questions a prompt, the last one with an image."""
    (folder / "a.png").write_bytes(png())
    lines: list[dict[str, Any]] = [
        {"question_id": 81 + n, "category": "writing" if n % 2 else "math", "turns": [f"First {n}?", f"More {n}?"]}
        for n in range(count)
    ]
    lines[-1] |= {"images": ["a.png"], "reference": ["right", "indeed"]}
    file = folder / "question.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def known(world: World) -> Settings:
    """The world's settings with an endpoint, which nobody asks here."""
    return world.settings.model_copy(update={"endpoints": {"lab": "http://127.0.0.1:9/v1"}})


def submit(world: World, file: Path, **values: Any) -> Job:
    given = {"columns": ["base", "7@lab"], "prompts": str(file), "dtype": "float32", **values}
    return queue.submit(world.db, known(world), "contest", given, USER)


# who stands where --------------------------------------------------------------------------------------------


@given(st.integers(0, 200), st.sampled_from([2, 3]), st.integers(0, 5))
def test_each_column_stands_on_each_side_equally_often(prompts: int, columns: int, seed: int) -> None:
    found = orders(prompts, columns, seed)
    assert len(found) == prompts
    assert all(sorted(one) == list(range(columns)) for one in found)
    counts = Counter((column, side) for one in found for side, column in enumerate(one))
    numbers = [counts[column, side] for column in range(columns) for side in range(columns)]
    assert max(numbers) - min(numbers) <= 1
    arrangements = Counter(found)
    if prompts >= 6:
        assert max(arrangements.values()) - min(arrangements.values()) <= 1
        assert len(arrangements) == (2 if columns == 2 else 6)
    assert found == orders(prompts, columns, seed)


def test_the_sides_are_another_seeds_others_and_no_pattern() -> None:
    assert orders(80, 2, 1) != orders(80, 2, 2)
    pairs = [orders(80, 2, seed)[start : start + 2] for seed in range(5) for start in range(0, 80, 2)]
    alike = sum(first == second for first, second in pairs)
    assert 0.3 < alike / len(pairs) < 0.7, "the side of one prompt tells nothing of the next one's"


# packing -----------------------------------------------------------------------------------------------------


def test_a_list_becomes_rows_images_and_a_contest(
    world: World, tmp_path: Path, no_supervisor: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    mt_bench(tmp_path)
    adapter = trained(world)
    monkeypatch.chdir(tmp_path)
    job = submit(world, Path("question.jsonl"), columns=["base", f"0{adapter.id}"], system=" Be brief. ", seed=3)
    run = RunFolder(world.folder.run(job.id))
    found = list(run.rows())
    assert [row["number"] for row in found] == [1, 2, 3, 4]
    assert [row["order"] for row in found] == [list(order) for order in orders(4, 2, 3)]
    assert {row["system"] for row in found} == {"Be brief."}
    assert found[0]["messages"] == [{"role": "user", "content": [{"type": "text", "text": "First 0?"}]}]
    assert found[0]["following"] == [[{"type": "text", "text": "More 0?"}]]
    last = found[3]
    assert (last["id"], last["category"], last["reference"]) == ("84", "writing", ["right", "indeed"])
    (shown,) = [part["image"] for part in last["messages"][0]["content"] if part["type"] == "image"]
    assert run.image(shown).read_bytes() == png()
    assert json.loads((run.path / "data" / "adapters.json").read_text()).keys() == {str(adapter.id)}
    assert job.slot_kind == "device"
    assert job.config["prompts"] == str(tmp_path / "question.jsonl"), "the path means the same from anywhere"
    contest = get_contest(world.db, 1, USER)
    assert (contest.name, contest.job_id, contest.user, contest.total) == ("question", job.id, USER, 4)
    assert contest.settings["columns"] == ["base", str(adapter.id)]
    assert check(world.db, world.folder) == []


def test_samples_become_rows(world: World, no_supervisor: None) -> None:
    ids = [world.sample(number, f"what is {number}?") for number in range(1, 4)]
    world.sample(9, source="another")
    chosen = {"source": "easy-vqa"}
    job = queue.submit(
        world.db, known(world), "contest", {"columns": ["base", "7@lab"], "samples": chosen, "limit": 2}, USER
    )
    found = list(RunFolder(world.folder.run(job.id)).rows())
    assert [(row["id"], row["category"], row["reference"]) for row in found] == [
        (str(number), "easy-vqa", ["circle"]) for number in ids[:2]
    ]
    assert found[0]["messages"][0]["content"][1] == {"type": "text", "text": "what is 1?"}
    assert get_contest(world.db, 1, USER).name == "samples"


def test_a_prompts_own_system_message_wins(world: World, tmp_path: Path, no_supervisor: None) -> None:
    messages = [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "Hello?"}]
    file = tmp_path / "list.jsonl"
    file.write_text(json.dumps({"messages": messages}) + '\n{"prompt": "Hello?"}\n')
    job = submit(world, file, system="Be brief.")
    found = list(RunFolder(world.folder.run(job.id)).rows())
    assert [(row["system"], len(row["messages"])) for row in found] == [("Rhyme.", 1), ("Be brief.", 1)]


def test_an_adapter_is_asked_as_it_was_trained(world: World, tmp_path: Path, no_supervisor: None) -> None:
    adapter = trained(world)
    world.db.conn.execute(
        "UPDATE jobs SET config = json_set(config, '$.image_fit', 'square', '$.steer', 'on') WHERE id = ?",
        [adapter.job_id],
    )
    job = submit(world, mt_bench(tmp_path), columns=["base", str(adapter.id)])
    assert job.config["image_fit"] == "square"
    listed = json.loads((world.folder.run(job.id) / "data" / "adapters.json").read_text())
    assert listed[str(adapter.id)]["method"] == "steerlm"


def test_where_all_are_outside_no_device_is_taken(world: World, tmp_path: Path, no_supervisor: None) -> None:
    job = submit(world, mt_bench(tmp_path), columns=["7@lab", "base", "8@lab"])
    assert job.slot_kind == "device"
    job = submit(world, mt_bench(tmp_path), columns=["7@lab", "8@lab"])
    assert job.slot_kind == "network"
    assert RunFolder(world.folder.run(job.id)).job().device == "network"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"columns": ["base"]}, "name 2 or 3 speakers"),
        ({"columns": ["base", "1", "2", "3"]}, "name 2 or 3 speakers"),
        ({"columns": ["base", "base"]}, "nobody competes with itself"),
        ({"columns": ["3", "03"]}, "nobody competes with itself"),
        ({"columns": ["base", "x y"]}, "choose “base”"),
        ({"columns": ["base", "99"]}, "There is no adapter 99"),
        ({"columns": ["base", "7@moon"]}, "There is no endpoint called 'moon'. There are lab"),
        ({"columns": ["base", "1"], "model": "owner/other"}, "was trained on 'demo'"),
        ({"prompts": "gone.jsonl"}, "there is no file"),
        ({"samples": {"source": "easy-vqa"}}, "both say what is asked"),
        ({"prompts": "", "images": "somewhere"}, "there is no list"),
        ({"prompts": ""}, "There is nothing to ask"),
        ({"images": "no/such/folder"}, "no folder"),
        ({"limit": 0}, "limit = 0"),
        ({"temperature": 3}, "temperature = 3"),
        ({"attributes": {"helpfulness": 5}}, "attributes.helpfulness = 5"),
        ({"name": "x" * 81}, "name = "),
        ({"model": "nonsense"}, "Unknown base model"),
        ({"device": "cuda:5"}, "is not there"),
        ({"strange": 1}, "strange is not a setting"),
    ],
)
def test_what_cannot_be_asked(
    world: World, tmp_path: Path, no_supervisor: None, values: dict[str, Any], words: str
) -> None:
    trained(world)
    with pytest.raises(PlumbError) as caught:
        submit(world, mt_bench(tmp_path), **values)
    assert words in str(caught.value)
    assert list_contests(world.db, USER) == []
    assert not store.list_jobs(world.db, kind="contest")


def test_broken_images_are_told_with_their_lines(world: World, tmp_path: Path, no_supervisor: None) -> None:
    file = mt_bench(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"line 4: The file a\.png is not an image"):
        submit(world, file)


def test_too_many_samples(world: World, no_supervisor: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.packing_contest.MOST_PROMPTS", 1)
    for number in range(2):
        world.sample(number)
    values = {"columns": ["base", "7@lab"]}
    with pytest.raises(UserError, match="at most 1 prompts; set a limit"):
        queue.submit(world.db, known(world), "contest", values, USER)


def test_the_command(world: World, tmp_path: Path, no_supervisor: None, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "job.json"
    config = {"columns": ["base", "7@lab"], "prompts": str(mt_bench(tmp_path)), "name": "MT-Bench"}
    file.write_text(json.dumps({"kind": "contest", "config": config}))
    monkeypatch.setattr("jobs.__main__.local_user", lambda: USER)
    monkeypatch.setenv("PLUMB_ENDPOINTS", "lab=http://127.0.0.1:9/v1")
    done = CliRunner().invoke(app, ["submit", str(file), "--data", str(world.folder.root)])
    assert done.exit_code == 0, done.output
    assert "job 1 (contest) is queued" in done.output
    assert [one.name for one in list_contests(world.db, USER)] == ["MT-Bench"]
    assert "contest" in CliRunner().invoke(app, ["submit", "--help"]).output


# answers -----------------------------------------------------------------------------------------------------


def answered(job: Job, row: dict[str, Any], column: int, turn: int, first: bool) -> dict[str, Any]:
    """An event as the worker writes it."""
    event: dict[str, Any] = {"kind": "contest_answer", "time": 1.0, "number": row["number"], "turn": turn}
    event |= {"column": column, "text": f"{column} says {turn}", "finish": "stop", "tokens": 3}
    if turn:
        event["question"] = row["following"][turn - 1]
    elif first:
        kept = {name: row[name] for name in ("id", "category", "reference", "system", "messages", "order")}
        event["prompt"] = {**kept, "turns": 1 + len(row["following"])}
    return event


def told(job: Job, found: Sequence[dict[str, Any]], columns: int = 2) -> list[dict[str, Any]]:
    """All events of a job, in the order in which it writes them: a column answers all prompts, then the next."""
    return [
        answered(job, row, column, turn, column == 0)
        for column in range(columns)
        for turn in range(2)
        for row in found
        if turn <= len(row["following"])
    ]


def started(world: World, job: Job) -> int:
    world.db.conn.execute("UPDATE jobs SET status = 'starting' WHERE id = ?", [job.id])
    return store.start_attempt(world.db, job.id).id


def test_answers_become_conversations(world: World, tmp_path: Path, no_supervisor: None) -> None:
    job = submit(world, mt_bench(tmp_path), system="Be brief.", blind=True, temperature=0.5)
    run = RunFolder(world.folder.run(job.id))
    prompts = list(run.rows())
    attempt = started(world, job)
    run.events.write_text("".join(json.dumps(event) + "\n" for event in told(job, prompts)))
    drain(world.db, world.folder, attempt)
    assert store.get_attempt(world.db, attempt).advanced
    found = entries(world.db, 1, USER)
    assert [(one.number, one.title, one.category, one.complete) for one in found] == [
        (number, f"First {number - 1}?", row["category"], True) for number, row in enumerate(prompts, start=1)
    ]
    for entry, row in zip(found, prompts, strict=True):
        talk = conversation(world, entry.conversation_id)
        assert (talk.user, talk.contest_id, talk.number) == (USER, 1, entry.number)
        assert talk.settings["columns"] == [["base", "7@lab"][place] for place in row["order"]]
        assert (talk.settings["blind"], talk.settings["prompt_id"]) == (True, row["id"])
        assert talk.settings.get("reference") == (row["reference"] or None)
        assert [turn.role for turn in talk.turns] == ["user", "assistant", "assistant"] * 2
        assert [turn.position for turn in talk.turns] == [0, 1, 1, 2, 3, 3]
        for turn in talk.turns:
            if turn.role == "user":
                assert turn.settings["system"] == "Be brief."
                assert (turn.settings["temperature"], turn.settings["helpfulness"]) == (0.5, 4)
                assert turn.settings["columns"] == talk.settings["columns"]
                assert "blind" not in turn.settings
            else:
                side = row["order"][turn.column_number or 0]
                assert turn.model == ["demo", "7@lab"][side]
                assert turn.content[0]["text"] == f"{side} says {turn.position // 2}"
    assert check(world.db, world.folder) == []


@settings(max_examples=30, deadline=None)
@given(st.data())
@pytest.mark.slow
def test_however_events_come_the_conversations_are_the_same(data: st.DataObject) -> None:
    """Read in pieces, some of them applied again, as a backup or two supervisors may bring them."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.queue.ensure_supervisor", lambda settings: False)
        world = open_world(Path(folder) / "data")
        columns = ["base", "7@lab", "8@lab"]
        jobs = [submit(world, mt_bench(Path(folder)), columns=columns) for _ in range(2)]
        prompts = list(RunFolder(world.folder.run(jobs[0].id)).rows())
        events = told(jobs[0], prompts, 3)
        for event in events:
            attempt = store.start_attempt(world.db, jobs[0].id)
            apply(world.db, attempt, jobs[0], event)
        attempt_id = started(world, jobs[1])
        file = RunFolder(world.folder.run(jobs[1].id)).events
        lines = [json.dumps(event).encode() + b"\n" for event in events]
        again = data.draw(st.lists(st.integers(0, len(lines) - 1), max_size=5))
        whole = b"".join(lines) + b"".join(lines[place] for place in again)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=4)))
        for end in [*cuts, len(whole)]:
            file.write_bytes(whole[:end])
            drain(world.db, world.folder, attempt_id)
        one, other = [
            [
                (talk.number, talk.title, talk.settings, [plain(turn) for turn in talk.turns])
                for entry in entries(world.db, contest, USER)
                for talk in [conversation(world, entry.conversation_id)]
            ]
            for contest in (1, 2)
        ]
        assert one == other
        assert len(one) == len(prompts)
        world.db.close()


def plain(turn: Turn) -> tuple[Any, ...]:
    return turn.position, turn.column_number, turn.role, turn.content, turn.model, turn.finish, turn.settings


def test_answers_that_came_with_the_prompt_stand_in_every_column(world: World) -> None:
    made = make_contest(world, columns=COLUMNS)
    found = conversation(world, made.answer(1, ("And this?", "Why?"), given=("What is it?", "A circle.")))
    assert [turn.position for turn in found.turns] == [0, 1, 1, 1, 2, 3, 3, 3, 4, 5, 5, 5]
    brought = [turn for turn in found.turns if turn.position == 1]
    assert [turn.column_number for turn in brought] == [0, 1, 2]
    assert {(turn.finish, turn.model, text_of(turn.content)) for turn in brought} == {("given", None, "A circle.")}
    assert (found.settings["first_question"], found.settings["last_answer"]) == (2, 5)
    assert [one.complete for one in entries(world.db, made.id, USER)] == [True]


def test_what_was_deleted_is_not_made_again(world: World) -> None:
    made = make_contest(world)
    gone = made.answer(1, speakers=[0])
    world.db.conn.execute("DELETE FROM conversations WHERE id = ?", [gone])
    contests.add_contest_answer(world.db, made.job, number=1, turn=0, column=1, text="late", finish="stop")
    assert entries(world.db, made.id, USER) == []
    made.end()
    delete_contest(world.db, USER, made.id)
    contests.add_contest_answer(
        world.db, made.job, number=2, turn=0, column=1, text="late", finish="stop", prompt={"order": [0, 1]}
    )
    assert rows(world.db, "SELECT id FROM conversations") == []


def test_an_answer_without_anything_new_is_no_advance(world: World, tmp_path: Path, no_supervisor: None) -> None:
    job = submit(world, mt_bench(tmp_path))
    event = answered(job, next(RunFolder(world.folder.run(job.id)).rows()), 0, 0, True)
    advanced = []
    for _ in range(2):
        attempt = store.start_attempt(world.db, job.id)
        apply(world.db, attempt, job, event)
        advanced.append(store.get_attempt(world.db, attempt.id).advanced)
    assert advanced == [1, 0]


# votes -------------------------------------------------------------------------------------------------------


def test_what_is_left_to_vote_on(world: World) -> None:
    made = make_contest(world, total=5)
    first, second, third = [made.answer(number, ("One?", "Two?")) for number in (1, 2, 4)]
    made.answer(3, speakers=[0])
    other = make_contest(world, name="another")
    assert next_to_vote(world.db, other.id, USER) is None
    assert next_to_vote(world.db, made.id, USER) == first
    assert next_to_vote(world.db, made.id, USER, after=1) == second
    vote(world, first, position=1)
    assert next_to_vote(world.db, made.id, USER) == first, "it counts what is said of the last answers"
    vote(world, first)
    assert next_to_vote(world.db, made.id, USER) == second
    assert next_to_vote(world.db, made.id, OTHER) == first
    vote(world, third)
    assert next_to_vote(world.db, made.id, USER, after=2) == second, "at the end it goes on from the beginning"
    vote(world, second)
    assert next_to_vote(world.db, made.id, USER) is None
    shown = get_contest(world.db, made.id, USER)
    assert (shown.total, shown.answered, shown.partial, shown.voted) == (5, 3, 1, 3)
    assert [one.voted for one in list_contests(world.db, OTHER)] == [0, 0]
    assert [one.name for one in list_contests(world.db, OTHER)] == ["another", "MT-Bench"]
    assert [(one.number, one.complete, one.voted) for one in entries(world.db, made.id, USER)] == [
        (1, True, True),
        (2, True, True),
        (3, False, False),
        (4, True, True),
    ]
    assert contests.conversation_at(world.db, made.id, 5) is None


@pytest.mark.parametrize(
    ("text", "finish", "complete"),
    [
        ("", "length", False),
        (" \n", "length", False),
        ("", "stop", True),
        ("a", "length", True),
        ("a", "failed", False),
    ],
)
def test_an_answer_without_a_word_cannot_be_voted_on(world: World, text: str, finish: str, complete: bool) -> None:
    made = make_contest(world)
    made.answer(1, texts={0: text}, finish=finish)
    assert [one.complete for one in entries(world.db, made.id, USER)] == [complete]


def test_what_the_owner_goes_on_to_say_is_no_part_of_it(world: World) -> None:
    made = make_contest(world)
    found = made.answer(1)
    vote(world, found)
    world.db.conn.execute(
        "INSERT INTO turns (conversation_id, position, role, content, created_at) VALUES (?, 2, 'user', '[]', '')",
        [found],
    )
    assert [(one.complete, one.voted) for one in entries(world.db, made.id, USER)] == [(True, True)]


# renaming and deleting ---------------------------------------------------------------------------------------


def test_renaming(world: World) -> None:
    made = make_contest(world)
    assert rename_contest(world.db, USER, made.id, "  A new \n name ").name == "A new name"
    for name in ("", "  ", "x" * 81):
        with pytest.raises(UserError, match="give 1 to 80"):
            rename_contest(world.db, USER, made.id, name)
    with pytest.raises(UserError, match="who alone can rename it"):
        rename_contest(world.db, OTHER, made.id, "mine")
    with pytest.raises(NotFound):
        rename_contest(world.db, USER, 99, "gone")
    history.undo(world.db, USER)
    assert get_contest(world.db, made.id, USER).name == "MT-Bench"


def everything(world: World) -> dict[str, list[dict[str, Any]]]:
    tables = ("contests", "conversations", "turns", "votes", "turn_scores")
    return {table: rows(world.db, f"SELECT * FROM {table}") for table in tables}


def test_deleting_and_undoing(world: World) -> None:
    made = make_contest(world)
    kept = make_contest(world, name="kept")
    kept.answer(1)
    before_all = everything(world)
    found = made.answer(1, ("One?", "Two?"))
    vote(world, found)
    vote(world, found, OTHER)
    turn = conversation(world, found).turns[-1].id
    world.db.conn.execute(
        "INSERT INTO turn_scores (turn_id, user, metric, value) VALUES (?, ?, 'helpfulness', 3)", [turn, OTHER]
    )
    with pytest.raises(Conflict, match="is still at this contest"):
        delete_contest(world.db, USER, made.id)
    made.end()
    with pytest.raises(UserError, match="who alone can delete it"):
        delete_contest(world.db, OTHER, made.id)
    whole = everything(world)
    delete_contest(world.db, USER, made.id)
    before_all["contests"] = [one for one in before_all["contests"] if one["id"] != made.id]
    assert everything(world) == before_all
    with pytest.raises(NotFound):
        get_contest(world.db, made.id, USER)
    history.undo(world.db, USER)
    assert everything(world) == whole
    assert [one for one in check(world.db, world.folder) if one.kind != "missing file"] == []


def test_a_deleted_contest_is_not_gone_on_with(world: World, tmp_path: Path, no_supervisor: None) -> None:
    adapter = trained(world)
    job = submit(world, mt_bench(tmp_path), columns=["base", str(adapter.id)])
    assert uses_of(world.db, get_adapter(world.db, adapter.id)).jobs == (job.id,)
    store.move(world.db, job.id, JobStatus.STARTING)
    store.move(world.db, job.id, JobStatus.STOPPED, "asked to")
    delete_contest(world.db, USER, 1)
    with pytest.raises(Conflict, match="was deleted; undo that first"):
        steering.resume(world.db, world.settings, job.id)
    history.undo(world.db, USER)
    world.db.conn.execute("DELETE FROM adapters WHERE id = ?", [adapter.id])
    with pytest.raises(Conflict, match=f"asks adapter {adapter.id}, which was deleted"):
        steering.resume(world.db, world.settings, job.id)


def test_the_same_again_is_another_contest(world: World, tmp_path: Path, no_supervisor: None) -> None:
    file = mt_bench(tmp_path)
    job = submit(world, file)
    again = steering.run_again(world.db, known(world), job.id, OTHER)
    assert [(one.job_id, one.user) for one in list_contests(world.db, USER)] == [(again.id, OTHER), (job.id, USER)]
    file.unlink()
    with pytest.raises(UserError, match="there is no file"):
        steering.run_again(world.db, known(world), job.id, USER)


def test_a_purged_run_leaves_its_contest(world: World, tmp_path: Path, no_supervisor: None) -> None:
    job = submit(world, mt_bench(tmp_path))
    run = RunFolder(world.folder.run(job.id))
    attempt = started(world, job)
    run.events.write_text("".join(json.dumps(event) + "\n" for event in told(job, list(run.rows()))))
    drain(world.db, world.folder, attempt)
    store.end_attempt(world.db, attempt, "done", "", exit_code=0)
    store.move(world.db, job.id, JobStatus.DONE)
    recycling.delete_run(world.db, world.settings, job.id, USER)
    recycling.purge(world.db, world.settings)
    assert not run.path.exists()
    assert get_contest(world.db, 1, USER).answered == 4
    assert check(world.db, world.folder) == []


def test_a_backup_brings_it_back(world: World, tmp_path: Path) -> None:
    made = make_contest(world)
    found = made.answer(1, picture=png((1, 2, 3)))
    vote(world, found)
    made.end()
    RunFolder(world.folder.run(made.job.id)).path.mkdir(parents=True)
    (world.folder.run(made.job.id) / "job.json").write_text("{}")
    whole = everything(world)
    backup(world.folder, tmp_path / "backup.tar")
    elsewhere = DataFolder(tmp_path / "elsewhere")
    restore(tmp_path / "backup.tar", elsewhere, USER)
    with session(elsewhere) as db:
        assert everything(World(db, elsewhere, world.settings)) == whole
        assert check(db, elsewhere) == []


# the Jobs page -----------------------------------------------------------------------------------------------


def test_what_the_jobs_page_says(world: World) -> None:
    made = make_contest(world, total=80, columns=("base", "12", "7@lab"), name="<b>MT</b>")
    made.answer(1, speakers=[0])
    job = store.get_job(world.db, made.job.id)
    found = results_of(world.db, job.id)
    shown = job_views.results(job, found, None)
    assert f'<a href="/contests?contest={made.id}">' in shown
    assert "<b>1</b> of 80 prompts answered, 1 of them in part" in shown
    assert "&lt;b&gt;MT&lt;/b&gt;" in shown
    assert job_words.summary(job) == "<b>MT</b>, 3 speakers"
    assert job_words.kind_name(job) == "Contest"
    assert results_of(world.db, world.job().id).contest is None


def test_its_settings_are_shown(world: World, tmp_path: Path, no_supervisor: None) -> None:
    job = submit(world, mt_bench(tmp_path))
    shown = job_views.settings(job)
    assert "<th scope=row>Speakers</th><td>base, 7@lab</td>" in shown
    assert parse_config("contest", job.config).model_dump(mode="json") == job.config
