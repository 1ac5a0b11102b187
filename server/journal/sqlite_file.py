"""The SQLite file: its tables, the threads that use it, and whose lease holds there."""

import os
import sqlite3
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import StoreUnavailable
from . import FRESH, LEASE
from .group import Group

T = TypeVar("T")

BUSY_TIMEOUT = (
    1.0  # seconds that a transaction waits for another's; a worker's takes milliseconds, a backup may hold on
)
FAR_LEASE = LEASE + 1.0  # seconds; no lease ends later than so long from now, but for one from before a restart
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
    "ALTER TABLE workers ADD COLUMN broken REAL NOT NULL DEFAULT 0",  # when it took its lease
]
LIVING = "SELECT id FROM workers WHERE lease BETWEEN :now AND :far"


Job = Callable[[sqlite3.Connection], Any]


class Task(NamedTuple):
    """What someone wants of the file; one that writes may go into a transaction with others."""

    job: Job
    writes: bool


class Outcome(NamedTuple):
    value: Any = None
    error: Exception | None = None


class Channel:
    """One connection, used by one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tasks: Group[Task, Outcome] = Group(self._do)
        self._connection: sqlite3.Connection | None = None

    def read(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `job`. Raises StoreUnavailable."""
        return self._run(Task(job, writes=False))  # type: ignore[no-any-return]  # a task's type is not known

    def write(self, job: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `job` in one transaction, maybe with others. Raises StoreUnavailable, having changed nothing.

        `job` may run a second time, after the first was undone.
        """
        return self._run(Task(job, writes=True))  # type: ignore[no-any-return]

    def wipe(self) -> None:
        """Takes what was deleted out of the log file as well; it stays there a while when others read just now."""
        self.read(lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone())

    def close(self) -> None:
        if self._connection is not None:
            self.read(lambda connection: connection.close())
            self._connection = None
        self._tasks.end()

    def _run(self, task: Task) -> Any:
        value, error = self._tasks.call(task)
        if isinstance(error, sqlite3.Error | OSError):
            raise unavailable(error) from None
        if error is not None:
            raise error
        return value

    def _do(self, tasks: Sequence[Task]) -> list[Outcome]:
        """In the thread."""
        try:
            if self._connection is None:
                self._connection = connect(self._path)
        except (sqlite3.Error, OSError) as error:
            return [Outcome(error=error)] * len(tasks)
        connection = self._connection
        if len(tasks) > 1 and all(task.writes for task in tasks):
            jobs = [task.job for task in tasks]
            together = outcome(lambda: in_transaction(connection, lambda _: [job(connection) for job in jobs]))
            if together.error is None:
                return [Outcome(value) for value in together.value]
            if is_busy(together.error):  # so it would be for each
                return [together] * len(tasks)
        return [
            outcome(partial(in_transaction, connection, job) if writes else partial(job, connection))
            for job, writes in tasks
        ]


def outcome(do: Callable[[], Any]) -> Outcome:
    try:
        return Outcome(do())
    except Exception as error:  # noqa: BLE001 - it is raised where the greenlet waits
        return Outcome(error=error)


def is_busy(error: Exception) -> bool:
    """Whether another worker has not let go of the lock for as long as we wait."""
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


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
    # The one thread may be replaced by another: never two at a time.
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


def judges(connection: sqlite3.Connection, worker: str, tick: float) -> bool:
    """Whether this worker may call the leases of others ended; see `Journal`.

    This transaction may have waited for its turn; the living could not renew meanwhile either.
    """
    renewed = "SELECT 1 FROM workers WHERE id = ? AND lease BETWEEN ? AND ? AND broken <= ?"
    values = (worker, tick + LEASE - FRESH, tick + FAR_LEASE, tick - LEASE)
    return connection.execute(renewed, values).fetchone() is not None


def forget(connection: sqlite3.Connection, turn_ids: Collection[str]) -> None:
    rows = [(turn_id,) for turn_id in turn_ids]
    for table, column in (("batches", "turn"), ("wishes", "turn"), ("turns", "id")):
        connection.executemany(f"DELETE FROM {table} WHERE {column} = ?", rows)  # noqa: S608
