"""The connection of one who follows: noticing that it is gone, and ending it.

A server learns of a client that left only when a write fails, which between two tokens can take long; gunicorn hands
out the socket, and the event loop sees the hang-up at once.
"""

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from ssl import SSLSocket
from typing import Any

from gevent import get_hub, monkey

from .inlet import READ
from .outlet import Outlet

HANG_UP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
LOOK_INTERVAL = 0.5  # seconds between two looks at a client whose unread data hide its hang-up from the event loop
# Milliseconds of unacknowledged data until the kernel gives up (RFC 5482): a phone out of reach never hangs up.
USER_TIMEOUT_MS = 30_000
# Bytes that the kernel may hold for a client that reads slowly. By itself it goes up to megabytes each; this is still
# 300 KB a second over the slowest of links, a hundred times a fast model's pace.
SEND_BUFFER = 64 * 1024

poll = monkey.get_original("select", "poll")


class Client:
    """The other end of a response; without gunicorn's socket (another server, a test) it is never seen to leave."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self._socket: socket.socket | None = environ.get("gunicorn.socket")
        self._is_chunked = environ.get("SERVER_PROTOCOL") == "HTTP/1.1"
        self._watcher: Any = None
        if self._socket is None:
            return
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if self._socket.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)

    def outlet(self) -> Outlet | None:
        """The way for a body whose head gunicorn has sent; None where only gunicorn knows it."""
        if self._socket is None or isinstance(self._socket, SSLSocket):
            return None
        return Outlet(self._socket, is_chunked=self._is_chunked)

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Calls `on_gone`, in the hub, when the client hangs up. A half-closed connection counts as hung up:
        a proxy whose own client has left looks the same."""
        if self._socket is not None and self._socket.fileno() >= 0:
            self._start(get_hub().loop.io(self._socket.fileno(), READ), on_gone)

    def forget(self) -> None:
        """Ends the watch; must be called before the socket is closed."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None

    def hang_up(self) -> None:
        """Ends the connection; a write that waits for the client fails at once."""
        if self._socket is not None:
            with suppress(OSError):  # it may be gone already, which is what is wanted
                self._socket.shutdown(socket.SHUT_RDWR)

    def _start(self, watcher: Any, on_gone: Callable[[], None]) -> None:
        self.forget()
        self._watcher = watcher
        watcher.start(self._look, on_gone)

    def _look(self, on_gone: Callable[[], None]) -> None:
        if self._socket is None or self._socket.fileno() < 0:
            self.forget()
        elif has_hung_up(self._socket.fileno()):
            self.forget()
            on_gone()
        else:
            # Data that no one reads (a pipelined request) would make a watch for readability fire without end.
            self._start(get_hub().loop.timer(LOOK_INTERVAL), on_gone)


def has_hung_up(fileno: int) -> bool:
    poller = poll()
    poller.register(fileno, HANG_UP)
    return bool(poller.poll(0))
