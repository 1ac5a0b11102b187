"""Asks a relay and reads its answers through lost connections: no token is missing, none comes twice.

    with Relay("http://127.0.0.1:8000/", key="relay_...").ask("Where is my parcel?", conversation_id="demo") as answer:
        for event in answer:
            if isinstance(event, Token):
                print(event.text, end="", flush=True)

`AsyncRelay` is the same with `async with` and `async for`. `sse` and `course` do no I/O; `sync` and `aio` are thin
around them.
"""

from .aio import AsyncAnswer, AsyncRelay
from .errors import RelayError
from .events import Begun, Done, Event, Failure, Lost, Opened, Other, Retrying, Token
from .sync import Answer, Relay

__all__ = [
    "Answer",
    "AsyncAnswer",
    "AsyncRelay",
    "Begun",
    "Done",
    "Event",
    "Failure",
    "Lost",
    "Opened",
    "Other",
    "Relay",
    "RelayError",
    "Retrying",
    "Token",
]
