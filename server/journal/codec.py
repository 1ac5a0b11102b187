"""A batch of events as text, and back. No I/O.

A JSON array, one item an event: a token is its text, anything else an object. Ids are not in it: they count from the
batch's first.
"""

from collections.abc import Sequence

import orjson

from ..sse import Done, Event, Extra, Failure, Token


def pack(events: Sequence[Event]) -> bytes:
    return orjson.dumps([event.text if type(event) is Token else item(event) for event in events])


def unpack(first: int, text: bytes | str, after: int = 0) -> list[Event]:
    """The events of a batch that begins with id `first`; only those with ids above `after`."""
    return [event(first + n, found) for n, found in enumerate(orjson.loads(text)) if first + n > after]


def item(event: Event) -> object:
    match event:
        case Token():
            return event.text
        case Extra():
            return {"choice": orjson.Fragment(event.choice)}
        case Failure():
            return {"error": event.error, "code": event.code}
        case Done():
            return {"status": event.status, "finish_reason": event.finish_reason, "usage": event.usage}


def event(number: int, found: object) -> Event:
    match found:
        case str():
            return Token(number, found)
        case {"choice": dict(choice)}:
            return Extra(number, orjson.dumps(choice))
        case {"error": str(error), "code": str(code)}:
            return Failure(number, error, code)
        case {"status": str(status), "finish_reason": reason, "usage": usage}:
            return Done(number, status, reason, usage)
        case dict():  # of a later release, which may share the store: it counts, and says nothing here
            return Extra(number, b"{}")
    raise ValueError("no event of this journal")
