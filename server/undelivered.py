"""`relay transcript`: what the transcript still has to get, and having it sent again.

It reads and writes the store beside the servers that use it, none of which has to run.
"""

import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import orjson

from .errors import StoreUnavailable
from .journal.engines import open_journal, sqlite_path
from .journal.outbox import Delivery, Outbox
from .launch import organisation, sandbox_settings
from .settings import Settings, leave, load_or_exit, without_password
from .telemetry import printable

LIMIT = 1000  # turns that are listed
COLUMNS = ("CONVERSATION", "TURN", "STATE", "CURSOR", "REASON")
OUT_OF_REACH = 1  # exit status


def show(as_json: bool) -> None:
    """Prints the turns whose text the transcript does not have whole, the oldest first."""
    with outbox() as box:
        found = box.undelivered(LIMIT)
    if as_json:
        print(orjson.dumps([fields(delivery) for delivery in found]).decode())
    elif found:
        print(
            table(
                [
                    COLUMNS,
                    *(
                        ["" if value is None else str(value) for value in fields(delivery).values()]
                        for delivery in found
                    ),
                ]
            )
        )
    else:
        print("Nothing waits: the transcript has all text.")
    if len(found) == LIMIT:
        print(f"These are the first {LIMIT}; there may be more.", file=sys.stderr)


def retry(conversation_id: str | None) -> None:
    """Makes what was parked pending again, and says what that was."""
    with outbox() as box:
        turns = box.retry(conversation_id)
    if turns:
        print(
            f"{len(turns)} {'turn waits' if len(turns) == 1 else 'turns wait'} to be sent again, by a running server:"
        )
        print("\n".join(turns))
    else:
        print("Nothing was parked.")


def fields(delivery: Delivery) -> dict[str, str | int | None]:
    """In the order of COLUMNS."""
    return {
        "conversation": delivery.conversation_id,
        "turn": delivery.turn_id,
        "state": delivery.state,
        "cursor": delivery.cursor,
        "reason": delivery.reason,
    }


def table(rows: Sequence[Sequence[str]]) -> str:
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


@contextmanager
def outbox() -> Iterator[Outbox]:
    """That of the settings' store; one that cannot be had ends the program with one line."""
    settings = settings_for_the_store()
    url = without_password(settings.store_url)
    if url == "memory://":
        leave("STORE_URL=memory:// keeps text inside the server's process, where no other command sees it")
    if url.startswith("sqlite:"):
        try:
            sqlite_path(settings.store_url).stat()
        except OSError as error:  # the engine would make the file, in a folder that may be the wrong one
            leave(
                f"STORE_URL={url} cannot be used: {error.strerror}. Is this the server's working folder?", OUT_OF_REACH
            )
    journal = open_journal(
        settings.store_url, secrets.token_hex(8), settings.retain_seconds, settings.transcript_retain_seconds
    )
    try:
        yield journal.outbox
    except StoreUnavailable as error:
        leave(f"STORE_URL={url} cannot be used: {error.detail}", OUT_OF_REACH)
    finally:
        with suppress(StoreUnavailable):
            journal.close()


def settings_for_the_store() -> Settings:
    """The sandbox needs no account, and neither does its store."""
    os.environ["ACCESS"] = "open"  # no one comes in here
    found = organisation()
    if found is None:
        os.environ.update(sandbox_settings("http://127.0.0.1"))
        found = load_or_exit()
    return found
