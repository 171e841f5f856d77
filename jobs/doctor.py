"""`python -m jobs doctor`: what keeps Plumb from working on this machine, and what to do about it.

Nothing is changed, no torch is imported, and it takes less than ten seconds: what may hang has a time limit, and a
check that breaks is told as such. Secrets are named, and never shown.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from functools import partial

import typer

from jobs import data_checks, devices, limits, software_checks
from jobs.checks import Check, State, guarded
from jobs.command_line import AsJson, Data
from jobs.judges.keys import NAMES, need_key
from jobs.push import TOKEN
from jobs.settings import Settings, load_settings
from storage.errors import UserError
from storage.units import in_words

__all__ = ["Check", "State", "add_to", "report"]

LEAST_MEMORY = 2_000_000_000
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def report(settings: Settings) -> list[Check]:
    """Every check, those on software first. Takes some seconds: torch is asked while the others run."""
    torch = software_checks.ask_torch()
    found = [
        *guarded("Python", software_checks.python),
        *guarded("Packages", software_checks.packages),
    ]
    driver = software_checks.ask_driver()
    rest = [
        *guarded("Devices", partial(device_slots, settings, driver)),
        *guarded("Memory", memory),
        *guarded("Disk", partial(data_checks.room, settings)),
        *guarded("Data folder", partial(data_checks.folder, settings)),
        *guarded("Database", partial(data_checks.database, settings)),
        *guarded("Supervisor", partial(data_checks.supervisor, settings)),
        *guarded("Clock", data_checks.clock),
        *guarded("Keys", partial(keys, settings)),
        *guarded("Hub", hub),
    ]
    found += guarded("torch", lambda: software_checks.torch_and_driver(torch(), driver))
    return [*found, *rest]


def device_slots(settings: Settings, driver: software_checks.Driver) -> Iterator[Check]:
    """Whether the slots are devices that are there."""
    slots = ", ".join(settings.devices)
    remedy = "PLUMB_DEVICES, or --devices, must name devices that are there, as cpu or cuda:0,cuda:1"
    if driver.gpus and not any(slot.startswith("cuda:") for slot in settings.devices):
        yield Check(
            "Devices",
            "warning",
            f"{slots}: no GPU is used, and the driver knows {len(driver.gpus)}",
            "unset PLUMB_DEVICES and CUDA_VISIBLE_DEVICES, or name the GPUs there: PLUMB_DEVICES=cuda:0",
        )
        return
    if driver.trouble is not None and any(slot.startswith("cuda:") for slot in settings.devices):
        # Not asked again: a driver that hangs would take its time a second time.
        yield Check("Devices", "wrong", f"{slots}: {driver.trouble}", remedy)
        return
    found = devices.look(settings)
    lost = [device for device in found if device.problem]
    if lost:
        told = "; ".join(f"{device.slot}: {device.problem}" for device in lost)
        yield Check("Devices", "wrong", told, remedy)
        return
    crowds = devices.crowded(found)
    if crowds:
        told = ", ".join(f"{slot} ({share})" for slot, share in crowds.items())
        yield Check(
            "Devices",
            "warning",
            f"other people's processes fill {told}; jobs wait for it, unless they name it",
            "see on the Machine page whose they are",
        )
        return
    yield Check("Devices", "ok", "; ".join(_figures(device) for device in found))


def _figures(device: devices.Device) -> str:
    free = f", {in_words(device.free)} of {in_words(device.total)} free" if device.free and device.total else ""
    return f"{device.slot}: {device.name}{free}"


def memory() -> Iterator[Check]:
    """The memory that counts: a model is loaded through it also where it ends on a GPU."""
    there = limits.memory()
    whose = "the container's limit" if there.limited else "the machine's"
    text = f"{in_words(there.free)} of {in_words(there.total)} are free ({whose})"
    if there.free < LEAST_MEMORY:
        yield Check("Memory", "warning", text, "end what else runs, or give the container more")
    else:
        yield Check("Memory", "ok", text)


def keys(settings: Settings) -> Iterator[Check]:
    """Which keys are set, by name alone."""
    told = []
    for provider, names in NAMES.items():
        told += [f"{name} {'set' if os.environ.get(name, '').strip() else 'not set'}" for name in names]
        if any(os.environ.get(name, "").strip() for name in names):
            try:
                need_key(provider, settings)
            except UserError as error:
                yield Check("Keys", "wrong", str(error), "set it anew, in one line")
    told.append(f"{TOKEN} {'set' if os.environ.get(TOKEN, '').strip() else 'not set'}")
    yield Check("Keys", "ok", ", ".join(told))


def hub() -> Iterator[Check]:
    """Whether models may be downloaded."""
    offline = [name for name in OFFLINE if os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on")]
    if offline:
        yield Check("Hub", "ok", f"offline ({', '.join(offline)} is set): only models that are here can be used")
    else:
        yield Check("Hub", "ok", "may be asked for models; HF_HUB_OFFLINE=1 forbids it")


def worst(checks: Sequence[Check]) -> State:
    """The state of them all."""
    order: tuple[State, ...] = ("wrong", "warning", "ok")
    return next((state for state in order if any(check.state == state for check in checks)), "ok")


def add_to(app: typer.Typer) -> None:
    """Give an app the command."""
    app.command("doctor")(show)


def show(data: Data = None, as_json: AsJson = False) -> None:
    """What is wrong with this machine or the data folder, and what to do; exit code 1 if anything is wrong."""
    # The folder is looked at as it is: not made, and not brought to this version.
    checks = report(load_settings(data=data))
    state = worst(checks)
    if as_json:
        print(json.dumps({"state": state, "checks": [dataclasses.asdict(check) for check in checks]}))
    else:
        for check in checks:
            print(f"{check.state:>8}  {check.name}: {check.text}")
            if check.remedy:
                print(f"{'':>8}  → {check.remedy}")
        print(
            {"ok": "Nothing is wrong.", "warning": "It works; see the warnings."}.get(state, "Something is wrong.")
        )
    if state == "wrong":
        raise typer.Exit(1)
