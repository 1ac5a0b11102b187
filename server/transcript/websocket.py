"""The persistent WebSocket that carries a conversation's text.

Sent is not received: what lies in a kernel's buffer dies with the link. A ping follows the messages, one at a time;
frames are ordered, so that its pong confirms all before it (RFC 6455, 5.5.2 and 5.5.3). After a loss the text goes on
from the last pong: nothing is missing, and about a second of text can repeat.
"""

import logging
import struct
import time
from collections import deque
from collections.abc import Callable
from random import random
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, NamedTuple
from urllib.parse import quote

import gevent
import orjson
from gevent.event import Event as Flag
from websocket import ABNF, WebSocket, WebSocketBadStatusException, WebSocketException, WebSocketTimeoutException

from ..backoff import MAX_RETRY_AFTER, full_jitter, retry_after
from ..bell import Bell
from ..credentials import Credentials
from ..errors import CredentialsError
from ..journal.tail import Tail
from ..settings import Settings
from ..tls import tls_context
from . import MAX_MESSAGE_CHARS, Delivery

log = logging.getLogger(__name__)

TIMEOUT = 20.0  # seconds for the handshake, and for one write to a link that does not take it
IDLE = 60.0  # seconds without text after which a link is closed
PING_INTERVAL = 20.0  # seconds of silence on a link
CONFIRM_INTERVAL = 1.0  # seconds between two pings while text flows; the most that can repeat after a loss
PONG_TIMEOUT = 20.0  # seconds until a link that answers no ping is given up
TICK = 0.25  # seconds; how late a link's own times may be noticed
CLOSE_TIMEOUT = 1.0  # seconds for the closing handshake
NO_LINGER = struct.pack("ii", 1, 0)  # closing sends RST and drops what was not sent


