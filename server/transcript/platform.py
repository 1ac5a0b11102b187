"""The public platform API as the way into the transcript, for organisations without the socket.

Text is posted in whole sentences, within the limit of requests a minute that Genesys Cloud sets; meanwhile the agent
sees that more comes. What it answers with success has arrived.
"""

import logging
import time
from collections.abc import MutableMapping, Sequence
from itertools import takewhile
from typing import NamedTuple
from weakref import WeakKeyDictionary

import gevent

from .. import metrics
from ..backoff import MAX_RETRY_AFTER
from ..credentials import Credentials
from ..errors import StoreUnavailable
from ..settings import Settings
from ..sse import Token
from .api import TYPING_DURATION, ApiFailure, CannotSucceed, Communication, PlatformApi, TryAgain
from .conversation import STORE_WAIT, Conversation, Refused, SinkLost
from .gather import gather, split
from .line import Piece
from .pace import Pace

log = logging.getLogger(__name__)

TYPING_RETRY = 1.0  # seconds until there may be room for a typing event
RATE_PAUSE = 5.0  # seconds without a request when the limit is reached and nothing says for how long


class Platform:
    """See `Sink`."""

    hurries = True  # what is posted again is a whole message

    def __init__(self, settings: Settings, credentials: Credentials) -> None:
        self._api = PlatformApi(settings.genesys_api_url, credentials)
        self._pace = Pace(settings.transcript_requests_per_minute // settings.web_concurrency)
        self._max_chars = settings.transcript_max_chars
        self._begun: WeakKeyDictionary[Conversation, Begun] = WeakKeyDictionary()

    def carry(self, conversation: Conversation) -> None:
        """Posts what comes until nothing has come for long."""
        try:
            Posts(self._api, self._pace, self._max_chars, conversation, self._begun).post_all()
        except CannotSucceed as failure:
            raise Refused(failure.reason) from None
        except TryAgain as failure:
            raise self._lost(failure) from None
        finally:
            conversation.line.rewind()

    def close(self) -> None:
        self._api.close()

    def _lost(self, failure: TryAgain) -> SinkLost:
        rest(self._pace, failure)
        return SinkLost(failure.reason, failure.cause, min(failure.retry_after or 0.0, MAX_RETRY_AFTER))


def rest(pace: Pace, failure: ApiFailure) -> None:
    """Lets nothing leave for a while when the limit of requests is reached: it is the same for all conversations."""
    if isinstance(failure, TryAgain) and failure.is_rate_limit:
        pace.pause(time.monotonic(), min(failure.retry_after or RATE_PAUSE, MAX_RETRY_AFTER))


class Begun(NamedTuple):
    """A token so long that it takes several messages, of which some have arrived."""

    turn_id: str
    event_id: int
    chars: int  # that have arrived


class Posts:
    """One conversation's, for as long as all goes well."""

    def __init__(
        self,
        api: PlatformApi,
        pace: Pace,
        max_chars: int,
        conversation: Conversation,
        begun: MutableMapping[Conversation, Begun],
    ) -> None:
        """`begun` outlives this: a later try goes on within a long token."""
        self._api = api
        self._pace = pace
        self._max_chars = max_chars
        self._conversation = conversation
        self._begun = begun
        self._line = conversation.line
        self._communication = Communication("", max_chars)
        self._place_at: float | None = None  # monotonic seconds; when the next message may leave
        self._is_gathering = False
        self._typing_at = 0.0

    def post_all(self) -> None:
        """Raises ApiFailure or SinkLost."""
        conversation = self._conversation
        conversation.active_at = time.monotonic()
        self._wait_for_place()
        self._communication = self._find()
        while not conversation.leaving and not conversation.is_idle:
            piece = self._next_piece()
            if piece is not None:
                self._post(piece)
            else:
                self._show_typing()
                conversation.bell.wait()

    def _next_piece(self) -> Piece | None:
        if self._is_gathering and self._place_at is not None and not self._has_place():
            return None  # to look at each token that comes meanwhile would be for nothing
        self._is_gathering = False
        self._conversation.wake_at = self._conversation.idle_at
        try:
            return self._line.next_piece(self._cut)
        except StoreUnavailable:
            gevent.sleep(STORE_WAIT)
            self._line.bell.ring()
            return None

    def _cut(self, tokens: Sequence[Token], final: bool) -> tuple[str, int]:
        """Whole sentences, once it is their turn: what comes until then leaves with them."""
        found = gather(tokens, final, self._limit)
        if found is None or not (found.is_blank or self._has_place()):
            self._is_gathering = True
            return "", 0
        return found.text, sum(1 for _ in takewhile(lambda token: token.id <= found.last_id, tokens))

    @property
    def _limit(self) -> int:
        return min(self._max_chars, self._communication.max_chars)

    def _has_place(self) -> bool:
        now = time.monotonic()
        if self._place_at is None or (now >= self._place_at and self._pace.is_paused(now)):
            self._place_at = now + self._pace.reserve(now)
        self._conversation.wake_at = self._place_at
        return now >= self._place_at

    def _wait_for_place(self) -> None:
        self._place_at = None
        while not self._has_place():
            assert self._place_at is not None
            gevent.sleep(max(0.0, self._place_at - time.monotonic()))
        self._place_at = None

    def _find(self) -> Communication:
        return self._api.find_communication(self._conversation.id)

    def _post(self, piece: Piece) -> None:
        for text in split(piece.text[self._arrived_of(piece) :], self._limit):
            if text.strip():
                if self._place_at is None:
                    self._wait_for_place()
                self._place_at = None
                self._post_text(text)
            arrived = self._arrived_of(piece) + len(text)
            self._begun[self._conversation] = Begun(piece.turn_id, piece.first, arrived)
        del self._begun[self._conversation]
        mark = self._line.mark()
        if mark is not None:  # else the turn was dropped in the meantime
            self._line.confirm(mark)
        self._conversation.note_success()
        self._conversation.active_at = time.monotonic()

    def _arrived_of(self, piece: Piece) -> int:
        """How many of its characters have."""
        begun = self._begun.get(self._conversation)
        return begun.chars if begun is not None and begun[:2] == (piece.turn_id, piece.first) else 0

    def _post_text(self, text: str) -> None:
        """Looks once for the next agent's communication when the one that was open has ended."""
        try:
            self._send(text)
        except CannotSucceed as failure:
            if not failure.look_again:
                raise
            self._wait_for_place()
            found = self._find()
            if found.id == self._communication.id:
                raise
            self._communication = found
            self._wait_for_place()
            self._send(text)
        metrics.transcript_messages.inc(1)
        metrics.transcript_characters.inc(len(text))

    def _send(self, text: str) -> None:
        if not self._conversation.may_send():
            raise SinkLost("this worker is no longer sure to hold the conversation")
        self._api.post_message(self._conversation.id, self._communication.id, text)

    def _show_typing(self) -> None:
        """While text gathers; for decoration alone, so that whatever goes wrong is left for the text to find out."""
        now = time.monotonic()
        if not self._is_gathering:
            return
        self._conversation.wake_at = min(self._conversation.wake_at, max(self._typing_at, now + TYPING_RETRY))
        if now < self._typing_at or not self._pace.take_spare(now):
            return
        self._typing_at = now + TYPING_DURATION
        try:
            self._api.show_typing(self._conversation.id, self._communication.id)
        except ApiFailure as failure:
            rest(self._pace, failure)
            fields = {"conversation": self._conversation.id, "detail": failure.reason}
            log.debug("transcript: typing could not be shown", extra=fields)
