"""Fixtures that every test file may use. pytest puts tests/ on the path: `from factories import …`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from factories import World, open_world
from jobs.telemetry import switch_off
from workbench.context import Context

pytest_plugins = ["judging", "ledgers", "callers", "supervised", "hubs", "at_the_door"]

switch_off(os.environ)
os.environ["HF_HUB_OFFLINE"] = "1"
for name in [*os.environ]:
    if name.endswith("_API_KEY") or (name.startswith("PLUMB_") and name != "PLUMB_REQUIRE_BROWSER"):
        os.environ.pop(name)  # no test shall find, or send, a key of the person who runs it


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = open_world(tmp_path / "data")
    yield made
    made.db.close()


@pytest.fixture
def context(world: World) -> Context:
    return Context(world.settings)


@pytest.fixture
def chromium() -> None:
    """Skips aloud where there is no browser, and fails where one is required."""
    from browser import find_chromium

    if find_chromium() is None:
        if os.environ.get("PLUMB_REQUIRE_BROWSER"):
            pytest.fail("chromium is missing: install Debian's package chromium")
        pytest.skip("chromium is missing: install Debian's package chromium")


@pytest.fixture
def no_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is submitted stays queued."""
    monkeypatch.setattr("jobs.queue.ensure_supervisor", lambda settings: False)
    monkeypatch.setattr("jobs.steering.ensure_supervisor", lambda settings: False)


@pytest.fixture
def wait_for() -> Callable[..., None]:
    """Poll until a condition holds; fails with its name after the deadline."""

    def wait(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {seconds} s: {what}")
            time.sleep(0.05)

    return wait
