"""The persistent WebSocket that carries a conversation's text.

A ping follows the messages, one at a time; frames are ordered, so that its pong confirms all before it (RFC 6455, 5.5.2
and 5.5.3). After a loss the text goes on from the last pong: nothing is missing, and about a second of text can repeat.
"""

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import gevent
import orjson

from .. import metrics
from ..credentials import Credentials
from ..errors import StoreUnavailable
from ..settings import Settings
from ..sse import Token
from .conversation import STORE_WAIT, Conversation, describe
from .framing import PING, TEXT
from .line import Delivery, Mark, Piece
from .pieces import MAX_CHAR_BYTES, join, split
from .socket import GOING_AWAY, NORMAL, LinkLost, Socket, way_to

log = logging.getLogger(__name__)

PING_INTERVAL = 20.0  # seconds of silence on a link
CONFIRM_INTERVAL = 1.0  # seconds between two pings while text flows; about what can repeat after a loss
TOKEN_GAP = 0.2  # seconds more, in which the next token may bring the ping along
PONG_TIMEOUT = 20.0  # seconds until a link without a pong counts as dead
ENVELOPE = 1024  # bytes of a message beside its text: conversation, role, id


class Websocket:
    """See `Sink`."""

    hurries = False

    def __init__(self, settings: Settings, credentials: Credentials) -> None:
        """Raises SettingsError for a proxy that cannot be used."""
        way_to(settings.genesys_transcript_url)
        self._settings = settings
        self._credentials = credentials

    def carry(self, conversation: Conversation) -> None:
        """One link from its handshake to its end."""
        token = self._credentials.token()
        try:
            socket = Socket(self._settings.genesys_transcript_url, token, conversation.may_send)
        except LinkLost as lost:
            if lost.status == 401:
                self._credentials.renew(token)
            raise
        log.debug("transcript link open", extra={"conversation": conversation.id})
        Link(socket, conversation, self._settings).serve()

    def close(self) -> None:
        """Nothing is shared by the links."""


class NotNow(Exception):
    """A token that must wait for the conversation's greenlet."""


class Ping(NamedTuple):
    """One that is under way: what its pong will say, and what it stands behind."""

    payload: bytes
    mark: Mark | None


