"""A turn's life: one prompt, one answer, one writer.

    starting ──> streaming ──> complete | failed | cancelled | interrupted

The gateway's answer is read and its events are appended here alone, by the turn's greenlet or, while it sleeps, for it
in the hub; everyone else follows. Whatever happens, the last event is one Done.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gevent

from .chunks import Delta
from .content import Content
from .errors import AnswerTooLong, InternalError, Interrupted, RelayError
from .gateway import Chat
from .journal import AHEAD, Entry
from .journal.tail import Follower, Tail
from .measure import Measure
from .spans import Span
from .sse import Done, Event, Extra, Failure, Retrying, new_token

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
BESIDE = 4  # bytes of what comes beside the text that count as one character: most are names and brackets
WATCH_LIFE = 3.0  # seconds that a word from another worker counts, that someone follows there


class Cancelled(gevent.GreenletExit):  # type: ignore[misc]  # gevent has no type for it
    """Thrown into a turn's greenlet: nobody wants the rest. `args` tell whether that was said."""


class Lost(gevent.GreenletExit):  # type: ignore[misc]
    """Thrown into a turn's greenlet: another worker has ended the turn, because this one's lease had run out."""


Reason = RelayError | Cancelled | Lost


class Lease(Protocol):
    """What lets this worker write its turns. Looked at before each step."""

    lease_ends: float  # monotonic seconds

    def wait_for_lease(self, to_end: bool = False) -> None:
        """Waits until it is known which turns are still this worker's own. See journal.courier."""


