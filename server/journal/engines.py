"""Which engine a STORE_URL means."""

import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..settings import SettingsError, leave
from . import Journal
from .memory import MemoryJournal
from .sqlite import SqliteJournal
from .sqlite_file import prepare


def open_journal(url: str, worker: str, retain: float, retain_undelivered: float) -> Journal:
    """The engine, for one worker; it opens nothing before it is used.

    `retain` is in seconds after a turn's end; for one that the transcript does not have whole, `retain_undelivered`
    counts where that is longer.
    """
    scheme = urlsplit(url).scheme
    if scheme == "sqlite":
        return SqliteJournal(sqlite_path(url), worker, retain, retain_undelivered)
    if scheme in ("redis", "rediss"):
        # Not above: gunicorn's master reads this module, and sockets must be patched before Redis' client sees them.
        from .redis import RedisJournal  # noqa: PLC0415

        return RedisJournal(url, worker, retain, retain_undelivered)
    return MemoryJournal(worker, retain, retain_undelivered)


def prepare_store(url: str) -> None:
    """Makes the store's file and tables where there are none. Raises SettingsError for a store that cannot be used."""
    if urlsplit(url).scheme != "sqlite":
        return
    try:
        prepare(sqlite_path(url))
    except (OSError, sqlite3.Error) as error:
        raise SettingsError(
            f"STORE_URL={url} cannot be used: {error}. Name a file in a folder that the server may write to"
        ) from None


def prepare_or_exit(url: str) -> None:
    """The same at the start, which it ends."""
    try:
        prepare_store(url)
    except SettingsError as error:
        leave(str(error))


def sqlite_path(url: str) -> Path:
    """The file of `sqlite:///PATH`: three slashes for a path in the working folder, four for an absolute one."""
    return Path(unquote(urlsplit(url).path).removeprefix("/"))
