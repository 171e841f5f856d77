"""The Machine page: devices as they are, the disk with its budget, the bin, the doctor's table; all escaped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import gradio as gr
import platformdirs
import pytest

from factories import World, settings_for
from jobs import bin as recycling
from jobs import devices, disk, doctor
from jobs.checks import Check
from jobs.devices import Device, DeviceProcess
from jobs.runs import RunFolder
from jobs.settings import Settings
from storage import jobs as store
from storage.errors import PlumbError, UserError
from storage.lifecycle import JobStatus
from storage.records import Job
from workbench import machine_desk, machine_views
from workbench.context import Context
from workbench.machine_desk import Live, Report, Surgery
from workbench.navigation import PAGES, header
from workbench.pages import machine as page

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
EVIL = '<img src=x onerror="alert(1)">'
GB = 1_000_000_000


@pytest.fixture(autouse=True)
def afresh(world: World) -> Iterator[None]:
    devices.forget()
    disk.forget(world.folder)
    yield
    devices.forget()


def card(**changes: Any) -> Device:
    given: dict[str, Any] = {
        "slot": "cuda:0",
        "name": "A card",
        "total": 24 * GB,
        "used": 12 * GB,
        "free": 12 * GB,
        "load": 0.42,
        "temperature": 61.0,
        **changes,
    }
    return Device(**given)


def ended(world: World, kind: str = "dpo", content: bytes = b"") -> Job:
    """A job that failed, with a run folder."""
    job = world.job(kind)
    store.move(world.db, job.id, JobStatus.FAILED, "it broke")
    run = RunFolder(world.folder.run(job.id))
    run.path.mkdir(parents=True)
    (run.path / "job.json").write_text("{}")
    (run.path / "log.txt").write_bytes(content)
    return store.get_job(world.db, job.id)


# --- devices ---


def test_a_device_shows_whose_its_memory_is(world: World) -> None:
    job = world.job("dpo")
    processes = (
        DeviceProcess(11, "python", "ada", 6 * GB, job.id),
        DeviceProcess(12, "trainer", "bob", 3 * GB),
        DeviceProcess(13, "a process", "", GB, seen=False),
    )
    drawn = machine_views.devices(Live([card(processes=processes)], jobs={job.id: job}))
    assert '<span class="pd-own" style="width:25.00%"' in drawn
    assert '<span class="pd-foreign" style="width:12.50%"' in drawn
    assert '<span class="pd-used" style="width:12.50%" title="the rest in use"' in drawn
    assert "12 GB of 24 GB, 12 GB free" in drawn
    assert "42 %" in drawn
    assert "61 °C" in drawn
    assert f'<a href="/jobs?job={job.id}">job {job.id}</a> DPO' in drawn
    assert "</span>bob</td>" in drawn
    assert "not seen from here" in drawn
    assert 'aria-valuenow="50"' in drawn


def test_memory_that_is_counted_twice_does_not_leave_the_bar() -> None:
    """Processes share pages: their memory adds up to more than is in use."""
    processes = tuple(DeviceProcess(number, "python", "ada", 9 * GB, 1) for number in range(3))
    drawn = machine_views.devices(Live([card(processes=processes)]))
    assert '<span class="pd-own" style="width:50.00%"' in drawn
    assert "pd-foreign" not in drawn
    assert 'aria-valuenow="50"' in drawn


def test_only_the_first_of_many_processes_are_named() -> None:
    processes = tuple(DeviceProcess(number, "python", "ada", GB) for number in range(100, 114))
    drawn = machine_views.devices(Live([card(processes=processes)]))
    assert drawn.count("<tr>") == 1 + machine_views.PROCESSES
    assert "and 4 more" in drawn


def test_a_device_says_who_has_it(world: World) -> None:
    job = world.job("dpo")
    assert '<span class="pb-chip accepted">free</span>' in machine_views.devices(Live([card()]))
    held = machine_views.devices(Live([card()], holders={"cuda:0": [job]}))
    assert f'href="/jobs?job={job.id}">job {job.id}, queued</a>' in held
    full = machine_views.devices(Live([card()], crowded={"cuda:0": "95% of its memory"}))
    assert "filled by others" in full
    assert "Other people's processes fill 95% of its memory" in full
    lost = machine_views.devices(Live([Device("cuda:0", problem="The driver hangs.")]))
    assert '<p class="pd-problem" role="alert">The driver hangs.</p>' in lost
    assert "not known" in lost
    assert "free</span>" not in lost


def test_what_is_not_told_is_not_drawn() -> None:
    drawn = machine_views.devices(Live([Device("cuda:0", "A card", note="Its processes are not known.")]))
    assert "not told" in drawn
    assert "Load" not in drawn
    assert "Temperature" not in drawn
    assert "Its processes are not known." in drawn


def test_the_desk_finds_holders_and_jobs(world: World, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    held, gone = world.job("dpo"), world.job("sft")
    world.db.conn.execute("UPDATE jobs SET status = 'running', slot = 'cuda:0,cuda:1' WHERE id = ?", [held.id])
    world.db.conn.execute("UPDATE jobs SET status = 'done' WHERE id = ?", [gone.id])
    processes = (DeviceProcess(1, "a", "b", 1, gone.id), DeviceProcess(2, "a", "b", 1, 4711))
    monkeypatch.setattr(devices, "look", lambda settings: (card(processes=processes),))
    found = machine_desk.live(context)
    assert [[job.id for job in found.holders[slot]] for slot in ("cuda:0", "cuda:1")] == [[held.id]] * 2
    assert set(found.jobs) == {held.id, gone.id}
    assert "job 4711" in machine_views.devices(found)


# --- the disk ---


def test_the_disk_is_shown_by_part_and_by_run(world: World, context: Context) -> None:
    job = ended(world, content=b"x" * 3_000_000)
    disk.set_budget(world.db, 10_000_000, "ada")
    found = machine_desk.storage(context)
    drawn = machine_views.disk(found)
    assert f'<a href="/jobs?job={job.id}">job {job.id}</a> DPO<b>3.0 MB</b>' in drawn
    assert "</span>Runs<b>3.0 MB</b>" in drawn
    assert "of 10 MB</dt>" in drawn
    assert 'title="Runs: 3.0 MB"' in drawn
    assert found.why == ""
    disk.set_budget(world.db, 10_000_000, "ada")
    (world.folder.run(job.id) / "more").write_bytes(b"x" * 9_000_000)
    disk.forget(world.folder)
    drawn = machine_views.disk(machine_desk.storage(context))
    assert '<p class="pd-problem" role="alert">The data folder takes' in drawn


def test_a_run_that_is_not_known_and_a_folder_that_is_gone(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    (world.folder.runs / "000077").mkdir()
    (world.folder.runs / "000077" / "log.txt").write_bytes(b"x" * 100_000)
    assert "folder 77" in machine_views.disk(machine_desk.storage(context))

    def gone(folder: object) -> disk.Usage:
        raise FileNotFoundError(2, "No such file or directory", "<data>")

    monkeypatch.setattr(disk, "usage", gone)
    drawn = machine_views.disk(machine_desk.storage(context))
    assert 'role="alert">The data folder cannot be looked at' in drawn
    assert "<data>" not in drawn


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", None),
        ("  ", None),
        ("none", None),
        ("2", 2 * GB),
        ("0.5", GB // 2),
        ("1,500", 1500 * GB),
        ("200 GB", 200 * GB),
        ("1TB", 1000 * GB),
        ("500MB", GB // 2),
    ],
)
def test_a_budget_is_read_as_people_write_it(text: str, number: int | None) -> None:
    assert machine_desk.read_budget(text) == number


@pytest.mark.parametrize("text", ["0", "-3", "nan", "inf", "much", "1e400", "5 apples", "0.001"])
def test_what_is_no_budget_is_refused_with_a_remedy(context: Context, text: str) -> None:
    with pytest.raises(UserError) as caught:
        machine_desk.set_budget(context, "ada", text)
    assert "give" in str(caught.value)


def test_a_budget_is_set_and_taken_away(world: World, context: Context) -> None:
    assert machine_desk.set_budget(context, "ada", "2.5") == "The budget is 2.5 GB."
    assert disk.get_budget(world.db) == 2_500_000_000
    assert machine_desk.budget_text(machine_desk.storage(context).usage) == "2.5"
    assert "what the disk has" in machine_desk.set_budget(context, "ada", " ")
    assert disk.get_budget(world.db) is None
    assert machine_desk.budget_text(machine_desk.storage(context).usage) == machine_desk.budget_text(None) == ""


# --- the bin ---


def test_deleted_runs_can_be_restored_here(world: World, context: Context) -> None:
    assert "The bin is empty." in machine_views.waste(machine_desk.waste(context), NOW)
    job = ended(world, content=b"x" * 50_000)
    recycling.delete_run(world.db, world.settings, job.id, EVIL)
    disk.forget(world.folder)
    found = machine_desk.waste(context)
    drawn = machine_views.waste(found, NOW)
    assert f'data-restore="{job.id}"' in drawn
    assert "7 days" in drawn
    assert EVIL not in drawn
    assert found.runs[0][1] >= 50_000
    assert machine_desk.restore(context, job.id).deleted_at is None
    assert world.folder.run(job.id).is_dir()
    assert machine_desk.waste(context).runs == []
    with pytest.raises(PlumbError, match="is not deleted"):
        machine_desk.restore(context, job.id)


def test_the_bin_is_emptied_after_a_question(world: World, context: Context) -> None:
    jobs = [ended(world), ended(world)]
    assert "The bin is empty" in machine_views.emptying(machine_desk.waste(context))
    for job in jobs:
        recycling.delete_run(world.db, world.settings, job.id, "ada")
    assert "Remove 2 runs" in machine_views.emptying(machine_desk.waste(context))
    assert "0 runs are" in machine_desk.empty_bin(context, NOW - timedelta(days=3650)), (
        "put there since it was asked"
    )
    assert "2 runs are removed for good" in machine_desk.empty_bin(context)
    assert not list(world.folder.bin.iterdir())
    assert "0 runs are" in machine_desk.empty_bin(context)


# --- the checks ---


def report(*checks: Check) -> Report:
    return Report(checks, NOW - timedelta(minutes=5), 2.34)


def test_what_is_wrong_stands_first_and_nothing_is_markup() -> None:
    drawn = machine_views.checks(
        report(
            Check("Fine", "ok", "good"),
            Check("Odd", "warning", EVIL, EVIL),
            Check(EVIL, "wrong", "bad", "mend it"),
        ),
        NOW,
    )
    assert EVIL not in drawn
    assert drawn.index("pd-is-wrong") < drawn.index("pd-is-warning") < drawn.index("pd-is-ok")
    assert "1 wrong</b>, <b class='pb-warn'>1 warning</b>." in drawn
    assert '<span class="pd-remedy">mend it</span>' in drawn
    assert "5 min ago" in drawn
    assert "in 2.3 s" in drawn
    assert "Nothing is wrong." in machine_views.checks(report(Check("Fine", "ok", "good")), NOW)


def test_before_the_first_check_it_says_what_a_check_is() -> None:
    assert "changes nothing" in machine_views.checks(None, NOW)


def test_one_check_serves_all_who_ask_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, count = threading.Event(), threading.Event(), []

    def slow(settings: Settings) -> list[Check]:
        count.append(settings)
        begun.set()
        assert go_on.wait(30)
        return [Check("Fine", "ok", "good")]

    monkeypatch.setattr(doctor, "report", slow)
    surgery = Surgery()
    found: list[Report] = []
    threads = [threading.Thread(target=lambda: found.append(surgery.check(world.settings))) for _ in range(3)]
    threads[0].start()
    assert begun.wait(30)
    for thread in threads[1:]:
        thread.start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(count) <= 2, "whoever came too late for the first has the second"
    assert surgery.last in found
    number = len(count)
    surgery.check(world.settings)
    assert len(count) == number + 1, "asked again, it looks again"


# --- the page ---


def test_names_from_outside_are_escaped(world: World, context: Context) -> None:
    processes = (DeviceProcess(1, EVIL, EVIL, 1), DeviceProcess(2, EVIL, EVIL, 1, job=3))
    device = card(name=EVIL, processes=processes, note=EVIL)
    problem = Device(EVIL, problem=EVIL)
    drawn = machine_views.devices(Live([device, problem], crowded={"cuda:0": EVIL, EVIL: EVIL}))
    drawn += machine_views.backups([EVIL])
    assert "<img" not in drawn
    assert "&lt;img" in drawn


def test_it_is_in_the_navigation() -> None:
    assert PAGES[-1] == ("machine", "Machine", "/machine")
    assert '<a href="/machine" aria-current="page">Machine' in header("machine")


def test_the_commands_name_the_data_folder(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        machine_desk.backup_commands(context)[0]
        == f"python -m storage backup plumb.tar --data {world.folder.root}"
    )
    usual = str(world.folder.root)
    monkeypatch.setattr(platformdirs, "user_data_dir", lambda name: usual)
    assert machine_desk.backup_commands(context)[0] == "python -m storage backup plumb.tar"


def handlers(blocks: gr.Blocks) -> dict[str, Any]:
    return {function.name: function.fn for function in blocks.fns.values() if function.fn is not None}


def by_id(blocks: gr.Blocks, updates: dict[Any, Any]) -> dict[str, Any]:
    """Updates by their components' ids in the page."""
    return {component.elem_id or type(component).__name__: value for component, value in updates.items()}


