"""Connections to the gateway: one answer at a time on each, kept a while for the next question.

The bytes are parsed by geventhttpclient's parser (llhttp, in C). Its client is not used: it shares a connection between
two answers after a 1xx, loses a slot of its pool to each exception that is thrown in, and trusts connections for ever.
"""

import socket
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from select import POLLIN
from time import monotonic
from urllib.parse import urlsplit

from gevent import monkey
from geventhttpclient.response import HTTPParseError, HTTPResponse
from requests.utils import requote_uri

from .dial import Way, head
from .inlet import Inlet

BLOCK_SIZE = 16 * 1024  # bytes a read
IDLE_LIFE = 30.0  # seconds; load balancers forget an idle connection after 60 s and more, some without a word
poll = monkey.get_original("select", "poll")


class Connections:
    """All connections to one address.

    As many are open as there are answers under way, which is the caller's to bound, and `keep` idle ones at most.
    """

    def __init__(self, url: str, keep: int) -> None:
        """`url` is that of the requests. Raises SettingsError for a proxy that cannot be used."""
        parts = urlsplit(url)
        self._way = Way(url, tunnel=parts.scheme == "https")
        self._keep = keep
        self._idle: deque[tuple[float, socket.socket]] = deque()  # the longest unused first

        target = requote_uri((parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        self._headers = {"Host": self._way.authority, "User-Agent": "genesys-sse-relay"}
        if self._way.proxy and not self._way.tunnel:  # then the proxy reads the whole address (RFC 9112, 3.2.2)
            target = f"http://{self._way.authority}{target}"
            self._headers |= self._way.proxy.headers
        self._request_line = f"POST {target} HTTP/1.1"

    def post(self, headers: Mapping[str, str], body: bytes) -> "Answer":
        """Sends one request and returns the answer once its head is there; the caller releases it.

        Raises OSError, HTTPParseError, or ValueError for a header that cannot be sent.
        """
        request = head(self._request_line, {**self._headers, **headers, "Content-Length": str(len(body))}) + body
        used = self._take_idle()
        if used is not None:
            answer = Answer(used, self._give_back)
            try:
                return answer.ask(request)
            except OSError:
                # The other side had given the connection up, which shows only now (RFC 9112, 9.3.1): no failure of the
                # gateway's. A second question costs little should the first have been read after all.
                if answer.begun:
                    raise
        return Answer(self._way.dial(), self._give_back).ask(request)

    def close(self) -> None:
        """Closes those that are idle, and keeps none from now on."""
        self._keep = 0
        while self._idle:
            self._idle.pop()[1].close()

    def _take_idle(self) -> socket.socket | None:
        self._close_expired()
        while self._idle:
            _, sock = self._idle.pop()  # the latest used is the likeliest to be alive
            if is_quiet(sock):
                return sock
            sock.close()
        return None

    def _give_back(self, sock: socket.socket) -> None:
        self._close_expired()
        if len(self._idle) < self._keep:
            self._idle.append((monotonic(), sock))
        else:
            sock.close()

    def _close_expired(self) -> None:
        oldest = monotonic() - IDLE_LIFE
        while self._idle and self._idle[0][0] < oldest:
            self._idle.popleft()[1].close()


class Answer(HTTPResponse):
    """One answer, with its connection until `release`."""

    def __init__(self, sock: socket.socket, give_back: Callable[[socket.socket], None]) -> None:
        super().__init__("POST")
        self.begun = False  # whether any byte has come
        self.ended = False  # whether all of the body has come
        self._sock: socket.socket | None = sock
        self._give_back = give_back
        self._inlet: Inlet | None = None
        self._dirty = False
        self._take: Callable[[bytes], bool] = wants_no_more
        self._body: list[bytes] = []  # what has come of it and no one has taken yet

    def ask(self, request: bytes) -> "Answer":
        """Sends the request and waits for the head; without one, the connection is closed."""
        assert self._sock is not None
        try:
            # A server that refuses early answers and closes before it has read all: the answer counts.
            with suppress(BrokenPipeError, ConnectionResetError):
                self._sock.sendall(request)
            self._inlet = Inlet(self._sock)
            # An interim answer (1xx; RFC 9110, 15.2) only announces the one that counts.
            while not self.headers_complete or self.status_code < 200:
                self._receive()
        except BaseException:  # also what is thrown in: a turn that is ended
            self._dirty = True
            self.release()
            raise
        return self

    def read_some(self) -> bytes:
        """What has arrived of the body, at least one byte; b"" at its end. Raises OSError or HTTPParseError."""
        while not self._body and not self.ended:
            self._receive()
        return self._take_body()

    def drive(self, take: Callable[[bytes], bool]) -> None:
        """Calls `take` with the body as it arrives, until it says False or all has come. It must never wait: see
        Inlet.drive. Raises OSError, HTTPParseError, and what `take` raises."""
        if (self._body and not take(self._take_body())) or self.ended:
            return
        self._take = take
        try:
            self._open_inlet.drive(BLOCK_SIZE, self._pass_on)
        finally:
            self._take = wants_no_more  # it leads back here, as a rule

    def release(self) -> None:
        """Gives the connection back where another answer can follow on it, else closes it."""
        sock, self._sock = self._sock, None
        if sock is None:
            return
        inlet, self._inlet = self._inlet, None
        if inlet is not None:
            inlet.close()
        if self.ended and not self._dirty and not self.should_close():
            self._give_back(sock)
        else:
            sock.close()

    @property
    def _open_inlet(self) -> Inlet:
        if self._inlet is None:
            raise ConnectionAbortedError("released")
        return self._inlet

    def _receive(self) -> None:
        self._accept(self._open_inlet.read(BLOCK_SIZE))

    def _accept(self, data: bytes) -> None:
        try:
            self.feed(data)  # nothing at all ends a body that has no other end
        except HTTPParseError:
            if not self.ended:
                raise
            self._dirty = True  # what follows the answer is no answer to anything
        if data:
            self.begun = True
            return
        self._dirty = True
        if not self.ended:
            raise ConnectionResetError("closed before the end")

    def _pass_on(self, data: bytes) -> bool:
        """Whether more is wanted, and to come."""
        self._accept(data)
        return (not self._body or self._take(self._take_body())) and not self.ended

    def _take_body(self) -> bytes:
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        return body

    def _on_body(self, buffer: bytearray) -> None:
        self._body.append(bytes(buffer))

    def _on_message_begin(self) -> None:
        if self.ended:
            raise HTTPParseError("a second answer")
        super()._on_message_begin()

    def _on_message_complete(self) -> None:
        super()._on_message_complete()
        self.ended = self.status_code >= 200


def wants_no_more(body: bytes) -> bool:
    return False


def is_quiet(sock: socket.socket) -> bool:
    """Whether there is nothing to read: on an unused connection it could only be its end, or dirt."""
    poller = poll()  # select knows no descriptor above 1023
    poller.register(sock.fileno(), POLLIN)
    return not poller.poll(0)
