"""Events in, Server-Sent Events bytes out. No I/O.

The format is the WHATWG HTML standard's, 9.2.5 and 9.2.6; the shapes are those that the seed's clients read, with ids
and a closing `done` added. JSON never holds a raw line end, so that one `data:` line carries each event.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import orjson


class Token(NamedTuple):
    """A piece of the answer's text."""

    id: int
    text: str


# `new_token((id, text))`: a named tuple's own constructor is a call in Python, 3 % of a token's cost.
new_token: Callable[[tuple[int, str]], Token] = partial(tuple.__new__, Token)


class Extra(NamedTuple):
    """What an answer holds beside its text: tool calls, reasoning, refusals, log probabilities.

    `choice` is JSON, part of a choice of OpenAI's chat.completion.chunk: an object with `delta`, `logprobs`, or both.
    Only the front for OpenAI's clients shows it; on our own wire the event is its id alone, so that ids stay
    consecutive.
    """

    id: int
    choice: bytes


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


Event = Token | Extra | Failure | Done

RECONNECT_MS = 1000  # how long a browser's EventSource waits before it comes back
COME_BACK_MS = (50, 500)  # the same when a worker stops: at once, but not all in the same moment
PING = b": ping\n\n"


def opening(cursor: int) -> bytes:
    """What each stream begins with. The cursor is said early: a client that loses the link again before the first
    event must still know it (WHATWG HTML, 9.2.6: an id counts without data as well)."""
    retry = b"retry: %d\n" % RECONNECT_MS
    return retry + (b"id: %d\n\n" % cursor if cursor else b"\n")


def ticket(url: str) -> bytes:
    """Where the stream can be followed from now on. Without an id: it is not of the answer, and is never replayed."""
    return b"event: ticket\ndata: %b\n\n" % orjson.dumps({"url": url})


def come_back(random: Callable[[], float]) -> bytes:
    """The last words of a worker that stops; `random` gives numbers from 0 to 1."""
    least, most = COME_BACK_MS
    return b"retry: %d\n\n" % (least + random() * (most - least))


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
        case Extra():
            # An id without data is remembered, and nothing is dispatched (WHATWG HTML, 9.2.6).
            return b"id: %d\n\n" % event.id
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
