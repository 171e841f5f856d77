"""Connections and transactions.

A connection is opened for each call and closed after it: Gradio runs synchronous callbacks in other threads,
and sqlite3 refuses a connection that was opened elsewhere.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlite_utils import Database

from storage.errors import DatabaseBusy, DatabaseTooNew, UserError
from storage.folder import DataFolder
from storage.migrations import migrations

BUSY_SECONDS = 10.0
LOOKS = 0.003  #: seconds between two looks for the write lock


def connect(folder: DataFolder, busy_seconds: float = BUSY_SECONDS, create: bool = False) -> Database:
    """Open the database as it is: WAL, foreign keys on, a busy timeout. The caller closes it.

    Args:
        create: make the file where there is none. Else a folder that was moved away under a process that is at
            work on it, for a restore say, gets no empty database in its place.

    Raises:
        UserError: there is no such file, or it is not a SQLite database.
        DatabaseBusy: another process holds it.
    """
    place = f"{folder.database.absolute().as_uri()}?mode={'rwc' if create else 'rw'}"
    try:
        # isolation_level None: no transaction begins behind our back; `immediate` begins them.
        connection = sqlite3.connect(
            place, uri=True, timeout=busy_seconds, isolation_level=None, check_same_thread=False
        )
    except sqlite3.OperationalError as error:
        raise _translated(error, folder) from error
    try:
        _use_wal(connection, busy_seconds)
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = NORMAL")
    except sqlite3.OperationalError as error:
        connection.close()
        raise _translated(error, folder) from error
    except sqlite3.DatabaseError as error:
        connection.close()
        raise UserError(
            f"{folder.database} is not a SQLite database ({error}). "
            "Move it away or restore a backup made by `python -m storage backup`."
        ) from error
    return Database(connection)


def _use_wal(connection: sqlite3.Connection, busy_seconds: float) -> None:
    """Switch to WAL. SQLite fails at once where others switch just then, whatever the busy timeout."""
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def migrate(folder: DataFolder, busy_seconds: float = BUSY_SECONDS) -> list[str]:
    """Bring the database to this version; returns the names of the migrations that ran.

    Raises:
        DatabaseTooNew: it has migrations that this version does not know; it is left as it is.
        DatabaseBusy: another process holds the write lock.
    """
    db = connect(folder, busy_seconds, create=True)
    try:
        refuse_newer(db, folder)
        if not migrations.pending(db):
            return []
        with immediate(db):  # two processes may start at once: the second finds nothing pending
            names = [migration.name for migration in migrations.pending(db)]
            migrations.apply(db)
        return names
    finally:
        db.close()


def refuse_newer(db: Database, folder: DataFolder) -> None:
    """Raise `DatabaseTooNew` if the database has a migration that this version has not."""
    ours = {migration.name for migration in migrations.pending(Database(memory=True))}
    foreign = sorted({migration.name for migration in migrations.applied(db)} - ours)
    if foreign:
        raise DatabaseTooNew(
            f"{folder.database} was written by a newer Plumb (it has {', '.join(foreign)}, unknown here). "
            "Update Plumb, or point --data at another folder. Nothing was changed."
        )


@contextmanager
def session(folder: DataFolder, busy_seconds: float = BUSY_SECONDS) -> Iterator[Database]:
    """A connection for one call. Lock errors come out as `DatabaseBusy`."""
    db = connect(folder, busy_seconds)
    try:
        yield db
    except sqlite3.OperationalError as error:
        raise _translated(error, folder) from error
    finally:
        db.close()


@contextmanager
def immediate(db: Database) -> Iterator[Database]:
    """A write transaction that takes its lock at the start.

    A deferred one that reads, meets a foreign write and then writes fails at once, whatever the busy
    timeout. Inside an open transaction this is a plain block of it.
    """
    if db.conn.in_transaction:
        yield db
        return
    _begin(db.conn)
    try:
        yield db
        db.conn.execute("COMMIT")
    except BaseException:
        _roll_back(db)
        raise


def _begin(connection: sqlite3.Connection) -> None:
    """Take the write lock, looking for it every few milliseconds up to the busy timeout.

    SQLite's own waiting soon looks only ten times a second: beside a job whose results are stored in one
    transaction after the other, a person's save would find the lock taken for seconds.
    """
    waits = int(connection.execute("PRAGMA busy_timeout").fetchone()[0])
    deadline = time.monotonic() + waits / 1000
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if not isinstance(_translated(error, None), DatabaseBusy) or time.monotonic() >= deadline:
                    raise _translated(error, None) from error
            time.sleep(LOOKS)
    finally:
        connection.execute(f"PRAGMA busy_timeout = {waits}")


def _roll_back(db: Database) -> None:
    if db.conn.in_transaction:  # on a full disk SQLite may have done so by itself
        db.conn.execute("ROLLBACK")


@contextmanager
def snapshot(db: Database) -> Iterator[Database]:
    """Reads that all see the database as it is at the first of them; nobody who writes waits.

    Inside an open transaction this is a plain block of it.
    """
    if db.conn.in_transaction:
        yield db
        return
    db.conn.execute("BEGIN")
    try:
        yield db
    finally:
        db.conn.execute("ROLLBACK")


def _translated(error: sqlite3.OperationalError, folder: DataFolder | None) -> Exception:
    if "locked" in str(error) or "busy" in str(error):
        where = f" {folder.database}" if folder else ""
        return DatabaseBusy(
            f"The database{where} is held by another process. Nothing was written; try again, "
            "and end the program that holds it open if this goes on."
        )
    if folder and "unable to open" in str(error):
        return UserError(f"The database {folder.database} cannot be opened; check that it is there.")
    return error
