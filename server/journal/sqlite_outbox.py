"""The outbox of the SQLite engine: the turns that have a place, and who holds their conversations.

A row of `holders` names the worker that claimed the conversation, dead or alive; '' stands in for it where turns are
pending and nobody does.
"""

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from . import Entry
from .outbox import MAX_REASON, WINDOW, Delivery, Parcel, Receipt, State, no_lease
from .sqlite_file import FAR_LEASE, LIVING, PURGE_LIMIT, Channel, forget, judges

T = TypeVar("T")

PENDING = "SELECT 1 FROM turns WHERE turns.conversation = {} AND place IS NOT NULL AND reason IS NULL"
DELIVERY = "id, conversation, place, arrived, reason"  # the columns that `delivery_of` takes


class SqliteOutbox:
    """See `Outbox` for the contract."""

    def __init__(
        self,
        writing: Channel,
        reading: Channel,
        worker: str,
        keep: float,
        clock: Callable[[], float],
        lease_clock: Callable[[], float],
    ) -> None:
        """`keep` is in seconds after an undelivered turn's end; the clocks are those of `SqliteJournal`."""
        self._writing = writing
        self._reading = reading
        self._worker = worker
        self._keep = keep
        self._clock = clock
        self._lease_clock = lease_clock

    def claim(self, conversation_ids: Collection[str]) -> Mapping[str, Sequence[Parcel]]:
        wanted = list(conversation_ids)
        return leased(
            self._writing.write(lambda connection: claim(connection, self._worker, wanted, self._lease_clock()))
        )

    def release(self, conversation_ids: Collection[str]) -> None:
        names = list(conversation_ids)
        self._writing.write(lambda connection: give_up(connection, self._worker, names))

    def unheld(self, limit: int) -> Collection[str]:
        return self._reading.read(lambda connection: unheld(connection, self._lease_clock(), limit))

    def confirm(self, receipts: Sequence[Receipt]) -> Collection[str]:
        return self._writing.write(lambda connection: confirm(connection, self._worker, receipts, self._lease_clock()))

    def park(self, conversation_id: str, reason: str) -> Collection[str]:
        names = conversation_id, reason[:MAX_REASON]
        return leased(
            self._writing.write(lambda connection: park(connection, self._worker, *names, self._lease_clock()))
        )

    def retry(self, conversation_id: str | None = None) -> Collection[str]:
        found: list[str] = []
        while piece := self._writing.write(lambda connection: retry(connection, conversation_id)):
            found += piece
        return found

    def find(self, turn_id: str) -> Delivery | None:
        select = f"SELECT {DELIVERY} FROM turns WHERE id = ? AND mirrored AND conversation IS NOT NULL"  # noqa: S608
        row = self._reading.read(lambda connection: connection.execute(select, (turn_id,)).fetchone())
        return None if row is None else delivery_of(row)

    def undelivered(self, limit: int) -> list[Delivery]:
        select = f"SELECT {DELIVERY} FROM turns WHERE place IS NOT NULL ORDER BY place LIMIT ?"  # noqa: S608
        rows = self._reading.read(lambda connection: connection.execute(select, (limit,)).fetchall())
        return [delivery_of(row) for row in rows]

    def expire(self) -> Collection[Delivery]:
        horizon = self._clock() - self._keep
        if not self._reading.read(lambda connection: expired(connection, horizon)):
            return []
        return self._writing.write(lambda connection: expire(connection, horizon))


def post(connection: sqlite3.Connection, worker: str, entry: Entry, tick: float) -> None:
    """Puts a turn that begins into the outbox, and tells the holder where that is another living worker."""
    last = "SELECT max(place) FROM turns WHERE place IS NOT NULL"
    update = f"UPDATE turns SET place = 1 + coalesce(({last}), 0) WHERE id = ?"  # noqa: S608
    connection.execute(update, (entry.id,))
    loose = "INSERT OR IGNORE INTO holders VALUES (?, '')"
    if connection.execute(loose, (entry.conversation_id,)).rowcount == 0:
        tell_holder(connection, entry.conversation_id, tick, but=worker)


