"""The journal in one SQLite file that all workers of a machine share.

Calls run in threads: neither a disk that hangs nor another worker's lock stops the event loop. One row a turn and
flush, not one a token; what is to be written while a transaction runs goes into the next one together. WAL with
synchronous=NORMAL survives kill -9 of any process; a power cut can take the last moments.
"""

import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import gevent

from ..access.allowance import UNLIMITED, Allowance
from ..errors import RelayError
from ..sse import Event
from . import AHEAD, LEASE, RUNNING, Batch, Begun, Entry, News, Wish, closing
from .codec import pack, unpack
from .outbox import Outbox
from .sqlite_allowance import Refusal, purge_beginnings, refusal, spend
from .sqlite_file import FAR_LEASE, PURGE_LIMIT, Channel, connect, forget, judges, unavailable
from .sqlite_outbox import SqliteOutbox, give_up_all, post, purge_holders, settle, tell_holder

POLL_FAST = 0.02  # seconds between two looks while someone here follows a turn of another worker
POLL_SLOW = 0.1  # seconds between two looks for wishes alone
NEWS_LIMIT = 512  # events of one turn that `news` brings at once, about
FAR = 1 << 62  # behind every cursor
DEAD_WORKER = 60.0  # seconds after its lease that a worker's row goes, and those of what it held
COLUMNS = "id, conversation, caller, began, fingerprint, status, last_id, reach, ended, mirrored"  # of Entry, in order
# How far a turn is that runs, its batches tell; to write it at each flush as well took a third of what the flush took.
# In the table it counts once the turn has ended.
KEPT = "coalesce((SELECT max(last_id) FROM batches WHERE turn = turns.id), 0)"
LAST_ID = f"CASE status WHEN 'running' THEN {KEPT} ELSE last_id END"
REACH = f"CASE status WHEN 'running' THEN {KEPT} + {AHEAD} ELSE reach END"
ENTRY = f"id, conversation, caller, began, fingerprint, status, {LAST_ID}, {REACH}, ended, mirrored"  # as it is read
MINE = "turns.id = row.column1 AND worker = ? AND status = 'running'"
ROWS = 32  # that one statement writes; more save nothing
PLACES = "(?, ?, ?, ?)"  # of a Row


class Row(NamedTuple):
    """A batch as it is written."""

    turn: str
    first: int
    last: int
    events: str