class LinkLost(Exception):
    """The link is gone. The text, for the log, holds no address: the token is in it."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        """`retry_after` is in seconds."""
        super().__init__(reason)
        self.retry_after = retry_after


class Mark(NamedTuple):
    """What a ping stands behind."""

    payload: bytes
    delivery: Delivery | None
    cursor: int


class Transcript:
    """The links of this worker, one a conversation."""

    def __init__(self, settings: Settings, credentials: Credentials, max_links: int) -> None:
        """`max_links` bounds the links that are kept open without need."""
        self.idle = Flag()
        self.idle.set()
        self._settings = settings
        self._credentials = credentials
        self._max_links = max_links
        self._links: dict[str, Link] = {}
        self._ticker: gevent.Greenlet[[], None] | None = None

    @property
    def links(self) -> int:
        return len(self._links)

    def mirror(self, conversation_id: str, tail: Tail) -> None:
        """Sends the turn's text after that of the conversation's earlier turns. Returns at once."""
        if self._ticker is None:
            self._ticker = gevent.spawn(self._tick)
        link = self._links.get(conversation_id)
        if link is None:
            self._make_room()
            link = Link(conversation_id, self._settings, self._credentials, self._note)
            self._links[conversation_id] = link
        self.idle.clear()
        link.add(tail)

    def close(self) -> None:
        """Closes the links; what was not sent is lost, and said so in the log."""
        if self._ticker is not None:
            self._ticker.kill(block=False)
        gevent.joinall([gevent.spawn(link.stop) for link in list(self._links.values())], timeout=2 * CLOSE_TIMEOUT)

    def _note(self, link: "Link") -> None:
        """A link has become idle, or has ended."""
        if link.ended:
            self._links.pop(link.conversation_id, None)
        if not any(other.busy for other in self._links.values()):
            self.idle.set()

    def _make_room(self) -> None:
        if len(self._links) >= self._max_links:
            unused = [link for link in self._links.values() if not link.busy]
            if unused:
                min(unused, key=lambda link: link.active_at).retire()

    def _tick(self) -> None:
        """One timer for all links."""
        while True:
            gevent.sleep(TICK)
            now = time.monotonic()
            for link in list(self._links.values()):
                if link.wake_at <= now:
                    link.bell.ring()


class Link:
    """One conversation's WebSocket: a greenlet that writes, and one that reads while it is open."""

    def __init__(
        self, conversation_id: str, settings: Settings, credentials: Credentials, on_change: Callable[["Link"], None]
    ) -> None:
        self.conversation_id = conversation_id
        self.bell = Bell()
        self.wake_at = 0.0  # monotonic seconds
        self.active_at = time.monotonic()
        self.ended = False
        self._settings = settings
        self._credentials = credentials
        self._on_change = on_change
        self._deliveries: deque[Delivery] = deque()
        self._socket: WebSocket | None = None
        self._lost = ""
        self._retired = False
        self._mark: Mark | None = None
        self._pings = 0
        self._pinged_at = 0.0
        self._failures = 0
        self._reader: gevent.Greenlet[[WebSocket], None] | None = None
        self._greenlet = gevent.spawn(self._run)

    @property
    def busy(self) -> bool:
        return bool(self._deliveries)

    def add(self, tail: Tail) -> None:
        self._retired = False
        self._deliveries.append(Delivery(tail, self.bell))
        self.bell.ring()

    def retire(self) -> None:
        """Closes the link unless it gets text before that."""
        self._retired = True
        self.bell.ring()

    def stop(self) -> None:
        """Closes the link at once."""
        for delivery in self._deliveries:
            log.error("transcript incomplete: the worker stops", extra=self._fields(delivery))
        self._greenlet.kill()

    def _run(self) -> None:
        """Opens the link, serves it, opens it again when it is lost; ends once there is nothing to send."""
        try:
            while True:
                try:
                    self._carry()
                except (LinkLost, CredentialsError) as error:
                    self._wait_after(error)
                if not self._deliveries:
                    return
        finally:
            self.ended = True
            for delivery in self._deliveries:
                delivery.close()
            self._deliveries.clear()
            self._on_change(self)

    def _carry(self) -> None:
        """One link from its handshake to its end. Raises LinkLost or CredentialsError."""
        self._open()
        try:
            self._serve()
        except LinkLost:
            self._reset()
            raise
        finally:
            self._close()

    def _open(self) -> None:
        """Raises LinkLost or CredentialsError."""
        token = self._credentials.token()
        try:
            self._socket = self._connect(token)
        except WebSocketBadStatusException as error:
            if error.status_code == 401:
                self._credentials.renew(token)
            wait = retry_after((error.resp_headers or {}).get("retry-after"), time.time()) or 0.0
            raise LinkLost(f"handshake refused with {error.status_code}", min(wait, MAX_RETRY_AFTER)) from None
        except (WebSocketException, OSError, ValueError) as error:
            raise LinkLost(f"handshake failed: {type(error).__name__}") from None
        self._lost = ""
        self._mark = None
        self._pinged_at = self.active_at = time.monotonic()
        for delivery in self._deliveries:
            delivery.rewind()
        self._reader = gevent.spawn(self._read, self._socket)
        log.debug("transcript link open", extra={"conversation": self.conversation_id})

    def _connect(self, token: str) -> WebSocket:
        url = self._settings.genesys_transcript_url
        secure = url.startswith("wss:")
        socket = WebSocket(
            enable_multithread=True, skip_utf8_validation=True, sslopt={"context": tls_context()} if secure else {}
        )
        separator = "&" if "?" in url else "?"
        # A redirect would take the token to another place.
        socket.connect(
            f"{url}{separator}access_token={quote(token, safe='')}",
            timeout=TIMEOUT,
            suppress_origin=True,
            redirect_limit=0,
        )
        return socket

    def _serve(self) -> None:
        """Sends what comes until the link has idled long enough. Raises LinkLost."""
        interval = self._settings.transcript_interval_ms / 1000
        while True:
            if self._lost:
                raise LinkLost(self._lost)
            sent = self._send_next()
            self._ping_if_due()
            if not self._deliveries and (self._retired or time.monotonic() - self.active_at >= IDLE):
                return
            if not sent:
                self.bell.wait()
            elif interval:
                gevent.sleep(interval)

    def _send_next(self) -> bool:
        """Sends what waits of the first turn that is not sent whole: later turns come after it."""
        for delivery in self._deliveries:
            if delivery.sent_all:
                continue
            if (message := delivery.next_text()) is not None:
                self._send_text(delivery, *message)
                return True
            if not delivery.sent_all:
                return False
        return False

    def _send_text(self, delivery: Delivery, text: str, first: int, last: int) -> None:
        message = {"conversationId": self.conversation_id, "type": "message", "text": text, "role": "agent"}
        if self._settings.transcript_message_id:
            message["id"] = f"{delivery.turn_id}:{first}-{last}"
        if len(text) <= MAX_MESSAGE_CHARS:
            self._send(orjson.dumps(message), ABNF.OPCODE_TEXT)
        else:
            for begin in range(0, len(text), MAX_MESSAGE_CHARS):
                message["text"] = text[begin : begin + MAX_MESSAGE_CHARS]
                self._send(orjson.dumps(message), ABNF.OPCODE_TEXT)
        self.active_at = time.monotonic()

    def _send(self, payload: bytes, opcode: int) -> None:
        assert self._socket is not None
        try:
            self._socket.send(payload, opcode)
        except (WebSocketException, OSError) as error:
            raise LinkLost(f"write failed: {type(error).__name__}") from None

    def _ping_if_due(self) -> None:
        """Sends the ping that is due, and says when the next one is. Raises LinkLost when no pong comes."""
        self._retire_arrived()
        now = time.monotonic()
        if self._mark is not None:
            if now - self._pinged_at >= PONG_TIMEOUT:
                raise LinkLost(f"no pong within {PONG_TIMEOUT:.0f} s")
            self.wake_at = self._pinged_at + PONG_TIMEOUT
            return
        last = self._last_unconfirmed()
        wait = 0.0 if last and last.sent_all else CONFIRM_INTERVAL if last else PING_INTERVAL
        if now - self._pinged_at >= wait:
            self._pings += 1
            self._pinged_at = now
            self._mark = Mark(b"%d" % self._pings, last, last.text_sent if last else 0)
            self._send(self._mark.payload, ABNF.OPCODE_PING)
            wait = PONG_TIMEOUT
        self.wake_at = min(self._pinged_at + wait, self.active_at + IDLE if not self._deliveries else now + IDLE)

    def _last_unconfirmed(self) -> Delivery | None:
        found = None
        for delivery in self._deliveries:
            if delivery.text_sent > delivery.confirmed:
                found = delivery
            elif not delivery.sent_all:
                break
        return found

    def _read(self, socket: WebSocket) -> None:
        """Reads what the platform sends: pongs, pings, the close frame."""
        reason = "closed by the platform"
        try:
            while True:
                try:
                    opcode, frame = socket.recv_data_frame(control_frame=True)
                except WebSocketTimeoutException:
                    continue
                if opcode == ABNF.OPCODE_PONG:
                    self._note_pong(bytes(frame.data))
                elif opcode == ABNF.OPCODE_CLOSE:
                    code = int.from_bytes(frame.data[:2], "big")
                    reason = f"closed by the platform with {code}"
                    return
        except (WebSocketException, OSError) as error:
            reason = f"read failed: {type(error).__name__}"
        finally:
            if socket is self._socket:
                self._lost = reason
                socket.abort()  # a write that waits for this link fails at once
                self.bell.ring()

    def _note_pong(self, payload: bytes) -> None:
        mark = self._mark
        if mark is None or payload != mark.payload:
            return
        self._mark = None
        self._failures = 0
        if mark.delivery in self._deliveries:
            for delivery in self._deliveries:
                delivery.confirmed = mark.cursor if delivery is mark.delivery else delivery.text_sent
                if delivery is mark.delivery:
                    break
        self.bell.ring()

    def _retire_arrived(self) -> None:
        """Lets go of turns whose whole text has arrived."""
        while self._deliveries and self._deliveries[0].arrived:
            self._deliveries.popleft().close()
            if not self._deliveries:
                self._on_change(self)

    def _wait_after(self, error: Exception) -> None:
        """Gives up text that is too old, then waits before the next try."""
        self._failures += 1
        wait, detail = full_jitter(self._failures, random), type(error).__name__
        if isinstance(error, LinkLost):
            wait, detail = max(wait, error.retry_after), str(error)
        fields = {"conversation": self.conversation_id, "detail": detail, "wait": round(wait, 2)}
        log.warning("transcript link lost, trying again", extra=fields | {"attempt": self._failures})
        self._give_up_old()
        if self._deliveries:
            gevent.sleep(wait)

    def _give_up_old(self) -> None:
        horizon = time.monotonic() - self._settings.retain_seconds - self._settings.gateway_timeout
        while self._deliveries and self._deliveries[0].began < horizon:
            delivery = self._deliveries.popleft()
            log.error("transcript incomplete: given up", extra=self._fields(delivery))
            delivery.close()

    def _reset(self) -> None:
        """Breaks a lost link off: what lies in its buffers must not arrive after what the next link repeats."""
        if self._socket is not None and self._socket.sock is not None:
            self._socket.sock.setsockopt(SOL_SOCKET, SO_LINGER, NO_LINGER)
            self._socket.connected = False  # no closing handshake: the other end has shown that it does not answer

    def _close(self) -> None:
        socket, self._socket = self._socket, None
        if self._reader is not None:
            self._reader.kill()  # it holds the lock under which the closing handshake is read
        if socket is not None:
            socket.close(timeout=CLOSE_TIMEOUT)
            socket.shutdown()

    def _fields(self, delivery: Delivery) -> dict[str, Any]:
        return {
            "turn": delivery.turn_id,
            "conversation": self.conversation_id,
            "confirmed": delivery.confirmed,
            "sent": delivery.text_sent,
        }
