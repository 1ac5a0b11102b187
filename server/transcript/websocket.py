"""The persistent WebSocket that carries a conversation's text.

Sent is not received: what lies in a kernel's buffer dies with the link. A ping follows the messages, one at a time;
frames are ordered, so that its pong confirms all before it (RFC 6455, 5.5.2 and 5.5.3). After a loss the text goes on
from the last pong: nothing is missing, and about a second of text can repeat.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from random import random
from typing import Any, NamedTuple

import gevent
import orjson
from gevent.event import Event as Flag
from websocket import ABNF

from ..backoff import full_jitter
from ..bell import Bell
from ..credentials import Credentials
from ..errors import StoreUnavailable
from ..journal.tail import Tail
from ..settings import Settings
from . import MAX_MESSAGE_CHARS, Delivery
from .socket import CLOSE_TIMEOUT, GOING_AWAY, NORMAL, LinkLost, Socket, way_to

log = logging.getLogger(__name__)

IDLE = 60.0  # seconds without text after which a link is closed
PING_INTERVAL = 20.0  # seconds of silence on a link
CONFIRM_INTERVAL = 1.0  # seconds between two pings while text flows; the most that can repeat after a loss
PONG_TIMEOUT = 20.0  # seconds until a link that answers no ping is given up
TICK = 0.25  # seconds; how late a link's own times may be noticed
HEAD_START = 0.005  # seconds that a new link leaves to the question: its handshake would delay a quick first token
STORE_WAIT = 0.5  # seconds until a store that could not be read is asked again
MAX_WAITING = 500  # turns of one conversation that are not yet delivered
MAX_WAITING_PER_LINK = 2  # of the links that a worker may keep: as many as can run, and as many again that wait
STOP_TIMEOUT = CLOSE_TIMEOUT + 0.1  # seconds for all links when the worker stops


class Mark(NamedTuple):
    """What a ping stands behind."""

    payload: bytes
    delivery: Delivery | None
    cursor: int


class Transcript:
    """The links of this worker, one a conversation."""

    def __init__(self, settings: Settings, credentials: Credentials, max_links: int) -> None:
        """`max_links` bounds the links that are kept open without need, and with them the turns that wait.

        Raises SettingsError for a proxy that cannot be used.
        """
        way_to(settings.genesys_transcript_url)
        self.idle = Flag()
        self.idle.set()
        self._settings = settings
        self._credentials = credentials
        self._max_links = max_links
        self._links: dict[str, Link] = {}
        self._waiting = 0
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
            link = Link(conversation_id, self._settings, self._credentials, self._note_left, self._note_end)
            self._links[conversation_id] = link
        self.idle.clear()
        self._waiting += 1
        link.add(tail)
        if self._waiting > MAX_WAITING_PER_LINK * self._max_links:
            busy = (other for other in self._links.values() if other.busy)
            min(busy, key=lambda other: other.oldest).give_up_oldest()

    def close(self) -> None:
        """Closes the links; what was not sent is lost, and said so in the log."""
        if self._ticker is not None:
            self._ticker.kill(block=False)
        gevent.joinall([gevent.spawn(link.stop) for link in list(self._links.values())], timeout=STOP_TIMEOUT)

    def _note_left(self) -> None:
        """A turn no longer waits: it has arrived, or is given up."""
        self._waiting -= 1
        if not self._waiting:
            self.idle.set()

    def _note_end(self, link: "Link") -> None:
        self._links.pop(link.conversation_id, None)

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
        self,
        conversation_id: str,
        settings: Settings,
        credentials: Credentials,
        on_left: Callable[[], None],
        on_end: Callable[["Link"], None],
    ) -> None:
        """`on_left` is called for each turn that no longer waits, `on_end` when the link is over."""
        self.conversation_id = conversation_id
        self.bell = Bell()
        self.wake_at = 0.0  # monotonic seconds
        self.active_at = time.monotonic()
        self._settings = settings
        self._credentials = credentials
        self._on_left = on_left
        self._on_end = on_end
        self._deliveries: deque[Delivery] = deque()
        self._socket: Socket | None = None
        self._lost = ""
        self._retired = False
        self._stopping = False
        self._mark: Mark | None = None
        self._pings = 0
        self._pinged_at = 0.0
        self._failures = 0
        self._reader: gevent.Greenlet[[Socket], None] | None = None
        self._greenlet = gevent.spawn(self._run)

    @property
    def busy(self) -> bool:
        return bool(self._deliveries)

    @property
    def oldest(self) -> float:
        """When the turn that waits longest began, in monotonic seconds."""
        return self._deliveries[0].began

    def add(self, tail: Tail) -> None:
        self._retired = False
        self._deliveries.append(Delivery(tail, self.bell))
        if len(self._deliveries) > MAX_WAITING:
            self.give_up_oldest()
        self.bell.ring()

    def give_up_oldest(self) -> None:
        self._give_up(self._deliveries[0], "too many turns wait")

    def retire(self) -> None:
        """Closes the link unless it gets text before that."""
        self._retired = True
        self.bell.ring()

    def stop(self) -> None:
        """Closes the link at once."""
        self._stopping = True
        self._give_up_all("the worker stops")
        self._greenlet.kill()

    def _run(self) -> None:
        """Opens the link, serves it, opens it again when it is lost; ends once there is nothing to send."""
        try:
            gevent.sleep(HEAD_START)
            while self._deliveries:
                try:
                    self._carry()
                except Exception as error:  # noqa: BLE001 - the text that waits must outlive whatever breaks a link
                    self._wait_after(error)
        finally:
            self._give_up_all("the link broke")
            self._on_end(self)

    def _carry(self) -> None:
        """One link from its handshake to its end."""
        try:
            self._open()
            self._serve()
        except Exception:
            if self._socket is not None:
                self._socket.break_off()
            raise
        finally:
            self._close()

    def _open(self) -> None:
        """Raises LinkLost or CredentialsError."""
        token = self._credentials.token()
        try:
            self._socket = Socket(self._settings.genesys_transcript_url, token)
        except LinkLost as lost:
            if lost.status == 401:
                self._credentials.renew(token)
            raise
        self._lost = ""
        self._mark = None
        self._pinged_at = self.active_at = time.monotonic()
        for delivery in self._deliveries:
            delivery.rewind()
        self._reader = gevent.spawn(self._read, self._socket)
        log.debug("transcript link open", extra={"conversation": self.conversation_id})

    def _serve(self) -> None:
        """Sends what comes until the link has idled long enough. Raises LinkLost."""
        interval = self._settings.transcript_interval_ms / 1000
        while True:
            if self._lost:
                raise LinkLost(self._lost)
            self._give_up_old()
            sent = self._send_next()
            self._ping_if_due()
            if not self._deliveries and (self._retired or time.monotonic() - self.active_at >= IDLE):
                return
            if not sent:
                self.bell.wait()
            elif interval:
                gevent.sleep(interval)

    def _send_next(self) -> bool:
        """Sends what waits of the first turn that is not sent whole: later turns come after it.

        Whether there may be more to send at once. Raises LinkLost.
        """
        delivery = next((delivery for delivery in self._deliveries if not delivery.sent_all), None)
        if delivery is None:
            return False
        try:
            message = delivery.next_text()
        except StoreUnavailable:
            log.debug("transcript waits for the store", extra=self._fields(delivery))
            gevent.sleep(STORE_WAIT)
            return True
        if message is not None:
            self._send_text(delivery, *message)
        elif delivery.is_forgotten:
            self._give_up(delivery, "the journal has forgotten the rest")
        return message is not None or delivery.sent_all or delivery.is_forgotten

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
        self._socket.send(payload, opcode)

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

    def _read(self, socket: Socket) -> None:
        """Takes the pongs until the link is lost, and says why it is."""
        reason = ""
        try:
            while True:
                self._note_pong(socket.next_pong())
        except Exception as error:  # noqa: BLE001 - the writer raises it again
            reason = describe(error)
        finally:
            if socket is self._socket:
                self._lost = reason
                socket.interrupt()  # a write that waits for this link fails at once
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
            self._let_go(self._deliveries[0])

    def _wait_after(self, error: Exception) -> None:
        """Gives up text that is too old, then waits before the next try."""
        self._failures += 1
        wait = full_jitter(self._failures, random)
        if isinstance(error, LinkLost):
            wait = max(wait, error.retry_after)
        fields = {"conversation": self.conversation_id, "detail": describe(error), "wait": round(wait, 2)}
        log.warning("transcript link lost, trying again", extra=fields | {"attempt": self._failures})
        self._give_up_old()
        if self._deliveries:
            gevent.sleep(wait)

    def _give_up_old(self) -> None:
        horizon = time.monotonic() - self._settings.retain_seconds - self._settings.gateway_timeout
        while self._deliveries and self._deliveries[0].began < horizon:
            self._give_up(self._deliveries[0], "the time of retention is over")

    def _give_up_all(self, reason: str) -> None:
        while self._deliveries:
            self._give_up(self._deliveries[0], reason)

    def _give_up(self, delivery: Delivery, reason: str) -> None:
        if delivery not in self._deliveries:
            return  # the bounds have taken it while it was being read
        log.error("transcript incomplete", extra=self._fields(delivery) | {"detail": reason})
        self._let_go(delivery)

    def _let_go(self, delivery: Delivery) -> None:
        self._deliveries.remove(delivery)
        delivery.close()
        self._on_left()

    def _close(self) -> None:
        socket, self._socket = self._socket, None
        if self._reader is not None:
            self._reader.kill()  # the closing handshake is read here
        if socket is not None:
            socket.close(GOING_AWAY if self._stopping else NORMAL)

    def _fields(self, delivery: Delivery) -> dict[str, Any]:
        return {
            "turn": delivery.turn_id,
            "conversation": self.conversation_id,
            "confirmed": delivery.confirmed,
            "sent": delivery.text_sent,
        }


def describe(error: Exception) -> str:
    """For the log. Only the class of what is unexpected: its text may hold the address, and the token with it."""
    return str(error) if isinstance(error, LinkLost) else type(error).__name__