class Link:
    """An open WebSocket: the conversation's greenlet writes, or for it, while it sleeps, who brings a token; another
    greenlet reads."""

    def __init__(self, socket: Socket, conversation: Conversation, settings: Settings) -> None:
        self._socket = socket
        self._conversation = conversation
        self._line = conversation.line
        self._max_chars = settings.transcript_max_chars
        self._max_bytes = settings.transcript_max_bytes - ENVELOPE
        self._interval = settings.transcript_interval_ms / 1000
        self._max_plain = min(self._max_chars, self._max_bytes // MAX_CHAR_BYTES)  # characters, whatever they are
        self._has_ids = settings.transcript_message_id
        # What stands around the text, which is the same in each message.
        fields = {"conversationId": conversation.id, "type": "message", "role": "agent"}
        self._head = orjson.dumps(fields)[:-1] + b',"text":'
        self._lost = ""
        self._ping: Ping | None = None
        self._pings = 0
        self._pinged_at = time.monotonic()

    def serve(self) -> None:
        """Sends what comes until the link has idled long enough. Raises LinkLost."""
        self._conversation.on_break = self._break_off
        self._conversation.active_at = time.monotonic()
        metrics.transcript_links.inc()
        reader = gevent.spawn(self._read)
        code = GOING_AWAY
        try:
            self._send_all()
            code = GOING_AWAY if self._conversation.leaving else NORMAL
        except Exception:
            self._socket.break_off()
            raise
        finally:
            self._conversation.on_break = None
            metrics.transcript_links.dec()
            try:
                reader.kill()  # the closing handshake is read here
                self._socket.close(code)
            finally:
                self._line.rewind()

    def _send_all(self) -> None:
        conversation = self._conversation
        while not self._is_done():
            if self._lost:
                raise LinkLost(self._lost)
            self._socket.flush()
            has_more = not conversation.leaving and self._send_next()
            self._ping_if_due()
            if not has_more:
                self._sleep()

    def _sleep(self) -> None:
        """Until there is something to do. Tokens are sent meanwhile, from where they come: see `_send_now`."""
        if not self._interval and not self._conversation.leaving:
            self._line.pass_on(self._send_now)
        try:
            self._conversation.bell.wait()
        finally:
            self._line.hold()

    def _is_done(self) -> bool:
        if self._conversation.leaving:
            return self._line.mark() is None
        return self._conversation.is_idle

    def _send_next(self) -> bool:
        """Sends a piece, if there is one. Returns whether there may be more at once. Raises LinkLost."""
        try:
            piece = self._line.next_piece(self._join)
        except StoreUnavailable:
            log.debug("transcript waits for the store", extra={"conversation": self._conversation.id})
            gevent.sleep(STORE_WAIT)
            return True
        if piece is None:
            return False
        self._send_piece(piece)
        if self._interval:
            gevent.sleep(self._interval)
        return not piece.is_all

    def _join(self, tokens: Sequence[Token], final: bool) -> tuple[str, int]:
        """Each token at once; what waits goes together."""
        return join(tokens, self._max_chars, self._max_bytes)

    def _send_now(self, delivery: Delivery, token: Token) -> bool:
        """Sends a token while the conversation's greenlet sleeps, with the ping that is due; see `Line.pass_on`."""
        if self._lost or len(token.text) > self._max_plain:
            raise NotNow
        now = time.monotonic()
        ping = None
        if self._ping is None and now - self._pinged_at >= CONFIRM_INTERVAL:
            ping = self._next_ping(Mark(delivery, token.id, now))
        message = self._message(token.text, delivery.turn_id, token.id, token.id)
        is_sent = self._socket.send_now(message, ping and ping.payload)
        if ping is not None:
            self._note_ping(ping, now)
        elif self._ping is None:
            self._conversation.wake_at = self._pinged_at + CONFIRM_INTERVAL + TOKEN_GAP
        self._note_sent(1, len(token.text), now)
        return is_sent

    def _send_piece(self, piece: Piece) -> None:
        # Tokens that were joined are within the limits; one alone may be too long.
        texts = split(piece.text, self._max_chars, self._max_bytes) if piece.first == piece.last else [piece.text]
        for number, text in enumerate(texts, 1):
            part = f".{number}" if len(texts) > 1 else ""
            self._socket.send(self._message(text, piece.turn_id, piece.first, piece.last, part), TEXT)
        self._note_sent(len(texts), len(piece.text), time.monotonic())

    def _message(self, text: str, turn_id: str, first: int, last: int, part: str = "") -> bytes:
        message = self._head + orjson.dumps(text)
        if self._has_ids:
            message += f',"id":"{turn_id}:{first}-{last}{part}"'.encode()
        return message + b"}"

    def _note_sent(self, messages: int, characters: int, now: float) -> None:
        metrics.transcript_messages.inc(messages)
        metrics.transcript_characters.inc(characters)
        self._conversation.active_at = now

    def _ping_if_due(self) -> None:
        """Sends the ping that is due, and says when the next one is. Raises LinkLost when no pong comes."""
        now = time.monotonic()
        if self._ping is not None:
            if now - self._pinged_at >= PONG_TIMEOUT:
                raise LinkLost(f"no pong within {PONG_TIMEOUT:.0f} s", "silent")
            self._conversation.wake_at = self._pinged_at + PONG_TIMEOUT
            return
        mark = self._line.mark()
        wait = self._patience(mark)
        if now - self._pinged_at >= wait:
            ping = self._next_ping(mark)
            self._note_ping(ping, now)
            self._socket.send(ping.payload, PING)
            return
        self._conversation.wake_at = self._pinged_at + wait
        if not self._line:
            self._conversation.wake_at = min(self._conversation.wake_at, self._conversation.idle_at)

    def _next_ping(self, mark: Mark | None) -> Ping:
        return Ping(b"%d" % (self._pings + 1), mark)

    def _note_ping(self, ping: Ping, now: float) -> None:
        self._pings += 1
        self._ping = ping
        self._pinged_at = now
        self._conversation.wake_at = now + PONG_TIMEOUT

    def _patience(self, mark: Mark | None) -> float:
        """Seconds between the last ping and the next."""
        if mark is None:
            return PING_INTERVAL
        return 0.0 if mark.delivery.sent_all or self._conversation.leaving else CONFIRM_INTERVAL

    def _read(self) -> None:
        """Takes the pongs until the link is lost, and says why it is."""
        try:
            self._socket.read(self._note_pong)
        except Exception as error:  # noqa: BLE001 - the writer raises it again
            self._lost = describe(error)
            self._socket.interrupt()  # a write that waits for this link fails at once
            self._line.bell.ring()

    def _note_pong(self, payload: bytes) -> bool:
        """See Socket.read; more is always wanted."""
        ping = self._ping
        if ping is None or payload != ping.payload:
            return True
        self._ping = None
        self._conversation.note_success()
        if ping.mark is not None:
            self._line.confirm(ping.mark)
        if self._line.passes_on:
            self._conversation.wake_at = self._pinged_at + CONFIRM_INTERVAL + TOKEN_GAP
        else:
            self._line.bell.ring()
        return True

    def _break_off(self) -> None:
        self._socket.break_off()
        self._socket.interrupt()