class SqliteJournal:
    """See `Journal` for the contract."""

    shared_fate = True  # one disk, one lock

    def __init__(
        self,
        path: Path,
        worker: str,
        retain: float,
        retain_undelivered: float,
        clock: Callable[[], float] = time.time,
        lease_clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`retain` and `retain_undelivered` are in seconds after a turn's end.

        Both clocks are the same for all workers of the machine. Nobody sets that of the leases: it counts from the
        machine's start.
        """
        self._path = path
        self._worker = worker
        self._retain = retain
        self._clock = clock
        self._lease_clock = lease_clock
        self._writing = Channel(path)
        self._reading = Channel(path)
        keep = max(retain, retain_undelivered)
        self.outbox: Outbox = SqliteOutbox(self._writing, self._reading, worker, keep, clock, lease_clock)
        self._watching: sqlite3.Connection | None = None
        self._version = -1
        self._seen: dict[str, int] = {}  # by turn, the cursor behind which that version holds nothing
        self._woken = False

    def begin(self, entry: Entry, key: str | None, allowance: Allowance = UNLIMITED) -> Begun:
        found = self._writing.write(
            lambda connection: begin(
                connection, self._worker, entry, key, allowance, self._clock(), self._lease_clock()
            )
        )
        if isinstance(found, RelayError):
            raise found
        return found

    def append(self, batches: Sequence[Batch]) -> Collection[str]:
        rows = [Row(batch.turn_id, *span(batch), pack(batch.events).decode()) for batch in batches]
        ends = {batch.turn_id: batch.status for batch in batches if batch.status != RUNNING}
        now = self._clock()
        return self._writing.write(lambda connection: append_rows(connection, self._worker, rows, ends, now))

    def read(self, turn_id: str, after: int, limit: int) -> list[Event]:
        return self._reading.read(lambda connection: read_events(connection, turn_id, after, limit))

    def find(self, turn_id: str) -> Entry | None:
        select = f"SELECT {ENTRY} FROM turns WHERE id = ?"  # noqa: S608
        row = self._reading.read(lambda connection: connection.execute(select, (turn_id,)).fetchone())
        return None if row is None else entry_of(row)

    def turns_of(self, conversation_id: str, caller: str, limit: int) -> list[Entry]:
        wanted = "conversation = ? AND caller = ? ORDER BY began DESC, id LIMIT ?"
        select = f"SELECT {ENTRY} FROM turns WHERE {wanted}"  # noqa: S608
        values = (conversation_id, caller, limit)
        rows = self._reading.read(lambda connection: connection.execute(select, values).fetchall())
        return [entry_of(row) for row in reversed(rows)]

    def news(self, cursors: Mapping[str, int], timeout: float) -> News:
        deadline = time.monotonic() + timeout
        pause = POLL_FAST if cursors else POLL_SLOW
        while True:
            version = self._data_version()
            if version != self._version or any(cursor < self._seen.get(turn, FAR) for turn, cursor in cursors.items()):
                news = self._look(cursors)
                if all(len(events) < NEWS_LIMIT for events in news.events.values()):
                    # All of that version was seen; what has come since changes the version again.
                    ends = {turn: events[-1].id for turn, events in news.events.items()}
                    self._version, self._seen = version, {**cursors, **ends}
                if any(news):
                    return news
            if self._woken or time.monotonic() >= deadline:
                self._woken = False
                return News({}, [])
            gevent.sleep(pause)

    def wake(self) -> None:
        self._woken = True

    def ask(self, turn_ids: Collection[str], wish: Wish) -> Collection[str]:
        wanted = list(turn_ids)
        running = self._reading.read(lambda connection: running_of(connection, wanted))
        if running:
            rows = [(wish, turn_id) for turn_id in running]
            insert = "INSERT OR IGNORE INTO wishes SELECT worker, id, ? FROM turns WHERE id = ? AND status = 'running'"
            self._writing.write(lambda connection: connection.executemany(insert, rows).rowcount)
        return running

    def renew(self) -> bool:
        return self._writing.write(lambda connection: renew(connection, self._worker, self._lease_clock()))

    def interrupt_orphans(self) -> Collection[str]:
        if not self._reading.read(lambda connection: orphans(connection, self._worker, self._lease_clock())):
            return []
        return self._writing.write(
            lambda connection: interrupt_orphans(connection, self._worker, self._clock(), self._lease_clock())
        )

    def purge(self) -> int:
        now, tick = self._clock(), self._lease_clock()
        return self._writing.write(lambda connection: purge(connection, now, tick, self._retain))

    def erase(self, conversation_id: str, caller: str) -> Collection[str]:
        names, erased = (conversation_id, caller), 0
        while True:
            # A full disk refuses to write: nothing is written where there is nothing.
            ended, running = self._reading.read(lambda connection: turns_by_state(connection, *names))
            if not ended:
                break
            erased += self._writing.write(lambda connection: erase_some(connection, *names, self._lease_clock()))
        if erased:
            self._writing.wipe()
        return running

    def secret(self, proposed: bytes) -> bytes:
        # A full disk refuses to write: nothing is written where there is one.
        kept = self._reading.read(secret_of)
        return kept or self._writing.write(lambda connection: keep_secret(connection, proposed))

    def close(self) -> None:
        try:
            self._writing.write(lambda connection: leave(connection, self._worker))
        finally:
            self._writing.close()
            self._reading.close()
            if self._watching is not None:
                self._watching.close()

    def _data_version(self) -> int:
        """Changes with every transaction of another connection. Takes microseconds: no thread for it."""
        try:
            if self._watching is None:
                self._watching = connect(self._path)
            (version,) = self._watching.execute("PRAGMA data_version").fetchone()
        except (sqlite3.Error, OSError) as error:
            raise unavailable(error) from None
        return int(version)

    def _look(self, cursors: Mapping[str, int]) -> News:
        events, wishes = self._reading.read(lambda connection: look(connection, self._worker, cursors))
        if wishes:
            rows = [(self._worker, *wish) for wish in wishes]
            delete = "DELETE FROM wishes WHERE worker = ? AND turn = ? AND wish = ?"
            self._writing.write(lambda connection: connection.executemany(delete, rows).rowcount)
        return News(events, wishes)


def begin(
    connection: sqlite3.Connection,
    worker: str,
    entry: Entry,
    key: str | None,
    allowance: Allowance,
    now: float,
    tick: float,
) -> Begun | Refusal:
    """`now` is in seconds since 1970; `tick`, here as below, in seconds of the leases' clock."""
    if allowance != UNLIMITED:
        earlier = None if key is None else find_key(connection, entry.caller, key)
        found = Begun(earlier) if earlier is not None else refusal(connection, entry.caller, allowance, now)
        if found is not None:
            return found
    fields = (*entry, worker, key)
    insert = f"INSERT INTO turns ({COLUMNS}, worker, key) VALUES ({', '.join('?' * len(fields))})"  # noqa: S608
    if key is not None:
        insert += " ON CONFLICT (caller, key) WHERE key IS NOT NULL DO NOTHING"
    if connection.execute(insert, fields).rowcount == 1:
        if entry.mirrored and entry.conversation_id is not None:
            post(connection, worker, entry, tick)
        return Begun(entry, spend(connection, entry.caller, allowance.rate, now) if allowance.rate else None)
    assert key is not None
    earlier = find_key(connection, entry.caller, key)
    assert earlier is not None
    return Begun(earlier)


def find_key(connection: sqlite3.Connection, caller: str, key: str) -> Entry | None:
    select = f"SELECT {ENTRY} FROM turns WHERE caller = ? AND key = ?"  # noqa: S608
    row = connection.execute(select, (caller, key)).fetchone()
    return None if row is None else entry_of(row)


def entry_of(row: Sequence[Any]) -> Entry:
    return Entry(*row)._replace(mirrored=bool(row[-1]))


def append_rows(
    connection: sqlite3.Connection, worker: str, rows: Sequence[Row], ends: Mapping[str, str], now: float
) -> list[str]:
    """`ends` are the statuses of the turns that end here. Returns the turns that another worker has ended."""
    latest = {row.turn: row for row in rows}
    insert = "INSERT OR IGNORE INTO batches SELECT row.column1, row.column3, row.column2, row.column4"
    kept = write_many(connection, f"{insert} FROM {{rows}} CROSS JOIN turns WHERE {MINE}", rows, worker)
    end = "UPDATE turns SET last_id = ?, reach = ?, status = ?, ended = ? WHERE id = ? AND worker = ? "
    end += "AND status = 'running'"
    for turn, status in ends.items():
        last = latest[turn].last
        kept += connection.execute(end, (last, last, status, now, turn, worker)).rowcount
    if kept == len(rows) + len(ends):
        return []
    select = "SELECT 1 FROM turns WHERE id = ? AND last_id > ?"
    return [row.turn for row in latest.values() if connection.execute(select, (row.turn, row.last)).fetchone()]


def write_many(connection: sqlite3.Connection, statement: str, rows: Sequence[Row], worker: str) -> int:
    """Runs `statement` for many rows at once; returns how many it has changed.

    Python gives up its lock for each step of a statement and fights the event loop for it afterwards: a step a row
    took a quarter of a token's CPU (300 streams of 20 tokens a second).
    """
    changed = 0
    for begin in range(0, len(rows), ROWS):
        some = rows[begin : begin + ROWS]
        places = ", ".join([PLACES] * len(some))
        values = [*chain.from_iterable(some), worker]
        changed += connection.execute(statement.format(rows=f"(VALUES {places}) AS row"), values).rowcount
    return changed


def span(batch: Batch) -> tuple[int, int]:
    """The ids of the first and the last event."""
    return batch.events[0].id, batch.events[-1].id


def read_events(connection: sqlite3.Connection, turn_id: str, after: int, limit: int) -> list[Event]:
    select = "SELECT first_id, events FROM batches WHERE turn = ? AND last_id > ? ORDER BY last_id"
    events: list[Event] = []
    for first, text in connection.execute(select, (turn_id, after)):
        events += unpack(first, text, events[-1].id if events else after)
        if len(events) >= limit:
            break
    return events


def look(
    connection: sqlite3.Connection, worker: str, cursors: Mapping[str, int]
) -> tuple[dict[str, list[Event]], list[tuple[str, Wish]]]:
    found = {turn: read_events(connection, turn, cursor, NEWS_LIMIT) for turn, cursor in cursors.items()}
    wishes = connection.execute("SELECT turn, wish FROM wishes WHERE worker = ?", (worker,)).fetchall()
    return {turn: events for turn, events in found.items() if events}, wishes


def running_of(connection: sqlite3.Connection, turn_ids: Sequence[str]) -> list[str]:
    select = "SELECT 1 FROM turns WHERE id = ? AND status = 'running'"
    return [turn_id for turn_id in turn_ids if connection.execute(select, (turn_id,)).fetchone()]


def renew(connection: sqlite3.Connection, worker: str, tick: float) -> bool:
    update = "UPDATE workers SET lease = ? WHERE id = ? AND lease BETWEEN ? AND ?"
    if connection.execute(update, (tick + LEASE, worker, tick, tick + FAR_LEASE)).rowcount == 1:
        return True
    put = "INSERT OR REPLACE INTO workers VALUES (?, ?, ?)"
    connection.execute(put, (worker, tick + LEASE, tick))
    return False


def orphans(connection: sqlite3.Connection, worker: str, tick: float) -> list[tuple[str, int]]:
    """Running turns of workers whose lease is over, or was taken before the machine was started."""
    select = (
        f"SELECT turns.id, {REACH} FROM turns LEFT JOIN workers ON workers.id = turns.worker "  # noqa: S608
        "WHERE turns.status = 'running' AND turns.worker <> ? AND coalesce(workers.lease, 0) NOT BETWEEN ? AND ?"
    )
    return connection.execute(select, (worker, tick, tick + FAR_LEASE)).fetchall()


def interrupt_orphans(connection: sqlite3.Connection, worker: str, now: float, tick: float) -> list[str]:
    if not judges(connection, worker, tick):
        return []
    found = orphans(connection, worker, tick)
    for turn_id, reach in found:
        batch = Batch(turn_id, closing(reach))
        last = batch.events[-1].id
        row = (turn_id, last, batch.events[0].id, pack(batch.events).decode())
        connection.execute("INSERT INTO batches VALUES (?, ?, ?, ?)", row)
        update = "UPDATE turns SET last_id = ?, reach = ?, status = ?, ended = ? WHERE id = ?"
        connection.execute(update, (last, last, batch.status, now, turn_id))
    return [turn_id for turn_id, _ in found]


def purge(connection: sqlite3.Connection, now: float, tick: float, retain: float) -> int:
    select = "SELECT id FROM turns WHERE ended <= ? AND place IS NULL LIMIT ?"
    old = [turn_id for (turn_id,) in connection.execute(select, (now - retain, PURGE_LIMIT))]
    forget(connection, old)
    purge_holders(connection, tick - DEAD_WORKER, tick + FAR_LEASE)
    purge_beginnings(connection, now)
    return len(old)


def turns_by_state(connection: sqlite3.Connection, conversation: str, caller: str) -> tuple[list[str], list[str]]:
    """What this caller began in a conversation: the turns that have ended, and those that run."""
    # One statement, which sees one moment: no turn ends between two looks.
    select = "SELECT id, status FROM turns WHERE conversation = ? AND caller = ?"
    rows = connection.execute(select, (conversation, caller)).fetchall()
    ended = [turn_id for turn_id, status in rows if status != RUNNING]
    return ended, [turn_id for turn_id, status in rows if status == RUNNING]


def erase_some(connection: sqlite3.Connection, conversation: str, caller: str, tick: float) -> int:
    ended = turns_by_state(connection, conversation, caller)[0][:PURGE_LIMIT]
    select = "SELECT 1 FROM turns WHERE id = ? AND place IS NOT NULL"
    is_undelivered = any(connection.execute(select, (turn_id,)).fetchone() for turn_id in ended)
    forget(connection, ended)
    if is_undelivered:
        settle(connection, [conversation])
        tell_holder(connection, conversation, tick)
    return len(ended)


def secret_of(connection: sqlite3.Connection) -> bytes:
    row = connection.execute("SELECT secret FROM secrets").fetchone()
    return b"" if row is None else bytes(row[0])


def keep_secret(connection: sqlite3.Connection, proposed: bytes) -> bytes:
    connection.execute("INSERT OR IGNORE INTO secrets VALUES (1, ?)", (proposed,))
    return secret_of(connection)


def leave(connection: sqlite3.Connection, worker: str) -> None:
    """Gives up the lease and all that hangs on it."""
    give_up_all(connection, worker)
    connection.execute("DELETE FROM wishes WHERE worker = ?", (worker,))
    connection.execute("DELETE FROM workers WHERE id = ?", (worker,))
