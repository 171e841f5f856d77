"""What is told of devices: figures, whose processes are on them, and that no driver can hold anybody up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import smi
from factories import World, settings_for
from jobs import crowding, devices, limits, nvidia, steering
from jobs.devices import Device, DeviceProcess
from jobs.placement import Wanted
from jobs.processes import RUN
from jobs.settings import Settings
from smi import Smi
from storage import jobs as store
from storage.lifecycle import JobStatus
from storage.settings import get_setting
from test_device_slots import Sleepers, add, leaving, sleepers, slots, statuses

__all__ = ["sleepers"]

MIB = 2**20


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Smi]:
    yield smi.install(tmp_path / "bin", monkeypatch)
    devices.forget()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """Somebody's process."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield child
    child.kill()
    child.wait()


def two_gpus(world: World) -> Settings:
    return settings_for(world.folder.root, devices=("cuda:0", "cuda:1"))


# --- nvidia-smi ---


def test_each_gpu_has_its_figures(world: World, nvidia_smi: Smi) -> None:
    first, second = devices.look(two_gpus(world))
    assert first == Device(
        slot="cuda:0",
        name="NVIDIA GeForce RTX 4090",
        total=24564 * MIB,
        used=21100 * MIB,
        free=3464 * MIB,
        load=0.93,
        temperature=71.0,
    )
    assert (second.name, second.used, second.load) == ("NVIDIA H100 80GB HBM3", 5 * MIB, 0.0)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("24564", 24564 * MIB),
        ("24564 MiB", 24564 * MIB),
        ("24 GiB", 24 * 2**30),
        ("2.5 GB", 2_500_000_000),
        ("1024 KiB", MIB),
        ("[N/A]", None),
        ("[Not Supported]", None),
        ("[Unknown Error]", None),
        ("N/A", None),
        ("", None),
        ("5 parsecs", None),
    ],
)
def test_memory_is_read_whatever_its_unit(nvidia_smi: Smi, text: str, number: int | None) -> None:
    nvidia_smi.write(gpus=f"0, GPU-a, {text}, [N/A], [N/A], 7 %, [N/A], A card, with a comma\n")
    (gpu,) = nvidia.read_gpus()
    assert (gpu.total, gpu.used, gpu.load, gpu.temperature) == (number, None, 0.07, None)
    assert gpu.name == "A card, with a comma"


def test_what_the_driver_does_not_tell_is_not_made_up(world: World, nvidia_smi: Smi) -> None:
    """A machine whose CPU and GPU share memory has no figures for it."""
    nvidia_smi.write(gpus="0, GPU-a, [N/A], [N/A], [N/A], [N/A], 40, NVIDIA GB10\n")
    (device,) = devices.look(settings_for(world.folder.root, devices=("cuda:0",)))
    assert (device.total, device.used, device.free, device.load, device.problem) == (None, None, None, None, "")
    assert devices.crowded([device]) == {}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("echo 'NVIDIA-SMI has failed because it could not communicate.'; exit 9", "could not communicate"),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch' >&2; exit 18", "version mismatch"),
        ("exit 6", "exit code 6"),
        ("echo 'No devices were found'", "lists no GPU"),
        ("/bin/printf '\\377\\376, x'", "lists no GPU"),
    ],
)
def test_a_driver_that_refuses_is_quoted(world: World, nvidia_smi: Smi, body: str, told: str) -> None:
    nvidia_smi.write(body=body)
    found = devices.look(two_gpus(world))
    assert [device.slot for device in found] == ["cuda:0", "cuda:1"]
    assert all(told in device.problem for device in found), found


def test_without_the_program_it_says_so(world: World, nvidia_smi: Smi) -> None:
    (nvidia_smi.folder / nvidia.PROGRAM).unlink()
    assert "no NVIDIA driver is installed" in devices.look(two_gpus(world))[0].problem


def test_a_driver_that_hangs_is_left_alone_for_a_while(
    world: World, nvidia_smi: Smi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia, "SECONDS", 0.3)
    # What it has started holds the pipe as well.
    nvidia_smi.write(body=f"/bin/sleep 600 &\n/bin/echo $! > {nvidia_smi.folder}/child\nwait\n")
    found = devices.look(two_gpus(world), max_age=0.0)
    assert "gave no answer within 0.3 seconds" in found[0].problem
    child = int((nvidia_smi.folder / "child").read_text())
    gone, _ = psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=10)
    assert not psutil.pid_exists(child) or gone or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert devices.look(two_gpus(world), max_age=0.0)[1].problem == found[0].problem
    assert len(nvidia_smi.calls) == 1
    devices.forget()
    devices.look(two_gpus(world))
    assert len(nvidia_smi.calls) == 2


