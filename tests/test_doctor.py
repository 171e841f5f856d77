"""The doctor: what it finds wrong, what it says to do, and that it changes nothing and tells no secret."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from typer.testing import CliRunner

import smi
from factories import World, settings_for
from jobs import data_checks, devices, doctor, software_checks
from jobs.__main__ import app
from jobs.checks import Check, guarded
from jobs.nvidia import Trouble
from jobs.software_checks import Driver, Torch
from jobs.standby import lock_of
from smi import Smi
from storage import jobs as store
from storage.condition import examine
from storage.folder import DataFolder
from storage.lifecycle import JobStatus

CPU_BUILD = Torch("2.13.0+cpu")
CUDA_BUILD = Torch("2.13.0", cuda="12.8", gpus=1)
GPU = Driver("550.54", (12, 4), ("NVIDIA H100",))
NONE = Driver(trouble=Trouble("nvidia-smi is not there", missing=True))


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Smi]:
    yield smi.install(tmp_path / "bin", monkeypatch)
    devices.forget()


@pytest.fixture
def quick_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody imports torch for a test of the rest."""
    monkeypatch.setattr(software_checks, "ask_torch", lambda: lambda: CPU_BUILD)


def one(checks: Iterable[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


# --- torch and the driver ---


def judged(torch: Torch, driver: Driver) -> Check:
    return one(software_checks.torch_and_driver(torch, driver), "torch")


def test_torch_that_computes_where_it_should_is_fine() -> None:
    assert judged(CPU_BUILD, NONE).state == "ok"
    assert judged(CUDA_BUILD, GPU) == Check("torch", "ok", "2.13.0, built for CUDA 12.8; it can use 1 GPU"), (
        "a driver of the same major version runs it"
    )
    assert judged(Torch("2.13.0", rocm="6.2", gpus=2), NONE).text.endswith("it can use 2 GPUs")


def test_a_torch_for_the_cpu_beside_a_gpu_is_wrong() -> None:
    found = judged(CPU_BUILD, GPU)
    assert found.state == "wrong"
    assert "jobs would compute on the CPU although there is a GPU" in found.text
    assert "pip install --force-reinstall torch==" in found.remedy
    assert "+cpu" not in found.remedy


def test_an_old_driver_that_silently_means_the_cpu_is_named() -> None:
    old = Driver("470.57", (11, 4), ("NVIDIA A100",))
    found = judged(Torch("2.13.0", cuda="12.8"), old)
    assert found.state == "wrong"
    assert "the driver 470.57 is too old for it: it runs CUDA up to 11.4" in found.text
    assert "update the NVIDIA driver to one for CUDA 12.0 or newer" in found.remedy


def test_a_torch_that_cannot_use_the_gpu_is_quoted() -> None:
    torch = Torch("2.13.0", cuda="12.8", told=("CUDA initialization: something\n is wrong",))
    found = judged(torch, GPU)
    assert (found.state, "CUDA initialization: something is wrong" in found.text) == ("wrong", True)
    assert "update the NVIDIA driver to one for CUDA 12.8 or newer" in found.remedy
    newer = judged(torch, Driver("600.1", (13, 0), ("NVIDIA H100",)))
    assert "restart the machine" in newer.remedy
    broken = judged(dataclasses.replace(CUDA_BUILD, problem="RuntimeError: no kernel image"), GPU)
    assert (broken.state, "no kernel image" in broken.text) == ("wrong", True)
    warned = judged(dataclasses.replace(CUDA_BUILD, told=("cuda capability sm_120 is not compatible",)), GPU)
    assert (warned.state, "sm_120" in warned.text) == ("warning", True)


@pytest.mark.parametrize("visible", ["", "-1", " , "])
def test_gpus_that_are_hidden_on_purpose_are_a_warning(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = judged(Torch("2.13.0", cuda="12.8"), GPU)
    assert (found.state, "hides every GPU" in found.text) == ("warning", True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert judged(Torch("2.13.0", cuda="12.8"), GPU).state == "wrong"


def test_a_driver_in_trouble_is_wrong_and_none_is_not() -> None:
    def driver(trouble: Trouble) -> Check:
        return one(software_checks.torch_and_driver(CPU_BUILD, Driver(trouble=trouble)), "NVIDIA driver")

    assert driver(Trouble("it is not there", missing=True)).state == "ok"
    found = driver(Trouble("nvidia-smi refuses: Driver/library version mismatch"))
    assert (found.state, "mismatch" in found.text) == ("wrong", True)


@pytest.mark.parametrize(
    ("head", "version", "cuda"),
    [
        (smi.HEAD.format(cuda="12.2"), "535.104.05", (12, 2)),
        ("| NVIDIA-SMI 580.65   KMD Version: 580.65   CUDA UMD Version: 13.0 |", "580.65", (13, 0)),
        ("| NVIDIA-SMI 390.1  Driver Version: 390.1 |", "390.1", None),
        ("nothing that is known", "", None),
    ],
)
def test_the_drivers_cuda_is_read(nvidia_smi: Smi, head: str, version: str, cuda: tuple[int, int] | None) -> None:
    nvidia_smi.write(head=head)
    found = software_checks.ask_driver()
    assert (found.version, found.cuda, len(found.gpus), found.trouble) == (version, cuda, 2, None)
    shown = one(software_checks.torch_and_driver(CPU_BUILD, found), "NVIDIA driver")
    assert "1 × NVIDIA GeForce RTX 4090, 1 × NVIDIA H100" in shown.text


def script(path: Path, body: str) -> str:
    path.write_text(f"#!{sys.executable}\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_torch_is_asked_in_a_process_of_its_own(tmp_path: Path) -> None:
    told = {"version": "9", "cuda": None, "rocm": None, "count": 0, "warnings": ["an old CUDA"], "mps": False}
    said = software_checks.ask_torch(
        script(tmp_path / "good", f"print('noise')\nprint('''{json.dumps(told)}''')")
    )()
    assert said == Torch("9", told=("an old CUDA",))
    broken = "import sys; print('ImportError: libcudart.so is not there', file=sys.stderr); sys.exit(1)"
    said = software_checks.ask_torch(script(tmp_path / "bad", broken))()
    assert said.problem == "it cannot be imported: ImportError: libcudart.so is not there"
    assert judged(said, NONE).state == "wrong"
    said = software_checks.ask_torch(script(tmp_path / "slow", "import time; time.sleep(600)"), seconds=0.3)()
    assert said.slow
    assert judged(said, GPU).state == "warning"


@pytest.mark.slow
def test_the_real_torch_answers() -> None:
    found = software_checks.ask_torch(seconds=60.0)()
    assert found.version == software_checks.version_of("torch") or found.version.startswith("2.13.0")
    assert found.problem == ""


# --- packages ---


def test_packages_are_held_against_what_was_tested(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(
        "# a comment\ntyper==0.0.1\nno-such-package[extra]==1.0 ; python_version > '3'\npillow>=2\n"
    )
    (tmp_path / "requirements-demo.txt").write_text("no-such-demo==1\n")
    found = list(software_checks.packages(tmp_path))
    assert [(check.name, check.state) for check in found] == [
        ("Packages", "wrong"),
        ("Packages", "warning"),
        ("Demo", "warning"),
    ]
    assert found[0].text == "not installed: no-such-package"
    assert "(tested: 0.0.1)" in found[1].text
    assert "no-such-demo" in found[2].text


def test_another_build_of_a_version_is_that_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "requirements.txt").write_text("torch==2.13.0\n")
    monkeypatch.setattr(software_checks, "version_of", lambda name: "2.13.0+cu128")
    assert [check.state for check in software_checks.packages(tmp_path)] == ["ok"]
    monkeypatch.setattr(software_checks, "version_of", lambda name: "2.13.1+cu128")
    assert [check.state for check in software_checks.packages(tmp_path)] == ["warning"]


# --- devices, memory, keys ---


def test_devices_that_are_not_there_are_wrong(world: World, nvidia_smi: Smi) -> None:
    driver = software_checks.ask_driver()
    settings = settings_for(world.folder.root, devices=("cuda:0", "cuda:5"))
    found = one(doctor.device_slots(settings, driver), "Devices")
    assert (found.state, "cuda:5: There is no GPU 5" in found.text) == ("wrong", True)
    assert found.remedy.startswith("PLUMB_DEVICES, or --devices, must name")
    unused = one(doctor.device_slots(world.settings, driver), "Devices")
    assert (unused.state, "no GPU is used, and the driver knows 2" in unused.text) == ("warning", True)
    good = settings_for(world.folder.root, devices=("cuda:0", "cuda:1"))
    found = one(doctor.device_slots(good, driver), "Devices")
    assert found.state == "ok"
    assert "cuda:1: NVIDIA H100 80GB HBM3, 86 GB of 86 GB free" in found.text


def test_a_driver_that_hangs_is_asked_once(
    world: World, nvidia_smi: Smi, quick_torch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi.write(body="exec /bin/sleep 600\n")
    monkeypatch.setattr(software_checks, "DRIVER_SECONDS", 0.2)
    found = doctor.report(settings_for(world.folder.root, devices=("cuda:0",)))
    assert "gave no answer" in one(found, "Devices").text
    assert one(found, "NVIDIA driver").state == "wrong"
    assert len(nvidia_smi.calls) == 1


def test_a_device_that_others_fill_is_a_warning(world: World, nvidia_smi: Smi) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        nvidia_smi.write(processes=f"GPU-aaaa-1, {other.pid}, 24000, {sys.executable}\n")
        settings = settings_for(world.folder.root, devices=("cuda:0",))
        found = one(doctor.device_slots(settings, software_checks.ask_driver()), "Devices")
    finally:
        other.kill()
        other.wait()
    assert (found.state, "fill cuda:0 (98% of its memory)" in found.text) == ("warning", True)


def test_keys_are_named_and_never_shown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "AIza-quite-secret-0123456789"
    monkeypatch.setenv("GEMINI_API_KEY", secret)
    monkeypatch.setenv("HF_TOKEN", "hf_" + secret)
    found = one(doctor.keys(world.settings), "Keys")
    assert "GEMINI_API_KEY set, GOOGLE_API_KEY not set" in found.text
    assert "HF_TOKEN set" in found.text
    assert found.state == "ok"
    monkeypatch.setenv("GEMINI_API_KEY", secret + "\n" + secret)
    assert [check.state for check in doctor.keys(world.settings)] == ["wrong", "ok"]
    assert secret not in str(list(doctor.keys(world.settings)))


def test_offline_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "offline (HF_HUB_OFFLINE is set)" in one(doctor.hub(), "Hub").text
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    assert "may be asked" in one(doctor.hub(), "Hub").text


# --- the data folder ---


def test_a_sound_data_folder_is_fine(world: World) -> None:
    found = [
        *data_checks.folder(world.settings),
        *data_checks.database(world.settings),
        *data_checks.supervisor(world.settings),
        *data_checks.room(world.settings),
        *data_checks.clock(),
    ]
    assert [check for check in found if check.state != "ok"] == []
    assert not list(world.folder.root.rglob(".doctor-*"))


def test_a_folder_that_cannot_be_written_is_wrong(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*, dir: Path, prefix: str) -> Any:
        if dir == world.folder.runs:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(dir=dir, prefix=prefix)

    real = cast(Any, tempfile.NamedTemporaryFile)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    found = one(data_checks.folder(world.settings), "Data folder")
    assert (found.state, found.text) == ("wrong", f"{world.folder.runs} cannot be written (Read-only file system)")
    assert "PLUMB_DATA" in found.remedy


def test_a_network_file_system_is_a_warning(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = type("Mount", (), {"mountpoint": str(world.folder.root), "fstype": "nfs4"})
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [mount])
    found = one(data_checks.folder(world.settings), "Data folder")
    assert (found.state, "network file system (nfs4)" in found.text) == ("warning", True)


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "later")
    checks = [*data_checks.folder(settings), *data_checks.database(settings), *data_checks.supervisor(settings)]
    checks += data_checks.room(settings)
    assert {check.state for check in checks} == {"ok"}
    assert not (tmp_path / "later").exists()
    (tmp_path / "file").write_text("")
    found = one(data_checks.folder(settings_for(tmp_path / "file" / "data")), "Data folder")
    assert (found.state, "cannot be made" in found.text) == ("wrong", True)


def test_an_older_and_a_newer_database_are_told_apart(world: World) -> None:
    world.db.conn.execute("DELETE FROM _sqlite_migrations WHERE name LIKE 'm004%'")
    found = one(data_checks.database(world.settings), "Database version")
    assert (found.state, "m004_" in found.text) == ("warning", True)
    assert "backup" in found.remedy
    world.db.conn.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('plumb', 'm999_new', '')"
    )
    found = one(data_checks.database(world.settings), "Database version")
    assert (found.state, "m999_new" in found.text) == ("wrong", True)
    assert len(world.db.execute("SELECT * FROM _sqlite_migrations WHERE name LIKE 'm004%'").fetchall()) == 0


def test_a_damaged_database_is_found(world: World) -> None:
    for number in range(300):
        world.job("generate", text="x" * 400, number=number)
    world.db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    world.db.close()
    content = bytearray(world.folder.database.read_bytes())
    middle = len(content) * 3 // 4 // 4096 * 4096
    content[middle : middle + 4096] = b"\xff" * 4096
    world.folder.database.write_bytes(content)
    found = one(data_checks.database(world.settings), "Database")
    assert (found.state, found.text.startswith("it is damaged:")) == ("wrong", True)
    assert "storage check --repair" in found.remedy
    world.folder.database.write_text("this is not a database, it is a letter " * 200)
    found = one(data_checks.database(world.settings), "Database")
    assert (found.state, "not a database" in found.text) == ("wrong", True)


def test_rows_that_name_nothing_are_found(world: World) -> None:
    world.db.conn.execute("PRAGMA foreign_keys = OFF")
    world.db.conn.execute("INSERT INTO attempts (job_id, number, started_at) VALUES (77, 1, '2026')")
    condition = examine(world.folder)
    assert condition is not None
    assert condition.damage == ("attempts row 1 names a missing row of jobs",)


def test_a_check_that_takes_too_long_is_left(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.condition._INSTRUCTIONS", 1)
    condition = examine(world.folder, seconds=-1.0)
    assert condition is not None
    assert (condition.whole, condition.damage, condition.open_jobs) == (False, (), 0)
    monkeypatch.setattr(data_checks, "DATABASE_SECONDS", -1.0)
    found = one(data_checks.database(world.settings), "Database")
    assert (found.state, "too large" in found.text) == ("ok", True)


def test_a_clock_that_was_put_back_is_told(world: World) -> None:
    job = world.job()
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="milliseconds")
    world.db.conn.execute("UPDATE jobs SET created_at = ? WHERE id = ?", [later, job.id])
    found = one(data_checks.database(world.settings), "Clock")
    assert (found.state, "the database's newest entry is of" in found.text) == ("warning", True)


def test_a_clock_before_the_machines_start_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "boot_time", lambda: datetime.now(UTC).timestamp() + 3600)
    assert one(data_checks.clock(), "Clock").state == "wrong"


def test_too_little_disk_is_wrong(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.disk_guard.get_floor", lambda db, settings: 10**18)
    found = one(data_checks.room(world.settings), "Disk")
    assert (found.state, "nothing new starts below" in found.text) == ("wrong", True)
    monkeypatch.setattr(data_checks, "TEMPORARY_BYTES", 10**18)
    assert one(data_checks.room(world.settings), "Temporary files").state == "warning"


# --- the supervisor ---


def test_open_jobs_without_a_supervisor_are_a_warning(world: World) -> None:
    world.job()
    found = one(data_checks.supervisor(world.settings), "Supervisor")
    assert (found.state, found.text) == ("warning", "none is at work, and there is 1 open job")


def test_a_lock_that_nobody_in_sight_holds_is_a_warning(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = lock_of(world.folder)
    lock.acquire()
    try:
        found = one(data_checks.supervisor(world.settings), "Supervisor")
        assert (found.state, "cannot be seen from here" in found.text) == ("warning", True)
        monkeypatch.setattr(data_checks, "supervisors", lambda folder: [4711])
        found = one(data_checks.supervisor(world.settings), "Supervisor")
        assert (found.state, found.text) == ("ok", "process 4711 is at work; nothing is queued")
    finally:
        lock.release()
    assert not data_checks.is_held(world.folder), "a file that nobody holds is no lock"


def test_a_supervisor_that_does_not_see_a_dead_worker_is_stuck(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.job()
    store.move(world.db, job.id, JobStatus.STARTING)
    attempt = store.start_attempt(world.db, job.id)
    monkeypatch.setattr(data_checks, "supervisors", lambda folder: [4711])
    monkeypatch.setattr(data_checks, "SETTLE_SECONDS", 0.0)
    with lock_of(world.folder):
        assert one(data_checks.supervisor(world.settings), "Supervisor").state == "ok", "it has just begun"
        world.db.conn.execute("UPDATE attempts SET started_at = '2026-01-01T00:00:00+00:00'")
        found = one(data_checks.supervisor(world.settings), "Supervisor")
        assert (found.state, f"worker of job {job.id} is gone: it is stuck" in found.text) == ("wrong", True)
        store.end_attempt(world.db, attempt.id, "failed", "")
        assert one(data_checks.supervisor(world.settings), "Supervisor").state == "ok"


def test_supervisors_of_other_folders_are_not_ours(world: World, tmp_path: Path) -> None:
    def process(root: Path) -> subprocess.Popen[bytes]:
        code = "import time; time.sleep(600)"
        environment = {**os.environ, "PLUMB_DATA": str(root)}
        return subprocess.Popen([sys.executable, "-c", code, "-m", "jobs", "supervise"], env=environment)

    children = [process(world.folder.root), process(tmp_path / "elsewhere")]
    try:
        assert data_checks.supervisors(world.folder) == [children[0].pid]
    finally:
        for child in children:
            child.kill()
            child.wait()


# --- all of it ---


def test_a_check_that_breaks_is_a_warning_of_its_own() -> None:
    def breaks() -> Iterator[Check]:
        yield Check("First", "ok", "fine")
        raise ValueError("odd")

    assert guarded("Second", breaks) == [
        Check("First", "ok", "fine"),
        Check("Second", "warning", "It could not be checked (ValueError: odd)."),
    ]


def test_the_report_names_everything(world: World, quick_torch: None) -> None:
    names = [check.name for check in doctor.report(world.settings)]
    for name in ("Python", "Packages", "NVIDIA driver", "torch", "Devices", "Memory", "Disk", "Data folder"):
        assert name in names
    for name in ("Database version", "Database", "Supervisor", "Clock", "Keys", "Hub"):
        assert name in names
    assert names.index("torch") < names.index("Disk")


def test_the_command_tells_and_exits_by_what_is_wrong(
    world: World, quick_torch: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["doctor", "--data", str(world.folder.root)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "ok  Data folder: " in shown.output
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).output)
    assert told["state"] in ("ok", "warning")
    assert {"name", "state", "text", "remedy"} == told["checks"][0].keys()
    monkeypatch.setattr("jobs.disk_guard.get_floor", lambda db, settings: 10**18)
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 1
    assert "→ see what takes it" in shown.output
    assert shown.output.rstrip().endswith("Something is wrong.")


def test_the_command_changes_nothing(tmp_path: Path, quick_torch: None) -> None:
    root = tmp_path / "none"
    shown = CliRunner().invoke(app, ["doctor", "--data", str(root)])
    assert shown.exit_code == 0, shown.output
    assert not root.exists()


def test_an_older_database_is_left_as_it_is(world: World, quick_torch: None) -> None:
    world.db.conn.execute("DELETE FROM _sqlite_migrations WHERE name LIKE 'm004%'")
    CliRunner().invoke(app, ["doctor", "--data", str(world.folder.root)])
    condition = examine(DataFolder(world.folder.root))
    assert condition is not None
    assert len(condition.pending) == 1


def test_the_doctor_leaves_torch_out() -> None:
    code = "import sys, jobs.doctor; print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
