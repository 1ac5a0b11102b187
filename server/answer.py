"""An answer for the app that mounts the relay: events, one by one, in its own views and templates."""

import time
import weakref
from collections.abc import Iterator

from flask import Response, after_this_request, has_request_context, request

from .client import Client
from .journal import Entry
from .journal.tail import Follower
from .sse import Event, Retrying
from .turns import Turns


class Answer(Iterator[Event]):
    """Iterates over a turn's events: Token, Extra for what came beside the text, maybe a Failure, and Done at the end.

    What it needs of the request is taken when it is made: it can be read while the response streams, with the request's
    context or without. It ends early when the client has left, or when an event is not taken within 20 s
    (turns.SEND_TIMEOUT); the turn then goes on for DISCONNECT_GRACE, as for anyone who follows. In a request it is
    closed with the response.
    """

    def __init__(self, turns: Turns, entry: Entry) -> None:
        self.id = entry.id  # of the stream, which can be followed as well
        client = Client(request.environ if has_request_context() else {})
        follower = turns.follow(entry, 0, can_return=False)
        self._events = read(follower, client)
        # Jinja's loops close nothing that they leave, and outside of a request nobody else may.
        self._leave = weakref.finalize(self, leave, turns, follower, client)
        self._leave.atexit = False
        if has_request_context():
            after_this_request(self._close_with)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Follows no longer; may be repeated."""
        self._leave()

    def _close_with(self, response: Response) -> Response:
        response.call_on_close(self.close)
        return response


def join(follower: Follower, client: Client) -> None:
    """Follows for a client, until `leave`: that it goes is noticed, and it can be hung up on."""
    follower.on_drop = client.hang_up
    client.watch(follower.lose)


def leave(turns: Turns, follower: Follower, client: Client) -> None:
    client.forget()
    turns.leave(follower)


def read(follower: Follower, client: Client) -> Iterator[Event]:
    """What comes, one by one; whoever reads leaves."""
    join(follower, client)
    try:
        for batch in follower:
            for event in batch:
                if not isinstance(event, Retrying):
                    follower.sending_since = time.monotonic()  # each has its time
                    yield event
    finally:
        client.forget()