def tell_holder(connection: sqlite3.Connection, conversation: str | None, tick: float, but: str = "") -> None:
    """The conversation's outbox has changed; `but` is a worker that knows."""
    tell = (
        "INSERT OR IGNORE INTO wishes SELECT worker, conversation, 'deliver' FROM holders "  # noqa: S608
        f"WHERE conversation = :conversation AND worker <> :worker AND worker IN ({LIVING})"
    )
    connection.execute(tell, {"conversation": conversation, **judge(but, tick)})


def claim(
    connection: sqlite3.Connection, worker: str, conversations: Sequence[str], tick: float
) -> dict[str, list[Parcel]] | None:
    """None without a lease."""
    if not lives(connection, worker, tick):
        return None
    free = "worker IN ('', :worker)"
    if judges(connection, worker, tick):
        free += f" OR worker NOT IN ({LIVING})"
    take = (
        "INSERT INTO holders VALUES (:conversation, :worker) "  # noqa: S608
        f"ON CONFLICT (conversation) DO UPDATE SET worker = :worker WHERE {free}"
    )
    rows = [{"conversation": name, **judge(worker, tick)} for name in conversations]
    held = [row["conversation"] for row in rows if connection.execute(take, row).rowcount == 1]
    unpark = "UPDATE turns SET reason = NULL WHERE conversation = ? AND place IS NOT NULL AND reason IS NOT NULL"
    connection.executemany(unpark, [(name,) for name in held])
    select = "SELECT id, arrived FROM turns WHERE conversation = ? AND place IS NOT NULL ORDER BY place LIMIT ?"
    return {name: [Parcel(*row) for row in connection.execute(select, (name, WINDOW))] for name in held}


def give_up(connection: sqlite3.Connection, worker: str, conversations: Collection[str]) -> None:
    """Leaves those that this worker holds to whoever claims them."""
    delete = "DELETE FROM holders WHERE conversation = ? AND worker = ?"
    given = [name for name in conversations if connection.execute(delete, (name, worker)).rowcount == 1]
    loose = f"INSERT INTO holders SELECT ?1, '' WHERE EXISTS ({PENDING.format('?1')})"
    connection.executemany(loose, [(name,) for name in given])


def give_up_all(connection: sqlite3.Connection, worker: str) -> None:
    held = connection.execute("SELECT conversation FROM holders WHERE worker = ?", (worker,)).fetchall()
    give_up(connection, worker, [name for (name,) in held])


def unheld(connection: sqlite3.Connection, tick: float, limit: int) -> list[str]:
    # From the few workers that are not alive to what they held: what the living hold is not looked at.
    dead = "SELECT id FROM workers WHERE lease NOT BETWEEN :now AND :far"
    select = (
        f"SELECT conversation FROM holders WHERE worker IN (SELECT '' UNION ALL {dead}) "  # noqa: S608
        f"AND EXISTS ({PENDING.format('holders.conversation')}) LIMIT :limit"
    )
    return [name for (name,) in connection.execute(select, {"limit": limit, **judge("", tick)})]


def confirm(connection: sqlite3.Connection, worker: str, receipts: Sequence[Receipt], tick: float) -> list[str]:
    """Returns the turns of conversations that another living worker holds."""
    select = (
        "SELECT conversation, coalesce(holders.worker, '') FROM turns LEFT JOIN holders USING (conversation) "
        "WHERE id = ? AND place IS NOT NULL"
    )
    update = (
        "UPDATE turns SET arrived = max(arrived, :cursor), place = CASE WHEN :whole THEN NULL ELSE place END, "
        "reason = CASE WHEN :whole THEN NULL ELSE reason END WHERE id = :turn_id"
    )
    lost = []
    for receipt in receipts:
        match connection.execute(select, (receipt.turn_id,)).fetchone():
            case (conversation, holder) if holder == worker or not lives(connection, holder, tick):
                connection.execute(update, receipt._asdict())
                if receipt.whole and not holder:  # it was given up meanwhile
                    settle(connection, [conversation])
            case (_, _):
                lost.append(receipt.turn_id)
    return lost


