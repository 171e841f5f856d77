"""A team's app with its door, and passwords that are hashed quickly: what tests of people share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from factories import World, open_world, settings_for
from workbench.attempts import Attempts
from workbench.context import Context
from workbench.door import Door
from workbench.ui import build_api

PASSWORD = "four words in a row"
OTHER = "quite another one"


@dataclass
class Place:
    """The API of a team's app, and its clock for attempts."""

    app: Any
    door: Door
    world: World
    moment: list[float]

    def visitor(self, name: str = "", client: str = "testclient") -> TestClient:
        made = TestClient(
            self.app,
            base_url="http://plumb.example",
            follow_redirects=False,
            client=(client, 1),
            raise_server_exceptions=True,
        )
        if name:
            made.cookies.set(self.door.cookie, self.door.session_for(name))
        return made

    def log_in(self, name: str, password: str, visitor: TestClient | None = None, client: str = "10.0.0.1") -> int:
        made = visitor or self.visitor(client=client)
        return made.post("/login", data={"name": name, "password": password}).status_code


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    world = open_world(tmp_path)
    settings = settings_for(world.folder.root, host="0.0.0.0")
    keeper = Door(settings)
    moment = [1000.0]
    keeper.attempts = Attempts(lambda: moment[0])
    yield Place(build_api(Context(settings), keeper), keeper, world, moment)
    world.db.close()


@pytest.fixture
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """argon2 as it is, but in a millisecond."""
    from argon2 import PasswordHasher

    from storage import passwords

    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr(passwords, "_hasher", lambda: hasher)
    passwords._dummy.cache_clear()