def test_a_look_is_kept_for_an_instant(world: World, nvidia_smi: Smi) -> None:
    first = devices.look(two_gpus(world), max_age=60.0)
    number = len(nvidia_smi.calls)
    assert devices.look(two_gpus(world), max_age=60.0) is first
    assert len(nvidia_smi.calls) == number
    devices.look(two_gpus(world), max_age=0.0)
    assert len(nvidia_smi.calls) == 2 * number


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        ("1,0", ["NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090"]),
        ("GPU-bbbb-2,0", ["NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090"]),
        (" GPU-b , 0, -1", ["NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090"]),
    ],
)
def test_visible_devices_are_obeyed(
    world: World, nvidia_smi: Smi, monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [device.name for device in devices.look(two_gpus(world))] == names


@pytest.mark.parametrize(
    ("visible", "told"),
    [
        ("0", "there is no cuda:1"),
        ("0,-1,1", "there is no cuda:1"),
        ("0,7", "no GPU 7"),
        ("0,MIG-x", "a part of a GPU"),
    ],
)
def test_a_slot_without_a_gpu_says_why(
    world: World, nvidia_smi: Smi, monkeypatch: pytest.MonkeyPatch, visible: str, told: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    first, second = devices.look(two_gpus(world))
    assert first.problem == ""
    assert told in second.problem


# --- whose they are ---


def own_process(world: World, job_id: int) -> subprocess.Popen[bytes]:
    """A process of a job, as a worker and its children are."""
    environment = {**os.environ, RUN: str(world.folder.run(job_id))}
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environment)


def test_jobs_are_told_from_other_peoples_processes(
    world: World, nvidia_smi: Smi, process: subprocess.Popen[bytes]
) -> None:
    own = own_process(world, 7)
    elsewhere = own_process(
        World(world.db, world.folder.__class__(world.folder.root / "other"), world.settings), 7
    )
    try:
        nvidia_smi.write(
            processes=f"GPU-aaaa-1, {process.pid}, 3000, {sys.executable}\n"
            f"GPU-aaaa-1, {own.pid}, 9000 MiB, {sys.executable}\n"
            f"GPU-bbbb-2, {elsewhere.pid}, [N/A], [Not Found]\n"
            "GPU-aaaa-1, 4194999, 600, [Not Found]\n"
            "GPU-aaaa-1, what, 600, x\n"
        )
        first, second = devices.look(two_gpus(world))
    finally:
        for child in (own, elsewhere):
            child.kill()
            child.wait()
    assert [(one.pid, one.job, one.bytes, one.seen) for one in first.processes] == [
        (own.pid, 7, 9000 * MIB, True),
        (process.pid, None, 3000 * MIB, True),
        (4194999, None, 600 * MIB, False),
    ]
    assert first.processes[0].user == first.processes[1].user == psutil.Process().username()
    assert first.foreign_bytes == 3000 * MIB, "of the unseen one nobody knows"
    assert [(one.job, one.bytes) for one in second.processes] == [(None, None)], "another data folder's job 7"


def test_a_number_from_outside_of_a_container_is_not_taken_for_a_process_within(
    world: World, nvidia_smi: Smi, process: subprocess.Popen[bytes]
) -> None:
    nvidia_smi.write(processes=f"GPU-aaaa-1, {process.pid}, 24000, other/trainer --big\n")
    (found,) = devices.look(two_gpus(world))[0].processes
    assert (found.seen, found.name, found.user) == (False, "trainer", "")
    assert devices.crowded(devices.look(two_gpus(world))) == {}


def test_processes_that_cannot_be_listed_leave_the_figures(world: World, nvidia_smi: Smi) -> None:
    nvidia_smi.write(
        body=f'case "$*" in *query-gpu*) /bin/cat {nvidia_smi.folder}/gpus;; *) echo no; exit 3;; esac'
    )
    first, _ = devices.look(two_gpus(world))
    assert (first.used, first.processes) == (21100 * MIB, ())
    assert "Its processes are not known" in first.note


def test_the_cpu_shows_its_jobs_and_never_raises(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    devices.forget()
    own = own_process(world, 12)
    try:
        (device,) = devices.look(world.settings)
    finally:
        own.kill()
        own.wait()
    assert [one.pid for one in device.processes if one.job == 12] == [own.pid]
    assert os.getpid() not in [one.pid for one in device.processes]
    assert device.load is not None
    assert 0.0 <= device.load <= 1.0
    assert device.total is not None
    assert device.used is not None
    assert 0 < device.used < device.total
    devices.forget()

    def broken() -> limits.Memory:
        raise RuntimeError("no /proc")

    monkeypatch.setattr(limits, "memory", broken)
    assert "RuntimeError: no /proc" in devices.look(world.settings)[0].problem
    devices.forget()


# --- the container's limits ---


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    second = tree(
        tmp_path / "v2",
        {
            "memory.max": "4000000\n",
            "memory.current": "3000000\n",
            "memory.stat": "anon 5\ninactive_file 500000\n",
            "cpu.max": "150000 100000\n",
            "cpu.stat": "usage_usec 2500000\nuser_usec 7\n",
        },
    )
    own = tmp_path / "own2"
    own.write_text("0::/\n")
    found = limits.memory(second, own)
    assert (found.total, found.used, found.free, found.limited) == (4_000_000, 2_500_000, 1_500_000, True)
    assert limits.cpus(second, own) == min(1.5, len(os.sched_getaffinity(0)))
    assert limits.cpu_seconds(second, own) == 2.5


def test_a_group_above_binds_too_and_so_does_version_one(tmp_path: Path) -> None:
    outer = tree(
        tmp_path / "nested",
        {
            "pod/memory.max": "9000000",
            "pod/memory.current": "1000000",
            "pod/box/memory.max": "max",
            "pod/box/memory.current": "1",
            "pod/box/cpu.max": "max 100000",
        },
    )
    own = tmp_path / "own"
    own.write_text("0::/pod/box\n")
    assert limits.memory(outer, own).total == 9_000_000
    first = tree(
        tmp_path / "v1",
        {
            "memory/here/memory.limit_in_bytes": "5000000",
            "memory/here/memory.usage_in_bytes": "2000000",
            "memory/here/memory.stat": "total_inactive_file 1000000",
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/memory.usage_in_bytes": "7",
            "cpu/cpu.cfs_quota_us": "50000",
            "cpu/cpu.cfs_period_us": "100000",
            "cpuacct/cpuacct.usage": "3000000000",
        },
    )
    own.write_text("4:memory:/here\n3:cpu,cpuacct:/gone\n0::/\n")
    assert (limits.memory(first, own).total, limits.memory(first, own).used) == (5_000_000, 1_000_000)
    assert limits.cpus(first, own) == 0.5
    assert limits.cpu_seconds(first, own) == 3.0


@pytest.mark.parametrize("text", ["", "nonsense", "0::/../../etc\n", "4:memory:/../..\n"])
def test_without_limits_the_machine_counts(tmp_path: Path, text: str) -> None:
    own = tmp_path / "own"
    own.write_text(text)
    found = limits.memory(tmp_path / "nothing", own)
    assert (found.total, found.limited) == (psutil.virtual_memory().total, False)
    assert limits.cpu_seconds(tmp_path / "nothing", own) > 0


# --- devices that others fill ---


def filled(slot: str, foreign: int, total: int = 24_000) -> Device:
    others = (DeviceProcess(9, "python", "bob", foreign),) if foreign else ()
    return Device(slot, "A card", total, foreign, total - foreign, processes=others)


def test_a_device_is_crowded_from_nine_tenths_on() -> None:
    assert devices.crowded([filled("cuda:0", 21_600), filled("cuda:1", 21_599)]) == {"cuda:0": "90% of its memory"}
    own = Device("cuda:0", "A card", 100, 99, 1, processes=(DeviceProcess(9, "python", "ada", 99, job=1),))
    assert devices.crowded([own, filled("cpu", 24_000)]) == {}


def test_a_job_waits_for_a_device_that_others_fill_and_says_so(
    world: World, sleepers: Sleepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [filled("cuda:0", 23_000), filled("cuda:1", 23_500), filled("cuda:2", 0)]
    monkeypatch.setattr(devices, "look", lambda settings, max_age: tuple(shown))
    first, second, named = add(world), add(world), add(world, 1, "cuda:1")
    sleepers.step()
    assert slots(world, first, second, named) == ["cuda:2", None, "cuda:1"], "who names a device gets it"
    sleepers.step()
    told = steering.waits_for(world.db, store.get_job(world.db, second.id))
    assert told == "other people's processes fill cuda:0 (96% of its memory), cuda:1 (98% of its memory)"
    shown[0] = filled("cuda:0", 1_000)
    sleepers.step()
    assert slots(world, second) == ["cuda:0"]
    sleepers.step()
    assert get_setting(world.db, crowding.CROWDED) is None


def test_a_job_for_several_devices_holds_nobody_up_while_others_fill_one(
    world: World, sleepers: Sleepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long somebody else's process stays is not ours to know: what needs less goes first meanwhile."""
    shown = [filled("cuda:0", 23_000), filled("cuda:1", 0), filled("cuda:2", 0)]
    monkeypatch.setattr(devices, "look", lambda settings, max_age: tuple(shown))
    wide, young = add(world, 3), add(world)
    sleepers.step()
    assert statuses(world, wide, young) == [JobStatus.QUEUED, JobStatus.STARTING]
    assert slots(world, wide, young) == [None, "cuda:1"]


def test_a_job_for_several_devices_keeps_those_that_are_free(
    world: World, sleepers: Sleepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While our own jobs alone stand in its way, it will have its turn: nobody passes it."""
    shown = [filled(f"cuda:{number}", 0) for number in range(3)]
    monkeypatch.setattr(devices, "look", lambda settings, max_age: tuple(shown))
    first = add(world)
    sleepers.step()
    wide, young = add(world, 3), add(world)
    sleepers.step()
    assert statuses(world, first, wide, young) == [JobStatus.STARTING, JobStatus.QUEUED, JobStatus.QUEUED]


def test_the_driver_is_asked_only_where_a_job_could_start(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def see(settings: Settings, max_age: float) -> tuple[Device, ...]:
        asked.append(max_age)
        return (filled("cuda:0", 23_000),)

    settings = settings_for(world.folder.root, devices=("cuda:0",))
    assert crowding.look_around(world.db, settings, see) == {}
    named = add(world, 1, "cuda:0")
    assert crowding.look_around(world.db, settings, see) == {}
    job = add(world)
    assert crowding.look_around(world.db, world.settings, see) == {}, "no GPU in this Plumb"
    assert asked == []
    assert crowding.look_around(world.db, settings, see) == {"cuda:0": "96% of its memory"}
    assert crowding.waits(world.db, job)
    assert crowding.waits(world.db, named) == ""
    world.db.conn.execute("UPDATE jobs SET status = 'running', slot = 'cuda:0' WHERE id = ?", [named.id])
    assert crowding.look_around(world.db, settings, see) == {}
    assert len(asked) == 1
    assert get_setting(world.db, crowding.CROWDED) is None, "it waits for a slot, as ever"


def test_only_who_names_no_device_is_spared() -> None:
    wanted = Wanted(("cuda:0", "cuda:1"), 2)
    job = type("Job", (), {"device": None})()
    assert crowding.spared(wanted, job, {"cuda:0": "x"}) == (("cuda:1",), 2)
    job.device = "cuda:0"
    assert crowding.spared(wanted, job, {"cuda:0": "x"}) == wanted


# --- chats that leave ---


def test_no_chat_leaves_for_a_job_behind_one_that_it_could_not_help(
    world: World, sleepers: Sleepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older job needs all three and one is at work: what the chat left would only be kept for that one."""
    chat = sleepers.chat()
    training = add(world)
    sleepers.step()
    assert slots(world, chat, training) == ["cuda:0", "cuda:1"]
    monkeypatch.setattr("jobs.making_room.is_serving", leaving)
    wide, young = add(world, 3), add(world, 1, "cuda:0")
    for _ in range(3):
        sleepers.step()
    assert statuses(world, chat) == [JobStatus.RUNNING], "it would have left for nothing"
    sleepers.end(training)
    sleepers.step()
    assert statuses(world, chat) == [JobStatus.STOPPING]
    assert store.get_job(world.db, chat.id).reason == f"left its device to job {wide.id}"
    assert slots(world, young) == [None]


# --- what a job leaves behind ---


def test_memory_that_an_ended_job_still_holds_is_told(world: World, nvidia_smi: Smi) -> None:
    settings = two_gpus(world)
    own = own_process(world, 5)
    try:
        nvidia_smi.write(processes=f"GPU-aaaa-1, {own.pid}, 20000, {sys.executable}\n")
        told = devices.leftover(settings, "cuda:0", 5)
        assert told == f"cuda:0 is not free yet: process {own.pid} of job 5 (21 GB)"
        assert "of job 5" not in devices.leftover(settings, "cuda:0", 6)
        assert devices.leftover(settings, "cuda:1", 5) == ""
    finally:
        own.send_signal(signal.SIGKILL)
        own.wait()
    nvidia_smi.write(processes="")
    assert devices.leftover(settings, "cuda:0", 5) == (
        "cuda:0 holds 22 GB that no process which can be seen accounts for"
    )
    assert devices.leftover(settings, "cpu", 5) == ""
