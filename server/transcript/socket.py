"""One open WebSocket: sends frames, reads pongs, closes. What goes wrong with it is LinkLost.

What comes in is bounded: pongs, pings, a close frame and now and then a short text are all that is expected of the
platform.
"""

import struct
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from socket import SHUT_RDWR, SO_LINGER, SOL_SOCKET, socket
from typing import NoReturn

import gevent
from gevent.lock import BoundedSemaphore
from gevent.socket import wait_write

from ..backoff import MAX_RETRY_AFTER, retry_after
from ..credentials import CORRELATION
from ..dial import Way
from ..inlet import Inlet
from . import handshake
from .conversation import SinkLost
from .framing import CLOSE, PING, PONG, TEXT, Frame, FrameError, FrameReader, client_frame

HANDSHAKE_TIMEOUT = 10.0  # seconds for all of it: name, connection, proxy, TLS, answer
WRITE_TIMEOUT = 20.0  # seconds for one write to a link that does not take it
CLOSE_TIMEOUT = 1.0  # seconds for the closing handshake
MAX_HEAD = 16 * 1024  # bytes of the answer to the handshake
MAX_MESSAGE = 16 * 1024  # bytes of an incoming message, in one frame or many
BLOCK_SIZE = 4096  # bytes a read
NO_LINGER = struct.pack("ii", 1, 0)  # closing sends RST and drops what was not sent
LINGER = struct.pack("ii", 0, 0)  # closing sends what there is

UNSURE = "this worker is no longer sure to hold the conversation"

NORMAL = 1000
GOING_AWAY = 1001
NO_STATUS = 1005  # stands for a close frame without a code
CLOSE_CODES = {  # RFC 6455, 7.4.1, and IANA's registry of close codes
    NORMAL: "normal closure",
    GOING_AWAY: "going away",
    1002: "protocol error",
    1003: "unsupported data",
    NO_STATUS: "no status",
    1007: "invalid payload",
    1008: "policy violation",
    1009: "message too big",
    1010: "extension missing",
    1011: "internal error",
    1012: "service restart",
    1013: "try again later",
    1014: "bad gateway",
}


class LinkLost(SinkLost):
    """The link is gone."""

    status = 0  # of a handshake that was refused


