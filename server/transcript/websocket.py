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
from websocket import ABNF

from .. import metrics
from ..credentials import Credentials
from ..errors import StoreUnavailable
from ..settings import Settings
from ..sse import Token
from .conversation import STORE_WAIT, Conversation, describe
from .line import Mark, Piece
from .pieces import join, split
from .socket import GOING_AWAY, NORMAL, LinkLost, Socket, way_to

log = logging.getLogger(__name__)

PING_INTERVAL = 20.0  # seconds of silence on a link
CONFIRM_INTERVAL = 1.0  # seconds between two pings while text flows; the most that can repeat after a loss
PONG_TIMEOUT = 20.0  # seconds until a link without a pong counts as dead
ENVELOPE = 1024  # bytes of a message beside its text: conversation, role, id


class Websocket:
    """See `Sink`."""

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


class Ping(NamedTuple):
    """One that is under way: what its pong will say, and what it stands behind."""

    payload: bytes
    mark: Mark | None


class Link:
    """An open WebSocket: the conversation's greenlet writes, and another one reads."""

    def __init__(self, socket: Socket, conversation: Conversation, settings: Settings) -> None:
        self._socket = socket
        self._conversation = conversation
        self._line = conversation.line
        self._max_chars = settings.transcript_max_chars
        self._max_bytes = settings.transcript_max_bytes - ENVELOPE
        self._interval = settings.transcript_interval_ms / 1000
        self._has_ids = settings.transcript_message_id
        self._lost = ""
        self._ping: Ping | None = None
        self._pings = 0
        self._flows = False  # whether the last piece left nothing behind, and more of its turn will come
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
            has_more = not conversation.leaving and self._send_next()
            self._ping_if_due()
            if not has_more:
                conversation.bell.wait()

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
        self._flows = piece is not None and piece.is_all
        if piece is None:
            return False
        self._send_piece(piece)
        if self._interval:
            gevent.sleep(self._interval)
        return not piece.is_all

    def _join(self, tokens: Sequence[Token], final: bool) -> tuple[str, int]:
        """Each token at once; what waits goes together."""
        return join(tokens, self._max_chars, self._max_bytes)

    def _send_piece(self, piece: Piece) -> None:
        message = {"conversationId": self._conversation.id, "type": "message", "text": piece.text, "role": "agent"}
        # Tokens that were joined are within the limits; one alone may be too long.
        texts = split(piece.text, self._max_chars, self._max_bytes) if piece.first == piece.last else [piece.text]
        for number, text in enumerate(texts, 1):
            message["text"] = text
            if self._has_ids:
                part = f".{number}" if len(texts) > 1 else ""
                message["id"] = f"{piece.turn_id}:{piece.first}-{piece.last}{part}"
            self._socket.send(orjson.dumps(message), ABNF.OPCODE_TEXT)
        metrics.transcript_messages.inc(len(texts))
        metrics.transcript_characters.inc(len(piece.text))
        self._conversation.active_at = time.monotonic()

    def _ping_if_due(self) -> None:
        """Sends the ping that is due, and says when the next one is. Raises LinkLost when no pong comes."""
        now = time.monotonic()
        if self._ping is not None:
            if now - self._pinged_at >= PONG_TIMEOUT:
                raise LinkLost(f"no pong within {PONG_TIMEOUT:.0f} s", "silent")
            self._conversation.wake_at = self._pinged_at + PONG_TIMEOUT
            return
        if self._flows and not self._conversation.leaving and now - self._pinged_at < CONFIRM_INTERVAL:
            self._conversation.wake_at = self._pinged_at + CONFIRM_INTERVAL
            return
        mark = self._line.mark()
        wait = self._patience(mark)
        if now - self._pinged_at >= wait:
            self._pings += 1
            self._pinged_at = now
            self._ping = Ping(b"%d" % self._pings, mark)
            self._socket.send(self._ping.payload, ABNF.OPCODE_PING)
            wait = PONG_TIMEOUT
        self._conversation.wake_at = self._pinged_at + wait
        if not self._line:
            self._conversation.wake_at = min(self._conversation.wake_at, self._conversation.idle_at)

    def _patience(self, mark: Mark | None) -> float:
        """Seconds between the last ping and the next."""
        if mark is None:
            return PING_INTERVAL
        return 0.0 if mark.delivery.sent_all or self._conversation.leaving else CONFIRM_INTERVAL

    def _read(self) -> None:
        """Takes the pongs until the link is lost, and says why it is."""
        try:
            while True:
                self._note_pong(self._socket.next_pong())
        except Exception as error:  # noqa: BLE001 - the writer raises it again
            self._lost = describe(error)
            self._socket.interrupt()  # a write that waits for this link fails at once
            self._line.bell.ring()

    def _note_pong(self, payload: bytes) -> None:
        ping = self._ping
        if ping is None or payload != ping.payload:
            return
        self._ping = None
        self._conversation.note_success()
        if ping.mark is not None:
            self._line.confirm(ping.mark)
        self._line.bell.ring()

    def _break_off(self) -> None:
        self._socket.break_off()
        self._socket.interrupt()
