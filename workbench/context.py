"""What every page gets: settings, the data folder, a connection for one call, and who is asking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from sqlite_utils import Database

from jobs.settings import Settings
from storage.database import session
from storage.folder import DataFolder


class Asker(Protocol):
    """What pages need of `gr.Request`."""

    username: str | None


@dataclass(frozen=True)
class Context:
    settings: Settings

    @property
    def folder(self) -> DataFolder:
        return self.settings.folder

    @contextmanager
    def database(self) -> Iterator[Database]:
        """A connection for one call: Gradio runs callbacks in other threads than the one that built the page."""
        with session(self.folder) as db:
            yield db

    def user(self, request: Asker) -> str:
        """The name behind the request; the door has let nobody in without one."""
        assert request.username, "the door lets nobody in without a name"
        return request.username