class Socket:
    """One greenlet writes and one reads; `send_now` is for whoever writes in the first one's place."""

    def __init__(self, url: str, token: str, may_send: Callable[[], bool]) -> None:
        """Opens it, within HANDSHAKE_TIMEOUT. `may_send` is asked before each write. Raises LinkLost."""
        late = LinkLost(f"handshake not done within {HANDSHAKE_TIMEOUT:.0f} s", "unreachable")
        try:
            with gevent.Timeout(HANDSHAKE_TIMEOUT, late):
                self._socket, rest = open_link(url, token)
        except (OSError, ValueError) as error:
            raise LinkLost(f"handshake failed: {type(error).__name__}", "unreachable") from None
        # Until a closing handshake has told that all was read: also when this process is killed, what lies in the
        # buffers must not arrive after what the next link repeats.
        self._socket.setsockopt(SOL_SOCKET, SO_LINGER, NO_LINGER)
        self._inlet = Inlet(self._socket)
        self._frames = FrameReader(MAX_MESSAGE)
        self._frames.feed(rest)
        self._asks: Frame | None = None  # one that came, and that only a greenlet may answer
        self._may_send = may_send
        self._lock = BoundedSemaphore()
        self._rest = b""  # of a frame that `send_now` has begun
        self._open_writes = 0  # more than 0 after one that broke off: the other end holds half a frame
        self._close_sent = False
        self._incoming = 0  # bytes of the message that is coming in

    def send(self, payload: bytes, opcode: int) -> None:
        """Raises LinkLost."""
        self._put(client_frame(payload, opcode))

    def send_now(self, text: bytes, ping: bytes | None = None) -> bool:
        """Sends a text, and maybe a ping behind it, without waiting: False where a rest waits for `flush`.

        Raises LinkLost or OSError where nothing is sent.
        """
        if self._rest or self._open_writes:
            raise BlockingIOError
        if not self._may_send():
            raise LinkLost(UNSURE)
        data = client_frame(text, TEXT)
        if ping is not None:
            data += client_frame(ping, PING)
        self._rest = data[self._send_at_once(data) :]
        return not self._rest

    def flush(self) -> None:
        """Sends what `send_now` has left. Raises LinkLost."""
        if self._rest:
            self._put(b"")

    def read(self, take_pong: Callable[[bytes], bool]) -> None:
        """Gives what each pong carries to `take_pong`, until that says False; answers pings, drops texts.

        `take_pong` is called in the hub, as a rule, and must not wait. Raises LinkLost.
        """
        wants_more = True

        def take_frames() -> bool:
            nonlocal wants_more
            while wants_more and self._asks is None and (frame := self._frames.next_frame()) is not None:
                if frame.opcode == PONG:
                    wants_more = take_pong(frame.payload)
                elif frame.opcode in (PING, CLOSE):
                    self._asks = frame
                else:
                    self._drop(frame)
            return wants_more and self._asks is None

        def take(data: bytes) -> bool:
            if not data:
                raise LinkLost("closed by the platform without a word")
            self._frames.feed(data)
            return take_frames()

        try:
            while wants_more:
                if take_frames():
                    self._inlet.drive(BLOCK_SIZE, take)
                self._answer()
        except FrameError as error:
            raise LinkLost(str(error)) from None
        except OSError as error:
            raise LinkLost(f"read failed: {type(error).__name__}") from None

    def interrupt(self) -> None:
        """Makes a write or read that waits for this socket fail at once."""
        with suppress(OSError):
            self._socket.shutdown(SHUT_RDWR)

    def break_off(self) -> None:
        """Makes `close` send RST at once: there is no closing handshake with an end that does not answer."""
        self._close_sent = True

    def close(self, code: int) -> None:
        """Closes it: by a closing handshake (RFC 6455, 7.1.2), or by RST where there is none within CLOSE_TIMEOUT.

        No one else may be reading. May be repeated.
        """
        try:
            if not self._close_sent and not self._open_writes and not self._rest:
                with gevent.Timeout(CLOSE_TIMEOUT, False), suppress(LinkLost):
                    self._send_close(code)
                    self.read(lambda _: True)
        finally:
            with suppress(OSError):
                self._inlet.close()
                self._socket.close()

    def _put(self, data: bytes) -> None:
        try:
            self._open_writes += 1
            with self._lock:
                rest, self._rest = self._rest, b""
                self._write(rest + data)
            self._open_writes -= 1
        except OSError as error:
            raise LinkLost(f"write failed: {type(error).__name__}") from None

    def _send_at_once(self, data: bytes) -> int:
        """How much of it the kernel has taken. Raises OSError."""
        try:
            sent: int = self._socket.send(data, 0, 0.0)  # type: ignore[call-arg]  # gevent's, with a timeout
        except BlockingIOError:
            return 0
        return sent

    def _write(self, data: bytes) -> None:
        """As `sendall`, but asks each time: the process may have been stopped while the write waited."""
        deadline = time.monotonic() + WRITE_TIMEOUT
        while data:
            if not self._may_send():
                raise LinkLost(UNSURE)
            if time.monotonic() > deadline:
                raise TimeoutError
            data = data[self._send_at_once(data) :]
            if data:
                wait_write(self._socket.fileno(), WRITE_TIMEOUT, TimeoutError())

    def _drop(self, frame: Frame) -> None:
        self._incoming += len(frame.payload)
        if self._incoming > MAX_MESSAGE:
            raise LinkLost(f"the platform sent more than {MAX_MESSAGE} bytes at once")
        if frame.is_last:
            self._incoming = 0

    def _answer(self) -> None:
        asks, self._asks = self._asks, None
        if asks is None:
            return
        if asks.opcode == CLOSE:
            self._answer_close(asks.payload)
        self.send(asks.payload, PONG)

    def _answer_close(self, data: bytes) -> NoReturn:
        code = int.from_bytes(data[:2], "big") or NO_STATUS
        if not self._close_sent:
            self._send_close(NORMAL if code == NO_STATUS else code)
        with suppress(OSError):  # it may be gone already
            self._socket.setsockopt(SOL_SOCKET, SO_LINGER, LINGER)
        raise LinkLost(f"closed by the platform: {code} {CLOSE_CODES.get(code, '')}".rstrip())

    def _send_close(self, code: int) -> None:
        self._close_sent = True
        self.send(code.to_bytes(2, "big"), CLOSE)


def open_link(url: str, token: str) -> tuple[socket, bytes]:
    """An open link, and what has come after the handshake's answer. Raises LinkLost or what `Way.dial` raises."""
    connection = way_to(url).dial()
    try:
        key = handshake.make_key()
        connection.sendall(handshake.request(url, token, key))
        head, rest = read_head(connection)
        answer = handshake.read_answer(head)
        if not handshake.is_accepted(answer, key):
            raise refusal(answer)
    except BaseException:
        connection.close()
        raise
    return connection, rest


@cache
def way_to(url: str) -> Way:
    """Found once for all links. Raises SettingsError for a proxy that cannot be used."""
    return Way(url, tunnel=True)


def read_head(connection: socket) -> tuple[bytes, bytes]:
    """An answer's head, and what follows it. Raises LinkLost."""
    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) > MAX_HEAD:
            raise LinkLost(f"handshake answered with more than {MAX_HEAD} bytes")
        block = connection.recv(BLOCK_SIZE)
        if not block:
            raise LinkLost("handshake broken off")
        data += block
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def refusal(answer: handshake.Answer) -> LinkLost:
    """A redirect is one too: it would take the token to another place."""
    if answer.status == 101:
        return LinkLost("handshake answered with something that is no WebSocket", "refused")
    wait = retry_after(answer.headers.get("retry-after"), time.time()) or 0.0
    reason = f"handshake refused with {answer.status}"
    if correlation := answer.headers.get(CORRELATION.lower()):
        reason += f" correlation={correlation[:80]}"
    lost = LinkLost(reason, "refused", min(wait, MAX_RETRY_AFTER))
    lost.status = answer.status
    return lost
