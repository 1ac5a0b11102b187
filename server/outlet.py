"""Writes a response's body straight into its socket, once its head is out."""

import socket
from collections.abc import Callable

CHUNK = b"%x\r\n%b\r\n"  # its length, and itself (RFC 9112, 7.1)


class Outlet:
    """`offer` never waits; `send` does. Never both at once."""

    def __init__(self, sock: socket.socket, *, is_chunked: bool) -> None:
        """`sock` is a gevent socket without TLS."""
        self._socket = sock
        # gevent's `send` with a timeout of its own, 0: what a socket's flags cannot say to it.
        self._send: Callable[[bytes, int, float], int] = sock.send  # type: ignore[assignment]
        self._is_chunked = is_chunked
        self._rest = b""

    @property
    def is_behind(self) -> bool:
        """Whether something that was offered still waits."""
        return bool(self._rest)

    def offer(self, piece: bytes) -> bool:
        """Sends what the kernel takes; False where a rest waits for `send`, which also meets what went wrong."""
        data = CHUNK % (len(piece), piece) if self._is_chunked else piece
        try:
            sent = self._send(data, 0, 0.0)
        except OSError:
            sent = 0
        self._rest = data[sent:]
        return sent == len(data)

    def send(self, piece: bytes) -> None:
        """Sends the rest and then `piece`, if there is any. Raises OSError."""
        if piece and self._is_chunked:
            piece = CHUNK % (len(piece), piece)
        data, self._rest = self._rest + piece, b""
        self._socket.sendall(data)