def test_a_tick_sends_only_what_has_changed(
    world: World, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [card()]
    monkeypatch.setattr(devices, "look", lambda settings: tuple(shown))
    blocks = page.build(context)
    found = handlers(blocks)
    first = by_id(blocks, found["opening"]())
    assert {"machine-devices", "machine-disk", "machine-bin", "machine-checks"} <= first.keys()
    again = by_id(blocks, found["ticking"](first["State"]))
    assert set(again) == {"State"}
    shown[0] = card(load=0.9)
    assert set(by_id(blocks, found["ticking"](first["State"]))) == {"State", "machine-devices"}


def test_the_page_checks_when_it_is_asked_to_and_keeps_the_report(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Settings] = []

    def quick(settings: Settings) -> list[Check]:
        asked.append(settings)
        return [Check("Disk", "wrong", "full")]

    monkeypatch.setattr(doctor, "report", quick)
    blocks = page.build(context)
    found = handlers(blocks)
    assert "Nobody has checked" in by_id(blocks, found["opening"]())["machine-checks"]
    assert asked == []
    table, button = found["checking"]()
    assert "full" in table
    assert button["interactive"] is True
    assert "full" in by_id(blocks, found["opening"]())["machine-checks"]
    assert len(asked) == 1


def test_the_page_restores_and_tells_what_cannot_be(world: World, context: Context) -> None:
    job = ended(world)
    recycling.delete_run(world.db, world.settings, job.id, "ada")
    blocks = page.build(context)
    found = handlers(blocks)
    opened = by_id(blocks, found["opening"]())
    assert opened["machine-empty"]["visible"] is True
    event = type("Event", (), {"_data": {"restore": job.id}})()
    told = by_id(blocks, found["restoring"](opened["State"], event))
    assert f'The run of <a href="/jobs?job={job.id}">job {job.id}</a> is back' in told["machine-bin-outcome"]
    assert "The bin is empty" in told["machine-bin"]
    assert told["machine-empty"]["visible"] is False
    told = by_id(blocks, found["restoring"](told["State"], event))
    assert "is not deleted" in told["machine-bin-outcome"]
    assert "machine-bin" in told, "its button has been disabled"
    nothing = type("Event", (), {"_data": {}})()
    assert set(by_id(blocks, found["restoring"](told["State"], nothing))) == {"State"}


def test_the_page_sets_a_budget_and_keeps_what_was_typed_wrong(context: Context) -> None:
    blocks = page.build(context)
    budgeting = handlers(blocks)["budgeting"]
    request = type("Request", (), {"username": "ada"})()
    told = by_id(blocks, budgeting(request, "3"))
    assert "The budget is 3.0 GB." in told["machine-budget-outcome"]
    assert told["machine-budget"] == "3"
    told = by_id(blocks, budgeting(request, "many"))
    assert set(told) == {"machine-budget-outcome"}
    assert 'role="alert"' in told["machine-budget-outcome"]


def test_a_page_left_open_wakes_no_driver_while_nobody_looks() -> None:
    """The browser asks, and only while it shows the page."""
    assert "document.hidden" in page._LOOK_JS
    assert "clearInterval" in page._LOOK_JS


def test_a_cpu_world_is_shown_as_it_is(context: Context) -> None:
    """No stand-ins: what this very machine says."""
    found = page.look(context)
    assert 'aria-label="cpu"' in found["devices"]
    assert "free" in found["disk"]
    assert settings_for(context.folder.root).devices == ("cpu",)
