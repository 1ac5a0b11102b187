"""Reads a socket as it fills, for one greenlet."""

import socket
from ssl import SSLSocket, SSLWantReadError, SSLWantWriteError
from typing import Any

import gevent
from gevent import get_hub, getcurrent
from gevent.socket import wait_write

READ = 1  # libev's EV_READ
FULL_READS = 4  # reads in a row that leave something behind, until the other greenlets get their turn


class Inlet:
    """Cheaper than gevent's own `recv`, which for each read asks in vain first, makes a waiter, starts its watch and
    stops it again. Here the watch goes on, and the kernel is asked when there is something.
    """

    def __init__(self, sock: socket.socket) -> None:
        """`sock` is a gevent socket; its timeout is the reader's until `close`."""
        sock.settimeout(0.0)
        self._socket = sock
        self._tls = sock if isinstance(sock, SSLSocket) else None
        self._watcher = get_hub().loop.io(sock.fileno(), READ)
        self._reader: Any = None  # the greenlet that waits
        self._full_reads = 0

    def read(self, size: int) -> bytes:
        """What has arrived, at least one byte and `size` at most; b"" at the end. Raises OSError."""
        while True:
            if not self._full_reads:
                self._wait()
            elif self._full_reads % FULL_READS == 0:
                gevent.sleep(0)
            try:
                data = self._socket.recv(size)
            except (BlockingIOError, SSLWantReadError):
                self._full_reads = 0
            except SSLWantWriteError:
                wait_write(self._socket.fileno())
            else:
                # What TLS has decrypted already makes no socket readable.
                if len(data) == size or (self._tls is not None and self._tls.pending()):
                    self._full_reads += 1
                else:
                    self._full_reads = 0
                return data

    def close(self) -> None:
        """Ends the watch; must be called before the socket is closed. The socket blocks again."""
        self._watcher.stop()
        self._watcher.close()
        if self._socket.fileno() >= 0:
            self._socket.settimeout(None)

    def _wait(self) -> None:
        self._reader = getcurrent()
        if not self._watcher.active:
            self._watcher.start(self._wake)
        try:
            get_hub().switch()
        finally:
            self._reader = None

    def _wake(self) -> None:
        if self._reader is not None:
            self._reader.switch()
        else:
            self._watcher.stop()  # no one reads now: it would fire without end
