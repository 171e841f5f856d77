"""Sessions: signed cookies that end by age, by idleness, by log-out, and with the person's era.

A cookie holds the name, the era it was begun in, when it was begun, its own id and whether it was opened by the
console's token. Nothing is stored for a session that lives; the ids of those that were logged out are, until they
would have ended anyway. The signature's own time is when the session was last seen.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from threading import Lock

from itsdangerous import BadSignature, URLSafeSerializer, URLSafeTimedSerializer
from sqlite_utils import Database

from storage.settings import get_setting, put_setting

SESSION_SECONDS = 14 * 24 * 3600
IDLE_SECONDS = 3 * 24 * 3600
RENEW_SECONDS = 300  # a cookie is signed anew, with the time, when it is older than this
DEVICE_SECONDS = 400 * 24 * 3600  # the longest that browsers keep a cookie
_ENDED = "ended sessions"


@dataclass(frozen=True)
class Session:
    """What a cookie says; whether the person is still in that era is another question."""

    name: str
    era: int
    begun: int
    id: str
    by_token: bool
    seen: float


class Sessions:
    """Signs and reads; one instance an app."""

    def __init__(self, key: bytes) -> None:
        self._signer = URLSafeTimedSerializer(key, salt="plumb-session")
        self._devices = URLSafeSerializer(key, salt="plumb-device")
        # Cookies are shared by all ports of a host: the name keeps two data folders apart.
        mark = hashlib.sha256(b"cookie:" + key).hexdigest()[:12]
        self.cookie, self.device_cookie = f"plumb-{mark}", f"plumb-device-{mark}"
        self._ended: dict[str, float] | None = None
        self._lock = Lock()

    def begin(self, name: str, era: int, by_token: bool = False) -> str:
        """A new session's cookie."""
        return self._sign(Session(name, era, int(time.time()), secrets.token_urlsafe(9), by_token, 0.0))

    def read(self, value: str) -> Session | None:
        """The session of a cookie that is ours, neither too old nor too long idle."""
        try:
            content, moment = self._signer.loads(value, max_age=IDLE_SECONDS, return_timestamp=True)
            name, era, begun, number, by_token = content
        except (BadSignature, ValueError, TypeError):
            return None
        if not (isinstance(name, str) and isinstance(era, int) and isinstance(begun, int)):
            return None
        if time.time() - begun > SESSION_SECONDS:
            return None
        return Session(name, era, begun, str(number), by_token == 1, moment.timestamp())

    def renewed(self, session: Session) -> str | None:
        """The cookie signed anew, where it is time for that."""
        return self._sign(session) if time.time() - session.seen > RENEW_SECONDS else None

    def seconds_left(self, session: Session) -> int:
        """Until the session ends by its age."""
        return max(0, int(session.begun + SESSION_SECONDS - time.time()))

    def has_ended(self, db: Database, session: Session) -> bool:
        """Whether it was logged out; read from the database once: none but this app logs out one session."""
        if self._ended is None:
            self._ended = dict(get_setting(db, _ENDED, {}))
        return session.id in self._ended

    def end(self, db: Database, session: Session) -> None:
        """Log it out: the cookie opens nothing any more, wherever a copy of it lies."""
        with self._lock:
            moment = time.time()
            known = {one: until for one, until in get_setting(db, _ENDED, {}).items() if until > moment}
            known[session.id] = session.begun + SESSION_SECONDS
            put_setting(db, _ENDED, known)
            self._ended = known

    def device(self, name: str) -> str:
        """A cookie for a browser in which this person has logged in."""
        return str(self._devices.dumps([name, secrets.token_urlsafe(9)]))

    def device_of(self, value: str | None, name: str) -> str:
        """The id of the person's own browser; empty for a strange one."""
        try:
            owner, number = self._devices.loads(value or "")
        except (BadSignature, ValueError, TypeError):
            return ""
        return str(number) if owner == name else ""

    def _sign(self, session: Session) -> str:
        return str(
            self._signer.dumps([session.name, session.era, session.begun, session.id, int(session.by_token)])
        )
