"""The callers' allowances in the SQLite engine.

Each caller's beginnings have consecutive numbers: the one that is N back is found at once, however large N is.
"""

import sqlite3

from ..access.allowance import AT_ONCE_RETRY, LONGEST, Allowance, Rate, Standing
from ..errors import TooManyRequests, TooManyTurnsOfCaller

Refusal = TooManyRequests | TooManyTurnsOfCaller
PURGE_LIMIT = 5000  # beginnings a transaction


def refusal(connection: sqlite3.Connection, caller: str, allowance: Allowance, now: float) -> Refusal | None:
    """Why this caller may not begin one more turn now."""
    if allowance.rate is not None:
        left = wait(connection, caller, allowance.rate, now)
        if left > 0.0:
            return TooManyRequests(allowance.rate.turns, left)
    if allowance.at_once is not None:
        select = "SELECT count(*) FROM turns WHERE caller = ? AND status = 'running'"
        if connection.execute(select, (caller,)).fetchone()[0] >= allowance.at_once:
            return TooManyTurnsOfCaller(retry_after=AT_ONCE_RETRY)
    return None


def wait(connection: sqlite3.Connection, caller: str, rate: Rate, now: float) -> float:
    """Seconds until the rate lets one more through."""
    newest, at = last(connection, caller)
    if at > now:
        # Of a clock that was set back: they count from now on, which is later than they were.
        connection.execute("UPDATE beginnings SET at = ? WHERE caller = ? AND at > ?", (now, caller, now))
    select = "SELECT at FROM beginnings WHERE caller = ? AND number = ?"
    oldest = connection.execute(select, (caller, newest - rate.turns + 1)).fetchone()
    return 0.0 if oldest is None else max(0.0, oldest[0] + rate.seconds - now)


def spend(connection: sqlite3.Connection, caller: str, rate: Rate, now: float) -> Standing:
    """Notes that a turn has begun, for which there was no refusal."""
    newest = last(connection, caller)[0] + 1
    connection.execute("INSERT INTO beginnings VALUES (?, ?, ?)", (caller, newest, now))
    select = "SELECT number, at FROM beginnings WHERE caller = ? AND number > ? AND at + ? > ? ORDER BY number LIMIT 1"
    oldest, at = connection.execute(select, (caller, newest - rate.turns, rate.seconds, now)).fetchone()
    connection.execute("DELETE FROM beginnings WHERE caller = ? AND number < ?", (caller, oldest))
    return Standing(rate.turns, rate.turns - (newest - oldest + 1), at + rate.seconds - now)


def last(connection: sqlite3.Connection, caller: str) -> tuple[int, float]:
    """Number and time of the caller's newest beginning."""
    select = "SELECT number, at FROM beginnings WHERE caller = ? ORDER BY number DESC LIMIT 1"
    return connection.execute(select, (caller,)).fetchone() or (0, 0.0)


def purge_beginnings(connection: sqlite3.Connection, now: float) -> None:
    """Forgets some that count for no rate."""
    old = "SELECT caller, number FROM beginnings WHERE at <= ? ORDER BY at, caller, number LIMIT ?"
    delete = f"DELETE FROM beginnings WHERE (caller, number) IN ({old})"  # noqa: S608
    connection.execute(delete, (now - LONGEST, PURGE_LIMIT))