class Turn:
    """One answer in the making. Made by `Turns.start`."""

    def __init__(
        self,
        entry: Entry,
        tail: Tail,
        chat: Chat,
        lease: Lease,
        on_events: Callable[[Tail], None],
        span: Span,
        content: Content | None = None,
    ) -> None:
        """`on_events` is called when there is something new for the journal.

        `content` is for a log that may hold it.
        """
        self.id = entry.id
        self.conversation_id = entry.conversation_id
        self.state = "starting"
        self.chat = chat
        self.tail = tail
        self.began = time.monotonic()
        self.unfollowed_since: float | None = self.began
        self._entry = entry
        self._watched_until = 0.0
        self._lease = lease
        self._on_events = on_events
        self._content = content
        self._greenlet: gevent.Greenlet[[Callable[[Turn], None]], None] | None = None
        self._can_break = False  # whether `end_with` may break off what runs, by throwing in its reason
        self._ending = False
        self._end_asked: Reason | None = None
        self._span = span
        self._measure = Measure(self.began)
        self._chars = 0
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] | None = None
        self._ended_at: float | None = None
        self._cancelled_for: str | None = None

    @property
    def entry(self) -> Entry:
        """The entry as it is now, ahead of the journal's."""
        last_id = self.tail.last_id
        if not self.ended:
            return self._entry._replace(last_id=last_id, reach=last_id + AHEAD)
        return self._entry._replace(last_id=last_id, reach=last_id, status=self.state, ended=self._ended_at)

    @property
    def ended(self) -> bool:
        return self.state in ENDS

    def start(self, on_end: Callable[["Turn"], None]) -> None:
        self._greenlet = gevent.spawn(self._run, on_end)

    def follow(self, cursor: int, can_return: bool) -> Follower:
        """A cursor for someone who reads along."""
        self.unfollowed_since = None
        follower = self.tail.follow(cursor, can_return=can_return)
        self._measure.note_followers(self.tail.audience)
        return follower

    def watch(self) -> None:
        """Someone follows on another worker."""
        self.unfollowed_since = None
        self._watched_until = self.tail.watched_until = time.monotonic() + WATCH_LIFE

    def mirror(self) -> None:
        """The transcript follows on another worker; it is no audience."""
        self.tail.watched_until = time.monotonic() + WATCH_LIFE

    def note_audience(self, now: float) -> None:
        """Notes since when no one follows, here or elsewhere."""
        if self.unfollowed_since is None and not self.tail.audience and now >= self._watched_until:
            self.unfollowed_since = now

    def postpone_grace(self, now: float) -> None:
        """While the store is out of order, no one can say on another worker that someone follows there."""
        if self.unfollowed_since is not None:
            self.unfollowed_since = now

    def end_with(self, reason: Reason) -> None:
        """Ends the turn from outside; does nothing to one that has ended or, unless it is lost, is about to."""
        if self.ended or ((self._ending or self._end_asked is not None) and not isinstance(reason, Lost)):
            return
        self._end_asked = reason
        if self._can_break:
            gevent.get_hub().loop.run_callback(self._throw)

    def _throw(self) -> None:
        # Looked at again here, in the hub: since `end_with` the turn may have come to its end by itself, which only
        # the word that it is lost can still change.
        if self._ending and not isinstance(self._end_asked, Lost):
            return
        if self._can_break and self._greenlet is not None and self._end_asked is not None:
            self._greenlet.throw(self._end_asked)

    def _run(self, on_end: Callable[["Turn"], None]) -> None:
        try:
            status, error = self._answer()
            self._ending = True
            try:
                self._can_break = True
                self._lease.wait_for_lease(to_end=True)
            finally:
                self._can_break = False
            self._end(status, error)
        except Lost:
            self._end_as_told()
        finally:
            try:
                self.chat.close()
            finally:
                on_end(self)

    def _answer(self) -> tuple[str, RelayError | None]:
        """Reads the answer; returns how it ended, and why where that was no good end. Raises Lost."""
        try:
            if self._end_asked is not None:
                raise self._end_asked
            try:
                self._can_break = True
                self.chat.read(self)
            finally:
                self._can_break = False
        except Cancelled as cancelled:
            self._cancelled_for = str(cancelled)
            return "cancelled", None
        except Interrupted as error:
            return "interrupted", error
        except RelayError as error:
            return "failed", error
        except Exception:
            log.exception("turn broke", extra=self._names)
            return "failed", InternalError()
        return "complete", None

    def take(self, deltas: Sequence[Delta | Retrying]) -> None:
        """See gateway.Taker."""
        self._lease.wait_for_lease()
        self._add(deltas, time.monotonic())
        self.tail.wait_for_room()

    def take_now(self, deltas: Sequence[Delta], now: float) -> bool:
        """See gateway.Taker. The first text is told to tracers, who may wait."""
        if self._measure.first is None or now >= self._lease.lease_ends or self.tail.is_full:
            return False
        self._add(deltas, now)
        return True

    def _add(self, deltas: Sequence[Delta | Retrying], now: float) -> None:
        events: list[Event] = []
        next_id = self.tail.last_id + 1
        texts = 0
        for delta in deltas:
            if isinstance(delta, str):
                events.append(new_token((next_id + len(events), delta)))
                self._chars += len(delta)
                texts += 1
                if self._content is not None:
                    self._content.add(delta)
            elif isinstance(delta, Retrying):
                self.tail.tell(delta)
            elif delta.choice:
                events.append(Extra(next_id + len(events), delta.choice))
                self._chars += len(delta.choice) // BESIDE
            else:
                self._finish_reason = delta.finish_reason or self._finish_reason
                self._usage = delta.usage or self._usage
        if events:
            if self.state == "starting":
                self._move("streaming")
            if texts:
                if self._measure.first is None:
                    self._span.note("first_token")
                self._measure.take(now, texts)
            self.tail.append(events)
            self._on_events(self.tail)
        if self._chars > MAX_ANSWER_CHARS:
            raise AnswerTooLong

    def _end(self, status: str, error: RelayError | None = None) -> None:
        self._move(status)
        events: list[Event] = []
        if error is not None:
            events.append(Failure(self.tail.last_id + 1, error.sentence, error.code))
        events.append(Done(self.tail.last_id + 1 + len(events), status, self._finish_reason, self._usage))
        self.tail.append(events)
        self._on_events(self.tail)
        self._tell_end(status, error)

    def _end_as_told(self) -> None:
        """Ends as the journal says: the closing events are another worker's."""
        self._move("interrupted")
        self.tail.adopt_closing()
        error = Interrupted(detail="another worker took over: this one was silent for too long")
        self._tell_end("interrupted", error, is_counted=False)  # that one has counted it

    def _move(self, state: str) -> None:
        if state not in MOVES[self.state]:
            raise ValueError(f"a turn cannot go from {self.state} to {state}")
        self.state = state
        self._ended_at = time.time() if state in ENDS else None

    def _tell_end(self, status: str, error: RelayError | None, is_counted: bool = True) -> None:
        """The turn's one line in the log, its counts, and the end of its span."""
        now = time.monotonic()
        code = error.code if error is not None else None
        if is_counted:
            self._measure.end(now, status, code or "")
        usage = tokens_used(self._usage)
        self._span.set(
            {
                "relay.status": status,
                "gen_ai.response.finish_reasons": [self._finish_reason] if self._finish_reason else None,
                "gen_ai.usage.input_tokens": usage.get("prompt_tokens"),
                "gen_ai.usage.output_tokens": usage.get("completion_tokens"),
            }
        )
        self._span.end(code)
        if error is not None or log.isEnabledFor(logging.INFO):
            self._log_end(now, status, error)
        if self._content is not None:
            self._content.log()

    def _log_end(self, now: float, status: str, error: RelayError | None) -> None:
        fields: dict[str, Any] = {
            **self._names,
            "status": status,
            "finish_reason": self._finish_reason,
            "reason": self._cancelled_for,
            "events": self.tail.last_id,
            "chars": self._chars,
            **self._measure.fields(now),
            **tokens_used(self._usage),
            "retries": self.chat.retries,
            "correlation": self.chat.correlation,
            "worker": os.getpid(),
        }
        if error is None:
            log.info("turn ended", extra=fields)
        else:
            log.warning("turn failed", extra=fields | {"code": error.code, "detail": error.detail})

    @property
    def _names(self) -> dict[str, str | None]:
        """For log lines: what they can be searched by."""
        return {
            "turn": self.id,
            "conversation": self.conversation_id,
            "caller": self._entry.caller,
            "trace": self._span.context.trace_id,
        }


def tokens_used(usage: dict[str, Any] | None) -> dict[str, int]:
    """What the gateway has counted, where it is a count."""
    counts = {name: (usage or {}).get(name) for name in ("prompt_tokens", "completion_tokens")}
    return {name: count for name, count in counts.items() if type(count) is int and 0 <= count < 2**63}
