"""Reads a socket as it fills, for one greenlet."""

import socket
from collections.abc import Callable
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
        # What TLS has decrypted before makes no socket readable.
        self._full_reads = int(self._tls is not None and self._tls.pending() > 0)
        self._take: Callable[[bytes], bool] | None = None
        self._size = 0  # bytes; of a read for `_take`
        self._failure: Exception | None = None  # that `_take` met

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

    def drive(self, size: int, take: Callable[[bytes], bool]) -> None:
        """Calls `take` with what arrives, `size` bytes at most, until it says False; b"" is the end.

        It is called in the hub, as a rule, while the greenlet sleeps: that spares two switches a read. It must never
        wait. Raises OSError, and what `take` raises.
        """
        while self._full_reads:  # more has arrived: no event would tell
            if not take(self.read(size)):
                return
        self._size = size
        while True:
            self._take = take
            try:
                self._wait()
            finally:
                self._take = None
            failure, self._failure = self._failure, None
            if failure is None:
                return
            if not isinstance(failure, SSLWantWriteError):
                try:
                    raise failure
                finally:
                    del failure  # its traceback leads here
            wait_write(self._socket.fileno())

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
        if self._reader is None:
            self._watcher.stop()  # no one reads now: it would fire without end
        elif self._take is None or not self._takes_on(self._take):
            self._reader.switch()

    def _takes_on(self, take: Callable[[bytes], bool]) -> bool:
        """Whether the greenlet may sleep on."""
        wants_more = has_more = True
        try:
            while wants_more and has_more:
                try:
                    data = self._socket.recv(self._size)
                except (BlockingIOError, SSLWantReadError):
                    return True
                wants_more = take(data)
                has_more = self._tls is not None and self._tls.pending() > 0
        except Exception as failure:  # noqa: BLE001 - raised where someone can handle it
            self._failure = failure
            return False
        self._full_reads = int(has_more)  # what is left makes no socket readable
        return wants_more
