"""What every page gets: settings, the data folder, a connection for one call, and who is asking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from sqlite_utils import Database

from jobs.settings import Settings
from storage.database import session
from storage.folder import DataFolder
from storage.users import Role


class Asker(Protocol):
    """What pages need of `gr.Request`."""

    username: str | None


@dataclass(frozen=True)
class Person:
    """Who asks, and what they may do at this moment."""

    name: str
    role: Role


#: Whom the event of a page that runs just now is run for; workbench/roles.py sets it, having asked the door.
asking: ContextVar[Person | None] = ContextVar("asking", default=None)


@dataclass(frozen=True)
class Context:
    settings: Settings

    @property
    def folder(self) -> DataFolder:
        return self.settings.folder

    @property
    def asks_login(self) -> bool:
        """Whether people log in; else there is one user, the machine's own."""
        return self.settings.login or not self.settings.loopback

    @contextmanager
    def database(self) -> Iterator[Database]:
        """A connection for one call: Gradio runs callbacks in other threads than the one that built the page."""
        with session(self.folder) as db:
            yield db

    def user(self, request: Asker) -> str:
        """The name behind the request; the door has let nobody in without one."""
        assert request.username, "the door lets nobody in without a name"
        return request.username

    def person(self, request: Asker) -> Person:
        """Name and role behind an event's request; on one's own machine one is admin."""
        person = asking.get()
        if person is not None and person.name == request.username:
            return person
        return Person(self.user(request), "annotator" if self.asks_login else "admin")
