"""The store, used through the engine that the server uses; no turn is touched."""

import os
import secrets
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import StoreUnavailable
from ..journal import Journal
from ..journal.engines import open_journal, sqlite_path
from ..settings import REDIS, Settings, without_password
from . import redis_store
from .clock import Clock
from .finding import Check, Outcome, bad, doubtful, good

LITTLE_SPACE = 1024**3  # bytes free on the disk that are worth a word
NO_SPACE = 64 * 1024**2  # bytes; with less SQLite's log file may not grow


def checks(settings: Settings, clocks: list[Clock]) -> Iterator[Check]:
    url = settings.store_url
    if urlsplit(url).scheme in REDIS:
        yield Check("store", partial(use_redis, settings))
        for name, look in redis_store.CHECKS.items():
            yield Check(f"store: {name}", partial(redis_store.ask, url, look), ("store",))
        yield Check("store: clock", partial(redis_store.note_time, url, clocks), ("store",))
    elif url == "memory://":
        yield Check("store", lambda: good("in memory: answers and undelivered text go with the process"))
    else:
        yield Check("store", partial(use_sqlite, settings))
        yield Check("store: disk", lambda: disk_of(sqlite_path(url)), ("store",))


def use_sqlite(settings: Settings) -> Outcome:
    """Writes, reads and deletes a worker's lease: in the file, or beside it while there is none.

    The file is not made: the server's user has to own it.
    """
    path = sqlite_path(settings.store_url)
    try:
        if path.exists():
            use(open_engine(settings, settings.store_url))
            mode = journal_mode(path)
            found = f"{path} can be written ({mode})"
        else:
            folder = next(parent for parent in path.absolute().parents if parent.exists())
            with tempfile.TemporaryDirectory(dir=folder, prefix=".relay-doctor-") as own:
                probe = Path(own) / "relay.db"
                use(open_engine(settings, f"sqlite:///{probe}"))
                mode = journal_mode(probe)
            found = f"{path} is not there yet, and {folder} can be written ({mode})"
    except (OSError, StoreUnavailable, sqlite3.Error) as error:
        return bad(
            f"{path} cannot be used: {reason_of(error, path)}",
            "Name a file in a folder on a local disk that the server's user may write to (STORE_URL=sqlite:///PATH), "
            "and run this as that user.",
        )
    if mode != "wal":
        return bad(
            f"{path} has no write-ahead log ({mode})", "Name a file on a local disk: network disks cannot do it."
        )
    if path.exists() and path.stat().st_uid != os.geteuid():
        return doubtful(f"{found}, but another user owns it", "Run this as the server's user to be sure of its rights.")
    return good(found)


def reason_of(error: Exception, path: Path) -> str:
    """Why a file cannot be used; without the name of the one that was tried in its place."""
    folder = path.absolute().parent
    if isinstance(error, OSError) and not os.path.exists(folder):  # noqa: PTH110 - Path.exists may raise
        return f"{folder} is not there, and this user may not make it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return error.detail if isinstance(error, StoreUnavailable) else str(error)


def open_engine(settings: Settings, url: str) -> Journal:
    return open_journal(
        url, f"doctor-{secrets.token_hex(6)}", settings.retain_seconds, settings.transcript_retain_seconds
    )


def use(journal: Journal) -> None:
    """A lease is what an engine writes, reads and deletes without a turn. Raises StoreUnavailable."""
    try:
        journal.renew()
        if not journal.renew():
            raise StoreUnavailable(detail="what was written could not be read again")
        journal.find("doctor")
    except BaseException:
        with suppress(StoreUnavailable):
            journal.close()
        raise
    journal.close()


def journal_mode(path: Path) -> str:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


def disk_of(path: Path) -> Outcome:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    found = f"{free / 1024**3:.1f} GiB free in {folder}"
    if free < NO_SPACE:
        return bad(found, "Make room: a full disk refuses new questions.")
    if free < LITTLE_SPACE:
        return doubtful(found, "Make room, or keep answers for a shorter time (RETAIN_SECONDS).")
    return good(found)


def use_redis(settings: Settings) -> Outcome:
    try:
        use(open_engine(settings, settings.store_url))
    except StoreUnavailable as error:
        fix = redis_store.FIXES.get(error.detail, "See whether that Redis runs, and what its log says.")
        return bad(f"{without_password(settings.store_url)} cannot be used: {error.detail}", fix)
    return good(f"{without_password(settings.store_url)} can be written")
