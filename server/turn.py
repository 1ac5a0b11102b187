"""A turn's life: one prompt, one answer, one writer.

    starting ──> streaming ──> complete | failed | cancelled | interrupted

The turn's greenlet reads the gateway and appends events; everyone else follows. Whatever happens, the last event is one
Done.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import gevent

from .chunks import Delta
from .errors import AnswerTooLong, InternalError, Interrupted, RelayError
from .gateway import Chat
from .journal.tail import Follower, Tail
from .sse import Done, Event, Failure, Retrying, Token

log = logging.getLogger(__name__)

ENDS = frozenset({"complete", "failed", "cancelled", "interrupted"})
MOVES = {
    "starting": ENDS | {"streaming"},
    "streaming": ENDS,
    "complete": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
    "interrupted": frozenset(),
}
MAX_ANSWER_CHARS = 1_000_000  # of one answer; bounds what a runaway gateway can make us hold
WATCH_LIFE = 3.0  # seconds that a word from another worker counts, that someone follows there


class Cancelled(gevent.GreenletExit):  # type: ignore[misc]  # gevent has no type for it
    """Thrown into a turn's greenlet: nobody wants the rest."""


class Lost(gevent.GreenletExit):  # type: ignore[misc]
    """Thrown into a turn's greenlet: another worker has ended the turn, because this one's lease had run out."""


Reason = RelayError | Cancelled | Lost


class Turn:
    """One answer in the making. Made by `Turns.start`."""

    def __init__(
        self,
        tail: Tail,
        conversation_id: str | None,
        chat: Chat,
        wait_for_lease: Callable[[], None],
        on_events: Callable[["Turn"], None],
    ) -> None:
        """`wait_for_lease` is called before each step, `on_events` when there is something new for the journal."""
        self.id = tail.turn_id
        self.conversation_id = conversation_id
        self.state = "starting"
        self.chat = chat
        self.tail = tail
        self.began = time.monotonic()
        self.unfollowed_since: float | None = self.began
        self._watched_until = 0.0
        self._wait_for_lease = wait_for_lease
        self._on_events = on_events
        self._greenlet: gevent.Greenlet[[Callable[[Turn], None]], None] | None = None
        self._reading = False
        self._end_asked: Reason | None = None
        self._first_token: float | None = None
        self._chars = 0
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDS

    @property
    def watched(self) -> bool:
        """Whether someone follows on another worker."""
        return time.monotonic() < self._watched_until

    def start(self, on_end: Callable[["Turn"], None]) -> None:
        self._greenlet = gevent.spawn(self._run, on_end)

    def follow(self, cursor: int, can_return: bool) -> Follower:
        """A cursor for someone who reads along; `leave` gives it back."""
        self.unfollowed_since = None
        return self.tail.follow(cursor, can_return=can_return)

    def leave(self, follower: Follower) -> None:
        follower.close()
        self.note_audience(time.monotonic())

    def watch(self) -> None:
        """Someone follows on another worker."""
        self.unfollowed_since = None
        self._watched_until = time.monotonic() + WATCH_LIFE

    def note_audience(self, now: float) -> None:
        """Notes since when no one follows, here or elsewhere."""
        if self.unfollowed_since is None and not self.tail.audience and now >= self._watched_until:
            self.unfollowed_since = now

    def end_with(self, reason: Reason) -> None:
        """Ends the turn from outside; does nothing to one that has ended or is about to."""
        if self.ended or self._end_asked is not None:
            return
        self._end_asked = reason
        if self._reading:
            gevent.get_hub().loop.run_callback(self._throw)

    def _throw(self) -> None:
        # Looked at again here, in the hub: the turn may have ended by itself since `end_with`.
        if self._reading and self._greenlet is not None and self._end_asked is not None:
            self._greenlet.throw(self._end_asked)

    def _run(self, on_end: Callable[["Turn"], None]) -> None:
        try:
            self._read()
            self._end("complete")
        except Cancelled:
            self._end("cancelled")
        except Lost:
            self._end_as_told()
        except Interrupted as error:
            self._end("interrupted", error)
        except RelayError as error:
            self._end("failed", error)
        except Exception:
            log.exception("turn broke", extra={"turn": self.id})
            self._end("failed", InternalError())
        finally:
            self.chat.close()
            on_end(self)

    def _read(self) -> None:
        if self._end_asked is not None:
            raise self._end_asked
        self._reading = True
        try:
            for deltas in self.chat:
                self._wait_for_lease()
                self._take(deltas)
                self.tail.wait_for_room()
            self._wait_for_lease()
        finally:
            self._reading = False

    def _take(self, deltas: Sequence[Delta | Retrying]) -> None:
        events: list[Event] = []
        next_id = self.tail.last_id + 1
        for delta in deltas:
            if isinstance(delta, Retrying):
                self.tail.tell(delta)
                continue
            if delta.text:
                events.append(Token(next_id + len(events), delta.text))
                self._chars += len(delta.text)
            self._finish_reason = delta.finish_reason or self._finish_reason
            self._usage = delta.usage or self._usage
        if events:
            if self.state == "starting":
                self._move("streaming")
                self._first_token = time.monotonic()
            self.tail.append(events)
            self._on_events(self)
        if self._chars > MAX_ANSWER_CHARS:
            raise AnswerTooLong

    def _end(self, status: str, error: RelayError | None = None) -> None:
        self._move(status)
        events: list[Event] = []
        if error is not None:
            events.append(Failure(self.tail.last_id + 1, error.sentence, error.code))
        events.append(Done(self.tail.last_id + 1 + len(events), status, self._finish_reason, self._usage))
        self.tail.append(events)
        self._on_events(self)
        self._log_end(status, error)

    def _end_as_told(self) -> None:
        """Ends as the journal says: the closing events are another worker's."""
        self._move("interrupted")
        self.tail.adopt_closing()
        self._log_end("interrupted", Interrupted(detail="another worker took over: this one was silent for too long"))

    def _move(self, state: str) -> None:
        if state not in MOVES[self.state]:
            raise ValueError(f"a turn cannot go from {self.state} to {state}")
        self.state = state

    def _log_end(self, status: str, error: RelayError | None) -> None:
        fields: dict[str, Any] = {
            "turn": self.id,
            "conversation": self.conversation_id,
            "status": status,
            "finish_reason": self._finish_reason,
            "events": self.tail.last_id,
            "first_token_ms": milliseconds(self.began, self._first_token),
            "duration_ms": milliseconds(self.began, time.monotonic()),
        }
        if error is None:
            log.info("turn ended", extra=fields)
        else:
            log.warning("turn failed", extra=fields | {"code": error.code, "detail": error.detail})


def milliseconds(begin: float, end: float | None) -> float | None:
    return None if end is None else round((end - begin) * 1000, 1)
