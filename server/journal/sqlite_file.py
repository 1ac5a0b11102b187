"""The SQLite file: its tables, the threads that use it, and whose lease holds there."""

import os
import sqlite3
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from gevent.threadpool import ThreadPool

from ..errors import StoreUnavailable
from . import LEASE, RENEW_INTERVAL

T = TypeVar("T")

BUSY_TIMEOUT = (
    1.0  # seconds that a transaction waits for another's; a worker's takes milliseconds, a backup may hold on
)
FAR_LEASE = LEASE + 1.0  # seconds; no lease ends later than so long from now, but for a clock that was set back
FRESH = 2 * RENEW_INTERVAL  # seconds since its own renewal in which a worker may judge others
PURGE_LIMIT = 500  # turns a transaction
SCHEMA = [  # one script a version; PRAGMA user_version counts those that were run
    """
    CREATE TABLE turns (
        id TEXT PRIMARY KEY, conversation TEXT, caller TEXT NOT NULL, key TEXT, fingerprint TEXT NOT NULL,
        worker TEXT NOT NULL, began REAL NOT NULL, ended REAL, status TEXT NOT NULL,
        last_id INTEGER NOT NULL, reach INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE UNIQUE INDEX turns_by_key ON turns (caller, key) WHERE key IS NOT NULL;
    CREATE INDEX turns_by_conversation ON turns (conversation, began) WHERE conversation IS NOT NULL;
    CREATE INDEX turns_running ON turns (worker) WHERE status = 'running';
    CREATE INDEX turns_ended ON turns (ended) WHERE ended IS NOT NULL;
    CREATE TABLE batches (
        turn TEXT NOT NULL, last_id INTEGER NOT NULL, first_id INTEGER NOT NULL, events TEXT NOT NULL,
        PRIMARY KEY (turn, last_id)
    ) WITHOUT ROWID;
    CREATE TABLE workers (id TEXT PRIMARY KEY, lease REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE wishes (
        worker TEXT NOT NULL, turn TEXT NOT NULL, wish TEXT NOT NULL, PRIMARY KEY (worker, turn, wish)
    ) WITHOUT ROWID;
    """,
    # The outbox is the turns that have a place; the holder of what nobody holds is ''.
    """
    ALTER TABLE turns ADD COLUMN mirrored INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE turns ADD COLUMN place INTEGER;
    ALTER TABLE turns ADD COLUMN arrived INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE turns ADD COLUMN reason TEXT;
    DROP INDEX turns_ended;
    CREATE INDEX turns_ended ON turns (ended) WHERE ended IS NOT NULL AND place IS NULL;
    CREATE INDEX outbox ON turns (place) WHERE place IS NOT NULL;
    CREATE INDEX outbox_by_conversation ON turns (conversation, place) WHERE place IS NOT NULL;
    CREATE INDEX outbox_ended ON turns (ended) WHERE ended IS NOT NULL AND place IS NOT NULL;
    CREATE INDEX outbox_parked ON turns (place) WHERE reason IS NOT NULL;
    CREATE TABLE holders (conversation TEXT PRIMARY KEY, worker TEXT NOT NULL) WITHOUT ROWID;
    CREATE INDEX holders_by_worker ON holders (worker);
    """,
    "CREATE TABLE secrets (number INTEGER PRIMARY KEY CHECK (number = 1), secret BLOB NOT NULL)",
    """
    DROP INDEX turns_running;
    CREATE INDEX turns_running ON turns (caller, worker) WHERE status = 'running';
    DROP INDEX turns_by_conversation;
    CREATE INDEX turns_by_conversation ON turns (conversation, caller, began) WHERE conversation IS NOT NULL;
    CREATE TABLE beginnings (
        caller TEXT NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (caller, number)
    ) WITHOUT ROWID;
    CREATE INDEX beginnings_by_time ON beginnings (at);
    """,
    "ALTER TABLE workers ADD COLUMN broken REAL NOT NULL DEFAULT 0",  # when its lease had last run out, for its clock
]
LIVING = "SELECT id FROM workers WHERE lease BETWEEN :now AND :far"


class Channel:
    """One connection, used by one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPool(1)
        self._connection: sqlite3.Connection | None = None

    def read(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `job`. Raises StoreUnavailable."""
        return self._run(job)

    def write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `job` in one transaction. Raises StoreUnavailable, having changed nothing."""
        return self._run(lambda connection: in_transaction(connection, job))

    def wipe(self) -> None:
        """Takes what was deleted out of the log file as well; it stays there a while when others read just now."""
        self._run(lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone())

    def close(self) -> None:
        if self._connection is not None:
            self._thread.apply(self._connection.close)
        self._thread.kill()

    def _run(self, job: Callable[[sqlite3.Connection], T]) -> T:
        result, error = self._thread.apply(self._try, (job,))
        if error is not None:
            raise unavailable(error) from None
        return result  # type: ignore[no-any-return]  # gevent's pool has no types

    def _try(self, job: Callable[[sqlite3.Connection], T]) -> tuple[T | None, Exception | None]:
        # gevent prints what is raised in a thread: errors come back as values.
        try:
            if self._connection is None:
                self._connection = connect(self._path)
            return job(self._connection), None
        except (sqlite3.Error, OSError) as error:
            return None, error


def unavailable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(detail=f"{type(error).__name__}: {error}", retry_after=2)


def prepare(path: Path) -> None:
    """Makes the file, for its owner's eyes alone, and brings its tables up to date. Raises OSError or sqlite3.Error."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        in_transaction(connection, migrate)
    finally:
        connection.close()


def migrate(connection: sqlite3.Connection) -> None:
    version = version_of(connection)
    if version > len(SCHEMA):
        raise sqlite3.DatabaseError(f"the file is of a newer version ({version}) than this server ({len(SCHEMA)})")
    for number, script in enumerate(SCHEMA[version:], version + 1):
        for statement in script.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")


def version_of(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def connect(path: Path) -> sqlite3.Connection:
    if not path.exists():
        prepare(path)
    # The pool's one thread may be replaced by another: never two at a time.
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = NORMAL")
    # What is deleted is overwritten: who may read the file finds nothing.
    connection.execute("PRAGMA secure_delete = ON")
    if version_of(connection) != len(SCHEMA):  # an app that mounts the relay has no master that called `prepare`
        in_transaction(connection, migrate)
    return connection


def in_transaction(connection: sqlite3.Connection, job: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = job(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def judges(connection: sqlite3.Connection, worker: str, now: float) -> bool:
    """Whether this worker has renewed its lease so lately that it may call the leases of others ended.

    This transaction may have waited for its turn; the living could not renew meanwhile either. When its own lease had
    run out, or the clock was set, theirs may have as well: they get the time for two renewals.
    """
    renewed = "SELECT 1 FROM workers WHERE id = ? AND lease BETWEEN ? AND ? AND broken NOT BETWEEN ? AND ?"
    values = (worker, now + LEASE - FRESH, now + FAR_LEASE, now - FRESH, now)
    return connection.execute(renewed, values).fetchone() is not None


def forget(connection: sqlite3.Connection, turn_ids: Collection[str]) -> None:
    rows = [(turn_id,) for turn_id in turn_ids]
    for table, column in (("batches", "turn"), ("wishes", "turn"), ("turns", "id")):
        connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", rows)  # noqa: S608