def park(connection: sqlite3.Connection, worker: str, conversation: str, reason: str, tick: float) -> list[str] | None:
    """None without a lease."""
    if not lives(connection, worker, tick):
        return None
    delete = "DELETE FROM holders WHERE conversation = ? AND worker = ?"
    if connection.execute(delete, (conversation, worker)).rowcount == 0:
        return []
    select = "SELECT id FROM turns WHERE conversation = ? AND place IS NOT NULL ORDER BY place"
    parked = [turn_id for (turn_id,) in connection.execute(select, (conversation,))]
    connection.executemany("UPDATE turns SET reason = ? WHERE id = ?", [(reason, turn_id) for turn_id in parked])
    return parked


def retry(connection: sqlite3.Connection, conversation: str | None) -> list[str]:
    """Some hundreds at a time: other workers' transactions come in between."""
    select = (
        "SELECT id, conversation FROM turns "
        "WHERE reason IS NOT NULL AND (?1 IS NULL OR conversation = ?1) ORDER BY place LIMIT ?2"
    )
    rows = connection.execute(select, (conversation, PURGE_LIMIT)).fetchall()
    connection.executemany("UPDATE turns SET reason = NULL WHERE id = ?", [(turn_id,) for turn_id, _ in rows])
    connection.executemany("INSERT OR IGNORE INTO holders VALUES (?, '')", {(name,) for _, name in rows})
    return [turn_id for turn_id, _ in rows]


def expired(connection: sqlite3.Connection, horizon: float) -> list[Delivery]:
    select = f"SELECT {DELIVERY} FROM turns WHERE place IS NOT NULL AND ended <= ? LIMIT ?"  # noqa: S608
    return [delivery_of(row) for row in connection.execute(select, (horizon, PURGE_LIMIT))]


def expire(connection: sqlite3.Connection, horizon: float) -> list[Delivery]:
    found = expired(connection, horizon)
    forget(connection, [delivery.turn_id for delivery in found])
    settle(connection, {delivery.conversation_id for delivery in found})
    return found


def settle(connection: sqlite3.Connection, conversations: Collection[str]) -> None:
    """Some of their turns have left the outbox: where none is pending, no holder is looked for."""
    pending = PENDING.format("?1")
    delete = f"DELETE FROM holders WHERE conversation = ?1 AND worker = '' AND NOT EXISTS ({pending})"  # noqa: S608
    connection.executemany(delete, [(name,) for name in conversations])


def purge_holders(connection: sqlite3.Connection, before: float, behind: float) -> None:
    """Forgets workers that died long ago, with what they held and were to be told: whose leases ended before one tick,
    or, taken before the machine was started, end behind another."""
    is_dead = "lease NOT BETWEEN ? AND ?"
    dead = f"SELECT id FROM workers WHERE {is_dead}"  # noqa: S608
    select = f"SELECT worker, conversation FROM holders WHERE worker IN ({dead}) LIMIT ?"  # noqa: S608
    for worker, name in connection.execute(select, (before, behind, PURGE_LIMIT)).fetchall():
        give_up(connection, worker, [name])
    connection.execute(f"DELETE FROM wishes WHERE worker IN ({dead})", (before, behind))  # noqa: S608
    held = "SELECT 1 FROM holders WHERE worker = workers.id"
    gone = f"DELETE FROM workers WHERE {is_dead} AND NOT EXISTS ({held})"  # noqa: S608
    connection.execute(gone, (before, behind))


def leased(found: T | None) -> T:
    if found is None:
        raise no_lease()
    return found


def lives(connection: sqlite3.Connection, worker: str, tick: float) -> bool:
    select = f"SELECT 1 WHERE :worker IN ({LIVING})"
    return connection.execute(select, judge(worker, tick)).fetchone() is not None


def judge(worker: str, tick: float) -> dict[str, Any]:
    """The parameters of LIVING and who asks."""
    return {"worker": worker, "now": tick, "far": tick + FAR_LEASE}


def delivery_of(row: tuple[str, str, int | None, int, str | None]) -> Delivery:
    turn_id, conversation, place, arrived, reason = row
    state: State = "delivered" if place is None else "pending" if reason is None else "parked"
    return Delivery(turn_id, conversation, state, arrived, reason)
