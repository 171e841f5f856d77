"""The supervisor says with what it works, and whoever has other settings is told so."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from factories import World, settings_for
from jobs import data_checks, devices, standby
from jobs.__main__ import app
from jobs.settings import Settings
from jobs.standby import at_work, differs, introduce, withdraw
from jobs.supervisor import supervise
from storage.errors import Conflict
from supervised import supervisors
from workbench import machine_desk, machine_views
from workbench.context import Context


@pytest.fixture
def others(world: World) -> Settings:
    """Those of the shell that started the supervisor, which is this process."""
    found = settings_for(world.folder.root, devices=("cpu", "cuda:3"), network_slots=4)
    introduce(found)
    return found


def test_a_supervisor_with_other_settings_is_told_of_with_the_remedy(world: World, others: Settings) -> None:
    assert differs(others) == ""
    assert differs(world.settings) == (
        f"The supervisor at work (process {os.getpid()}) was started with other settings: it gives jobs cpu, "
        "cuda:3 as devices, and here they are cpu; it lets 4 judge jobs run at once, and here it is 1. Start the "
        "app again, or run `python -m jobs supervise --anew` where the settings are right; running jobs go on."
    )
    assert "judge jobs" not in differs(settings_for(world.folder.root, network_slots=4))
    assert differs(settings_for(world.folder.root, devices=("cuda:3", "cpu"), network_slots=4)) == "", "any order"


def test_one_that_has_left_is_not_told_of(world: World, others: Settings) -> None:
    note = world.folder.runtime / "supervisor.json"
    told = json.loads(note.read_text())
    for changes in ({"pid": 2**22 + 1}, {"started": told["started"] - 100}, {"devices": None}):
        note.write_text(json.dumps(told | changes))
        assert at_work(world.folder) is None, changes
    for text in ("", "[]", "{", "{}"):
        note.write_text(text)
        assert differs(world.settings) == ""
    introduce(others)
    assert at_work(world.folder) is not None
    withdraw(world.folder)
    assert (at_work(world.folder), differs(world.settings)) == (None, "")


def test_the_supervisor_introduces_itself_for_as_long_as_it_works(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def leaves(self: object, lock: object) -> bool:
        seen.append(at_work(world.folder))
        return False

    monkeypatch.setattr("jobs.supervisor.Supervisor.run_until_idle", leaves)
    assert supervise(world.settings)
    assert seen == [standby.AtWork(os.getpid(), ("cpu",), 1)]
    assert at_work(world.folder) is None


def test_a_full_disk_keeps_no_supervisor_from_working(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    introduce(world.settings)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(standby, "write_atomically", full)
    introduce(world.settings)
    assert at_work(world.folder) is None, "better nothing than what an earlier one said"


def test_the_page_the_list_and_the_doctor_tell(
    world: World, others: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices.forget()
    shown = machine_views.devices(machine_desk.live(Context(world.settings)))
    assert 'role="alert">The supervisor at work' in shown
    assert "cuda:3" in shown
    environment = {"PLUMB_DEVICES": "cpu", "PLUMB_DATA": str(world.folder.root)}
    told = CliRunner().invoke(app, ["list"], env=environment).output
    assert "jobs supervise --anew" in told
    monkeypatch.setattr(data_checks, "is_held", lambda folder: True)
    monkeypatch.setattr(data_checks, "supervisors", lambda folder: [os.getpid()])
    (found,) = data_checks.supervisor(world.settings)
    assert found.state == "warning"
    assert found.text.startswith("the supervisor at work (process")
    assert found.remedy.startswith("start the app again, or run")
    withdraw(world.folder)
    assert "supervise --anew" not in CliRunner().invoke(app, ["list"], env=environment).output
    assert "role" not in machine_views.devices(machine_desk.live(Context(world.settings))).split("pd-devices")[0]


def test_one_that_does_not_hand_over_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.__main__.ensure_supervisor", lambda settings, fresh: False)
    found = CliRunner().invoke(app, ["supervise", "--anew", "--data", str(world.folder.root)])
    assert isinstance(found.exception, Conflict)


def test_anew_changes_the_devices(busy: World, wait_for: Callable[..., None]) -> None:
    """A real one, started by another shell, hands over to one with these settings."""
    here = settings_for(busy.folder.root, supervisor_idle_seconds=30.0)
    there = settings_for(busy.folder.root, devices=("cuda:3",), supervisor_idle_seconds=30.0)
    standby.ensure_supervisor(there)
    wait_for(lambda: differs(here), "it has introduced itself")
    environment = {"PLUMB_DEVICES": "cpu", "PLUMB_NETWORK_SLOTS": "1", "PLUMB_DATA": str(busy.folder.root)}
    assert "at work with cpu" in CliRunner().invoke(app, ["supervise", "--anew"], env=environment).output
    wait_for(lambda: at_work(busy.folder) and not differs(here), "the other has taken over")
    assert len(supervisors(busy)) == 1


@pytest.mark.parametrize(
    ("code", "seconds", "beginning"),
    [
        (None, 1.0, True),  # it loads
        (None, 11.0, False),
        (-9, 1.0, False),  # killed: another at once
        (0, 1.0, False),  # another was quicker, and may have gone since
        (1, 1.0, True),  # the next would fail as well
        (1, 11.0, False),
    ],
)
def test_how_soon_another_supervisor_is_started(code: int | None, seconds: float, beginning: bool) -> None:
    child: Any = SimpleNamespace(poll=lambda: code)
    assert standby._is_beginning(child, time.monotonic() - seconds) is beginning
