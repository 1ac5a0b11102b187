"""Events in, Server-Sent Events bytes out. No I/O.

The format is the WHATWG HTML standard's, 9.2.5 and 9.2.6; the shapes are those that the seed's clients read, with ids
and a closing `done` added. JSON never holds a raw line end, so that one `data:` line carries each event.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson


class Token(NamedTuple):
    """A piece of the answer's text."""

    id: int
    text: str


class Failure(NamedTuple):
    """Why the answer ends early: a sentence for people, a code for programs."""

    id: int
    error: str
    code: str


class Done(NamedTuple):
    """The last event of every turn."""

    id: int
    status: str
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None


class Retrying(NamedTuple):
    """A retry waits: told to those who follow now, and not kept."""

    seconds: float
    reason: str


Event = Token | Failure | Done

RECONNECT_MS = 1000  # how long a browser's EventSource waits before it comes back
RETRY = b"retry: %d\n\n" % RECONNECT_MS
PING = b": ping\n\n"


def encode(events: Sequence[Event | Retrying]) -> bytes:
    """The events as one piece of a response body, to be sent in one write."""
    if len(events) == 1 and type(events[0]) is Token:
        return token(events[0])
    return b"".join([token(event) if type(event) is Token else other(event) for event in events])


def token(event: Token) -> bytes:
    return b'id: %d\ndata: {"token":%b}\n\n' % (event.id, orjson.dumps(event.text))


def other(event: Event | Retrying) -> bytes:
    match event:
        case Token():
            return token(event)
        case Failure():
            return b"id: %d\ndata: %b\n\n" % (event.id, orjson.dumps({"error": event.error, "code": event.code}))
        case Done():
            data: dict[str, Any] = {"status": event.status, "finish_reason": event.finish_reason}
            if event.usage is not None:
                data["usage"] = event.usage
            return b"id: %d\nevent: done\ndata: %b\n\n" % (event.id, orjson.dumps(data))
        case Retrying():
            state = {"state": "retrying", "in": round(event.seconds, 1), "reason": event.reason}
            return b"event: status\ndata: %b\n\n" % orjson.dumps(state)
