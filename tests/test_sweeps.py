"""Sweeps: grids of settings become jobs, all of them or none."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import USER, World
from jobs import __main__ as command
from jobs import queue, sweeps
from jobs.configs import PRESETS
from jobs.freezing import freeze
from jobs.packing import pack
from jobs.runs import RunFolder
from jobs.sweeps import MOST_JOBS, combinations, counted, read_grid, stop_sweep, submit_sweep
from storage import jobs as store
from storage.errors import NotFound, PlumbError, UserError
from storage.lifecycle import JobStatus
from storage.pairs import choose_by_hand
from storage.records import Job

VALUES = {"dataset": "first", "batch_size": 2, "global_batch": 2}


@pytest.fixture(autouse=True)
def queued_alone(no_supervisor: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.sweeps.ensure_supervisor", lambda settings: False)


@pytest.fixture
def data(world: World) -> World:
    for number in range(1, 9):
        one, other = world.candidates(world.sample(number), ["a red circle", "red"])
        choose_by_hand(world.db, USER, one.id, other.id)
    freeze(world.db, USER, "first", ("accepted", "proposed"), heldout_percent=25)
    return world


def trainings(world: World) -> list[Job]:
    return [job for job in store.list_jobs(world.db) if job.kind == "dpo"]


def submit(world: World, grid: dict[str, Any], **values: Any) -> list[Job]:
    return submit_sweep(world.db, world.settings, "dpo", {**VALUES, **values}, grid, USER)


def test_every_combination_becomes_a_job_with_a_name_that_tells_it(data: World) -> None:
    jobs = submit(data, {"beta": [0.1, 0.3], "learning_rate": [5e-5, 5e-6], "epochs": [2.0]})
    told = [(job.config["beta"], job.config["learning_rate"], job.config["epochs"]) for job in jobs]
    assert told == [(0.1, 5e-5, 2.0), (0.1, 5e-6, 2.0), (0.3, 5e-5, 2.0), (0.3, 5e-6, 2.0)]
    assert [job.config["name"] for job in jobs] == [
        "first-dpo beta=0.1 lr=5e-05",
        "first-dpo beta=0.1 lr=5e-06",
        "first-dpo beta=0.3 lr=5e-05",
        "first-dpo beta=0.3 lr=5e-06",
    ]
    assert {job.sweep for job in jobs} == {jobs[0].id}
    assert store.sweep_jobs(data.db, jobs[0].id) == jobs
    assert store.sweep_states(data.db, [jobs[0].id, 999]) == {jobs[0].id: {JobStatus.QUEUED: 4}}
    for job in jobs:
        run = RunFolder(data.folder.run(job.id))
        assert run.job().config == job.config
        assert len(list(run.rows())) == 8


def test_fractions_and_flips_change_the_rows_and_the_rest_is_packed_once(
    data: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = []

    def counted_pack(*given: Any) -> Any:
        packed.append(1)
        return pack(*given)

    monkeypatch.setattr(queue, "pack", counted_pack)
    submit(data, {"beta": [0.1, 0.2, 0.3], "seed": [0, 1], "epochs": [1, 2]})
    assert len(packed) == 1
    packed.clear()
    jobs = submit(data, {"fraction": [0.5, 1.0], "beta": [0.1, 0.2], "flip": [0.0, 1.0]})
    assert len(packed) == 4

    def trained(job: Job) -> list[dict[str, Any]]:
        return [row for row in RunFolder(data.folder.run(job.id)).rows() if row["split"] == "train"]

    by = {(job.config["fraction"], job.config["flip"]): trained(job) for job in jobs}
    assert [len(by[fraction, 0.0]) for fraction in (0.5, 1.0)] == [3, 6]
    assert {row["chosen"] for row in by[1.0, 1.0]} == {"red"}
    assert {row["chosen"] for row in by[1.0, 0.0]} == {"a red circle"}


@pytest.mark.parametrize(
    ("grid", "values", "text"),
    [
        ({"beta": [0.1, 0.3, -1.0]}, {}, r"sweep, beta=-1: .*beta = -1.*greater than 0.*Nothing was queued"),
        ({"loss": ["sigmoid", "sigmoit"]}, {}, "'sigmoit' is not a loss"),
        ({"beta": [0.1, 0.3]}, {"dataset": "gone"}, "no data set named 'gone'"),
        ({"beta": [0.1], "seed": list(range(65))}, {}, r"1 × 65 = 65 jobs; a sweep has 1 to 64 jobs"),
        ({}, {}, "no field with values"),
        ({"beta": []}, {}, "beta has no values"),
        ({"colour": [1, 2]}, {}, "colour is not a setting of dpo"),
        ({"name": ["a", "b"]}, {}, "name is not a setting of dpo that can be swept"),
        ({"only_trial": [True, False]}, {}, "only_trial is not a setting of dpo that can be swept"),
        ({"beta": [0.1, 0.3]}, {"device": "cuda:7"}, "device = 'cuda:7' is not there"),
    ],
)
def test_one_bad_combination_and_nothing_is_queued(
    data: World, grid: dict[str, Any], values: dict[str, Any], text: str
) -> None:
    with pytest.raises(PlumbError, match=text):
        submit(data, grid, **values)
    assert trainings(data) == []
    assert not [path for path in data.folder.runs.iterdir() if (path / "job.json").exists()]


def test_only_trainings_are_swept(data: World) -> None:
    with pytest.raises(UserError, match="A judge job cannot be swept"):
        submit_sweep(data.db, data.settings, "judge", {}, {"budget": [1, 2]}, USER)
    with pytest.raises(UserError, match="beta is not a setting of sft"):
        submit_sweep(data.db, data.settings, "sft", VALUES, {"beta": [0.1, 0.2]}, USER)


def test_a_full_disk_in_the_middle_stops_those_before(data: World, monkeypatch: pytest.MonkeyPatch) -> None:
    freeze_run, calls = RunFolder.freeze, []

    def freeze_two(self: RunFolder, *given: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device", "rows.jsonl")
        freeze_run(self, *given)

    monkeypatch.setattr(RunFolder, "freeze", freeze_two)
    with pytest.raises(UserError, match=r"Job 3 of 4: .*No space left.*The others were stopped"):
        submit(data, {"beta": [0.1, 0.2, 0.3, 0.4]})
    assert [job.status for job in trainings(data)] == [JobStatus.STOPPED] * 2


def test_the_rest_of_a_sweep_is_stopped_at_once(data: World) -> None:
    jobs = submit(data, {"beta": [0.1, 0.2, 0.3, 0.4]})
    lonely = queue.submit(data.db, data.settings, "dpo", dict(VALUES), USER)
    for status in (JobStatus.STARTING, JobStatus.RUNNING, JobStatus.DONE):
        store.move(data.db, jobs[0].id, status)
    for status in (JobStatus.STARTING, JobStatus.RUNNING):
        store.move(data.db, jobs[1].id, status)
    assert stop_sweep(data.db, data.settings, jobs[0].id) == 3
    assert [job.status for job in store.sweep_jobs(data.db, jobs[0].id)] == [
        JobStatus.DONE,
        JobStatus.STOPPING,
        JobStatus.STOPPED,
        JobStatus.STOPPED,
    ]
    assert RunFolder(data.folder.run(jobs[1].id)).stop_requested()
    assert store.get_job(data.db, lonely.id).status is JobStatus.QUEUED
    assert lonely.sweep is None
    assert stop_sweep(data.db, data.settings, 12345) == 0


def test_what_is_typed_becomes_a_grid() -> None:
    typed = {
        "beta": " 0.1,0.3 , ",
        "learning_rate": "5e-5",
        "epochs": "",
        "seed": "0, 1",
        "loss": "robust; 0.8 ipo",
    }
    assert read_grid(typed) == {
        "beta": (0.1, 0.3),
        "learning_rate": (5e-5,),
        "seed": (0, 1),
        "loss": ("robust", "0.8 ipo"),
    }
    assert read_grid({"beta": "0.1, 0.10, 1e-1"}) == {"beta": (0.1,)}
    assert read_grid({"beta": "", "loss": " ; "}) == {}


@pytest.mark.parametrize(
    ("field", "text"),
    [("beta", "0.1, x"), ("beta", "0.1 0.3"), ("epochs", "nan"), ("fraction", "inf"), ("seed", "0, 1.5")],
)
def test_what_is_no_number_is_named(field: str, text: str) -> None:
    with pytest.raises(UserError, match=rf"sweep: {field} = '[^']+': give (whole )?numbers with commas"):
        read_grid({field: text})


def test_the_count_is_told_as_a_product() -> None:
    assert counted({}) == ""
    assert counted({"beta": (0.1,)}) == "1 job"
    assert counted({"beta": (0.1, 0.3)}) == "2 jobs"
    assert counted(sweeps.PAPER) == "3 × 2 × 2 = 12 jobs"
    assert len(combinations("dpo", sweeps.PAPER)) == 12


@given(st.dictionaries(st.sampled_from(list(sweeps.FIELDS)), st.integers(1, 5), min_size=1))
def test_all_combinations_differ_and_so_do_their_names(sizes: dict[str, int]) -> None:
    grid = {name: [round(0.1 + place / 10, 1) for place in range(size)] for name, size in sizes.items()}
    if math.prod(sizes.values()) > MOST_JOBS:
        with pytest.raises(UserError, match="a sweep has 1 to 64 jobs"):
            combinations("dpo", grid)
        return
    points = combinations("dpo", grid)
    assert len(points) == math.prod(sizes.values())
    names = sweeps._names("a data set with a rather long name", points)
    assert len(set(names)) == len(points) == len({tuple(point.items()) for point in points})
    assert all(len(name) <= 80 and name.isprintable() for name in names)


def test_long_differences_are_numbered(data: World) -> None:
    losses = ["0.8 sigmoid + 0.2 bco_pair + 1.0 sft", "0.7 sigmoid + 0.3 bco_pair + 1.0 sft"]
    jobs = submit(data, {"loss": losses}, name="x" * 80)
    assert [job.config["name"] for job in jobs] == ["x" * 74 + " no. 1", "x" * 74 + " no. 2"]


def test_the_command_queues_the_same(
    data: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "opened", lambda folder: data.settings)
    file = tmp_path / "sweep.json"
    told = {"kind": "dpo", "config": VALUES | PRESETS["dpo"]["demo"], "sweep": {"beta": [0.1, 0.3]}}
    file.write_text(json.dumps(told))
    command.sweep(file, None, as_json=True)
    assert [job["config"]["beta"] for job in json.loads(capsys.readouterr().out)] == [0.1, 0.3]
    command.sweep(file)
    assert "is queued: first-dpo beta=0.3" in capsys.readouterr().out
    assert len(trainings(data)) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"kind": "dpo", "config": {}}', 'must hold "sweep"'),
        ('{"kind": "dpo", "sweep": {"beta": 0.1}}', "a list of values for each setting"),
        ('{"kind": "dpo", "sweeps": {}}', '"kind" and "config" and "sweep" and nothing else'),
        ("[1]", "steerlm"),
        ("{", "is not JSON"),
    ],
)
def test_a_file_of_another_shape_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        command.read_sweep(text, "x.json")


def test_no_such_sweep_is_harmless(world: World) -> None:
    assert store.sweep_jobs(world.db, 1) == []
    assert store.sweep_states(world.db, []) == {}
    with pytest.raises(NotFound):
        store.begin_sweep(world.db, 7)
