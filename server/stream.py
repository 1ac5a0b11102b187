"""The body of a response that follows a turn, from events to bytes.

Between a generator and its socket lie werkzeug's and gunicorn's layers, and a greenlet to wake: half of what a token
costs. A WSGI server may send what it knows itself (PEP 3333 has `wsgi.file_wrapper` for that): our worker knows a
Stream that comes to it as it was made, and lets it write into the socket; middleware that changes a body wraps it, and
so does any other server, which then takes it piece by piece.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from random import random
from typing import TYPE_CHECKING

from flask import Response

from . import sse
from .client import Client
from .journal.tail import Follower
from .outlet import Outlet
from .sse import Event, Retrying

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

Batch = Sequence[Event | Retrying]


class Stream:
    """A WSGI iterable of what `batches` brings of `follower`; an empty batch is a ping, and so is one without bytes."""

    def __init__(
        self,
        follower: Follower,
        client: Client,
        encode: Callable[[Batch], bytes],
        opening: bytes = b"",
        batches: Iterable[Batch] | None = None,
    ) -> None:
        self.on_close: Callable[[], None] | None = None
        self._follower = follower
        self._client = client
        self._encode = encode
        self._opening = opening
        self._batches = follower if batches is None else batches
        self._outlet: Outlet | None = None

    def go_direct(self) -> None:
        """For a server that sends on what it gets: its socket is written to, once it has sent the first piece."""
        self._outlet = self._client.outlet()

    def __iter__(self) -> Iterator[bytes]:
        yield self._opening
        if self._outlet is not None:
            self._write(self._outlet)
            return
        for batch in self._batches:
            yield self._encode(batch) or sse.PING
        yield self._farewell()

    def close(self) -> None:
        """What PEP 3333 has a server call at the end."""
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()

    def _write(self, outlet: Outlet) -> None:
        """Writes all that comes. Raises OSError."""
        self._follower.send_now = self._write_now
        try:
            for batch in self._batches:
                # One that is behind was woken for what waits, and needs no ping.
                outlet.send(self._encode(batch) or (b"" if outlet.is_behind else sse.PING))
            outlet.send(self._farewell())
        finally:
            self._follower.send_now = None  # it holds the stream, which holds the follower

    def _write_now(self, events: Batch) -> bool:
        """See Follower.send_now."""
        assert self._outlet is not None
        return self._outlet.offer(self._encode(events) or sse.PING)

    def _farewell(self) -> bytes:
        return sse.come_back(random) if self._follower.dismissed else b""


class StreamResponse(Response):
    """A response whose body is a Stream, which reaches the server as it is unless someone has replaced it."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream, mimetype="text/event-stream")
        self.headers["Cache-Control"] = "no-cache, no-transform"
        self.headers["X-Accel-Buffering"] = "no"

    def get_app_iter(self, environ: "WSGIEnvironment") -> Iterable[bytes]:
        stream = self.response
        if not isinstance(stream, Stream) or environ["REQUEST_METHOD"] == "HEAD" or self.status_code != 200:
            return super().get_app_iter(environ)
        stream.on_close = self.close
        return stream
