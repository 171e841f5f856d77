"""Submitting: what is frozen, and what is refused before a device is claimed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from factories import USER, World, settings_for
from jobs import queue, steering
from jobs.configs import KINDS, PRESETS, parse_config
from jobs.freezing import freeze
from jobs.placement import wanted_by
from jobs.processes import PROJECT
from jobs.runs import RunFolder
from jobs.settings import detect_devices, load_settings
from storage import jobs as store
from storage import pairs
from storage.adapters import add_adapter, delete_adapter, keep_adapter, list_adapters
from storage.errors import Conflict, NotFound, PlumbError, UserError
from storage.lifecycle import JobStatus

pytestmark = pytest.mark.usefixtures("no_supervisor")  # these tests look at the queue alone


def submit(world: World, kind: str, **values: Any) -> tuple[Any, RunFolder]:
    job = queue.submit(world.db, world.settings, kind, values, USER)
    return job, RunFolder(world.folder.run(job.id))


def test_generate_freezes_samples_with_their_images(world: World) -> None:
    first, second = world.sample(1, images=2), world.sample(2, images=0)
    job, run = submit(world, "generate", candidates=3)
    rows = list(run.rows())
    assert [row["sample_id"] for row in rows] == [first, second]
    names = [part["image"] for part in rows[0]["messages"][0]["content"] if part["type"] == "image"]
    assert sorted(names) == sorted(path.name for path in run.images.iterdir())
    assert all(run.image(name).read_bytes() for name in names)
    frozen = run.job()
    assert (frozen.kind, frozen.user, frozen.config["candidates"]) == ("generate", USER, 3)
    assert frozen.parsed() == parse_config("generate", {"candidates": 3})
    assert store.queue_position(world.db, job) == 1


def test_only_what_is_missing_unless_told_otherwise(world: World) -> None:
    answered, fresh = world.sample(1), world.sample(2)
    world.candidates(answered, ["a"])
    assert [row["sample_id"] for row in submit(world, "generate")[1].rows()] == [fresh]
    again = submit(world, "generate", samples={"only_missing": False})[1]
    assert [row["sample_id"] for row in again.rows()] == [answered, fresh]


def test_selections(world: World) -> None:
    ids = [world.sample(n, source="a" if n < 3 else "b") for n in range(1, 6)]

    def chosen(**selection: Any) -> list[int]:
        return [row["sample_id"] for row in submit(world, "generate", samples=selection)[1].rows()]

    assert chosen(source="b") == ids[2:]
    assert chosen(limit=2) == ids[:2]
    assert chosen(ids=[ids[3], ids[0]]) == [ids[0], ids[3]]
    with pytest.raises(UserError, match="no sample 99"):
        chosen(ids=[99])
    with pytest.raises(UserError, match="needs a data set"):
        chosen(split="train")


def test_a_frozen_job_does_not_move_with_the_live_tables(world: World) -> None:
    for n in range(1, 5):
        one, two = world.candidates(world.sample(n), ["good", "bad"])
        pairs.choose_by_hand(world.db, USER, one.id, two.id)
    dataset = freeze(world.db, USER, "first", heldout_percent=25)
    job, run = submit(world, "dpo", dataset="first")
    for view in pairs.list_pairs(world.db):
        pairs.flip(world.db, USER, view.pair.id)
    rows = list(run.rows())
    assert [row["chosen"] for row in rows] == ["good"] * 4
    assert sorted(row["split"] for row in rows) == ["heldout", "train", "train", "train"]
    assert run.job().dataset_hash == dataset.hash
    assert store.get_job(world.db, job.id).dataset_id == dataset.id


@pytest.mark.parametrize(
    ("kind", "values", "text"),
    [
        ("paint", {}, "Unknown job kind 'paint'"),
        ("generate", {"model": "no such model"}, "Unknown base model 'no such model'"),
        ("generate", {"model": "x" * 5000}, "Unknown base model 'xxx"),
        ("generate", {"model": "~nobody/m"}, "base model '~nobody/m'"),
        ("judge", {"device": "cpu"}, "device is not a setting of this kind"),
        ("generate", {"device": "cuda:7"}, "device = 'cuda:7' is not there; this Plumb has cpu"),
        ("generate", {"candidates": 0}, "candidates = 0"),
        ("generate", {"temperature": 0}, "temperature 0 gives the same answer 4 times"),
        ("generate", {"colour": "red"}, "colour is not a setting of this kind"),
        ("generate", {"samples": {"source": "nowhere"}}, "no sample fits the selection"),
        ("judge", {}, "no sample of the selection has candidates"),
        ("dpo", {}, "dataset is missing"),
        ("dpo", {"dataset": "x", "name": "one\ntwo"}, "name = 'one\\\\ntwo': give a name in one line"),
        ("sft", {"dataset": "x", "name": "one\u2028two"}, "give a name in one line, without line breaks"),
        ("dpo", {"dataset": "nothing"}, "no data set named 'nothing'"),
        ("serve", {"adapters": [5]}, "no adapter 5"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    world: World, kind: str, values: dict[str, Any], text: str
) -> None:
    world.sample()
    with pytest.raises(PlumbError, match=text.replace("(", r"\(")):
        queue.submit(world.db, world.settings, kind, values, USER)
    assert store.list_jobs(world.db) == []
    assert list(world.folder.runs.iterdir()) == []


def freeze_four(world: World) -> None:
    for n in range(1, 5):
        one, two = world.candidates(world.sample(n), ["good", "bad"])
        pairs.choose_by_hand(world.db, USER, one.id, two.id)
    freeze(world.db, USER, "four", heldout_percent=25)


@pytest.mark.parametrize(
    ("devices", "values", "text"),
    [
        ("cuda:0,cuda:1", {"processes": 4}, "processes = 4 needs as many GPUs, and this Plumb has 2"),
        ("cuda:0", {"processes": 2}, "has 1 (cuda:0) (set by --devices or PLUMB_DEVICES). Set processes to 1 or"),
        ("cpu,cuda:0", {"processes": 2}, "has 1 (cuda:0)"),
        ("mps", {"processes": 2}, "has none (mps)"),
        ("mps", {"processes": 2, "device": "mps"}, "one device runs one process. To use it, set processes to 1"),
        ("cuda:0,cuda:1", {"processes": 2, "device": "cuda:0"}, "To use it, leave device empty"),
        ("cpu", {"processes": 2, "device": "cuda:0"}, "device = 'cuda:0' is not there"),
        (
            "cpu",
            {"processes": 2, "accelerate_config": "/nowhere.yaml"},
            "accelerate_config = '/nowhere.yaml' cannot",
        ),
        ("cpu", {"processes": 3}, "global_batch 128 is not a multiple"),
    ],
)
def test_more_devices_than_there_are_are_refused(
    world: World, devices: str, values: dict[str, Any], text: str
) -> None:
    freeze_four(world)
    settings = world.settings.model_copy(update={"devices": tuple(devices.split(","))})
    with pytest.raises(UserError, match=re.escape(text)):
        queue.submit(world.db, settings, "dpo", {"dataset": "four", **values}, USER)
    assert store.list_jobs(world.db, kind="dpo") == []


@pytest.mark.parametrize("devices", ["cpu", "cuda:0,cuda:1", "cpu,cuda:0,cuda:1"])
def test_as_many_devices_as_there_are_are_taken(world: World, devices: str) -> None:
    freeze_four(world)
    settings = world.settings.model_copy(update={"devices": tuple(devices.split(","))})
    assert (
        queue.submit(world.db, settings, "dpo", {"dataset": "four", "processes": 2}, USER).config["processes"] == 2
    )


def test_accelerates_file_is_frozen_with_the_job(world: World, tmp_path: Path) -> None:
    """What the file says when the job starts, and where it lies by then, is of no matter."""
    freeze_four(world)
    file = tmp_path / "fsdp.yaml"
    file.write_text("distributed_type: FSDP\nnum_processes: 4\nnum_machines: 2\n")
    settings = world.settings.model_copy(update={"devices": ("cuda:0", "cuda:1")})
    values = {"dataset": "four", "processes": 4, "accelerate_config": str(file)}
    job = queue.submit(world.db, settings, "dpo", values, USER)
    run = RunFolder(world.folder.run(job.id))
    assert (run.path / "data" / "accelerate.yaml").read_text() == file.read_text()
    file.unlink()
    assert wanted_by(job, run, settings.devices) == (("cuda:0", "cuda:1"), 2), "the other two are elsewhere"


@pytest.mark.parametrize(
    ("kind", "field"), [("generate", "adapter"), ("serve", "adapters"), ("merge", "adapter"), ("push", "adapter")]
)
def test_an_adapter_deleted_between_checking_and_queueing_is_told(
    world: World, tmp_path: Path, kind: str, field: str
) -> None:
    world.sample()
    trained = world.job("dpo")
    world.db.conn.execute("UPDATE jobs SET status = 'done' WHERE id = ?", [trained.id])
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "adapter_model.safetensors").write_bytes(b"weights")
    sha256, size = keep_adapter(world.folder, tmp_path / "made")
    add_adapter(world.db, trained, "mine", sha256, size, "demo", "dpo")
    adapter = list_adapters(world.db)[0]
    values: dict[str, Any] = {field: [adapter.id] if kind == "serve" else adapter.id}
    if kind == "push":
        values["repository"] = "ada/mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.packing.check_push", lambda config, models: None)
        prepared = queue.prepare(world.db, world.settings, parse_config(kind, values))
    delete_adapter(world.db, world.folder, adapter.id)
    with pytest.raises(NotFound, match=f"There is no adapter {adapter.id}"):
        queue.enqueue(world.db, world.settings, prepared, USER)
    assert store.list_jobs(world.db, kind=kind) == []
    assert list(world.folder.runs.iterdir()) == []


def test_a_missing_image_file_is_named(world: World) -> None:
    world.sample()
    for path in world.folder.images.rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match="python -m storage check"):
        queue.submit(world.db, world.settings, "generate", {}, USER)
    assert store.list_jobs(world.db) == []
    assert list(world.folder.runs.iterdir()) == []


def test_a_folder_that_is_no_model_is_refused(world: World, tmp_path: Path) -> None:
    world.sample()
    with pytest.raises(UserError, match=r"without config\.json"):
        queue.submit(world.db, world.settings, "generate", {"model": str(tmp_path)}, USER)


def test_a_relative_model_folder_is_made_absolute(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.sample()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert submit(world, "generate", model="mine")[1].job().config["model"] == str(tmp_path / "mine")


def test_a_run_folder_that_is_there_already_is_put_aside(world: World) -> None:
    world.sample()
    old = world.folder.run(1)
    old.mkdir()
    (old / "checkpoint").write_text("a night's work")
    job, run = submit(world, "generate")
    assert (job.id, run.job().kind) == (1, "generate")
    kept = [path for path in world.folder.runs.iterdir() if path != old]
    assert [(path / "checkpoint").read_text() for path in kept] == ["a night's work"]


def test_stopping_a_queued_job_ends_it_and_an_ended_one_is_refused(world: World) -> None:
    world.sample()
    job, _ = submit(world, "generate")
    assert steering.stop(world.db, world.settings, job.id).status is JobStatus.STOPPED
    with pytest.raises(Conflict, match="has ended already"):
        steering.stop(world.db, world.settings, job.id)
    with pytest.raises(NotFound):
        steering.stop(world.db, world.settings, 99)


def test_stopping_a_running_job_asks_its_worker(world: World) -> None:
    world.sample()
    job, run = submit(world, "generate")
    store.claim_next(world.db, "device", "cpu")
    assert steering.stop(world.db, world.settings, job.id).status is JobStatus.STOPPING
    assert run.stop_requested()


def test_every_preset_is_a_valid_configuration() -> None:
    for kind, presets in PRESETS.items():
        for values in presets.values():
            parse_config(kind, {"dataset": "x", **values})


def test_the_papers_preset_is_the_papers() -> None:
    config: Any = parse_config("dpo", {"dataset": "x", **PRESETS["dpo"]["paper"]})
    assert (config.beta, config.learning_rate, config.epochs) == (0.1, 5e-5, 3)
    assert config.batch_size * config.accumulation == 128
    assert (config.lora_r, config.lora_alpha, config.lora_dropout) == (128, 256, 0.05)
    assert (config.schedule, config.warmup_ratio, config.weight_decay) == ("cosine", 0.03, 0)


def test_every_field_has_a_title_for_its_form() -> None:
    for kind, model in KINDS.items():
        for name, field in model.model_fields.items():
            assert field.title, f"{kind}.{name}"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "is missing"),
        ('{"format": 1, "job_', "not whole JSON"),
        ('{"format": 99}', "format 99"),
        ('{"format": 1}', "does not hold a job"),
    ],
)
def test_a_broken_job_file_is_explained(tmp_path: Path, content: str | None, text: str) -> None:
    if content is not None:
        (tmp_path / "job.json").write_text(content)
    with pytest.raises(UserError, match=text):
        RunFolder(tmp_path).job()


def test_settings_name_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="port = 70000"):
        load_settings(port=70000)
    for devices in ("gpu0", "cuda:x", "cpu,cpu"):
        with pytest.raises(UserError, match="name devices as cpu or cuda:0"):
            load_settings(devices=devices)
    monkeypatch.setenv("PLUMB_DATA", "")
    assert load_settings().data != Path(".")
    monkeypatch.setenv("PLUMB_DEVICES", "cuda:0, cuda:1")
    monkeypatch.setenv("PLUMB_DATA", str(tmp_path))
    settings = load_settings()
    assert settings.devices == ("cuda:0", "cuda:1")
    assert settings.folder.root == tmp_path
    assert load_settings(devices="cpu").devices == ("cpu",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert detect_devices() == ("cuda:0", "cuda:1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,-1,5")
    assert detect_devices() == ("cuda:0",), "CUDA itself reads up to the -1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_devices() == ("cpu",)
    assert [
        settings_for(tmp_path, host=host).loopback for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0")
    ] == [
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[]", "must hold"), ('{"kind": "judge", "config": 3}', "config is an object")],
)
def test_the_command_explains_bad_files(tmp_path: Path, text: str, message: str) -> None:
    command = [sys.executable, "-m", "jobs", "submit", "-", "--data", str(tmp_path)]
    result = subprocess.run(command, cwd=PROJECT, input=text, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_command_lists_as_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs", "list", "--json", "--data", str(tmp_path)]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []
