"""A turn's life: one prompt, one answer, one writer.

    starting ──> streaming ──> complete | failed | cancelled | interrupted

The turn's greenlet reads the gateway and appends events; everyone else follows. Whatever happens, the last event is one
Done. One sweeper greenlet a worker does what needs a clock: flushes, pings, deadlines, grace.
"""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

import gevent
from gevent.event import Event as Flag

from .chunks import Delta
from .errors import (
    AnswerTooLong,
    Draining,
    GatewayStalled,
    InternalError,
    RelayError,
    TooManyTurns,
    TurnTimedOut,
)
from .gateway import Chat, Gateway
from .journal import Journal
from .journal.tail import Follower, Tail
from .prompt import Prompt
from .settings import Settings
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
FLUSH_INTERVAL = 0.25  # seconds; the most that kill -9 can lose
PURGE_INTERVAL = 10.0  # seconds
PING_INTERVAL = 15.0  # seconds of silence until a follower gets a ping
SEND_TIMEOUT = 30.0  # seconds that one write to a follower may take until the follower is given up
SWEEP_INTERVAL = 0.5  # seconds


class TurnCancelled(gevent.GreenletExit):  # type: ignore[misc]  # gevent has no type for it
    """Thrown into a turn's greenlet to end it; `status` is cancelled or interrupted."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class Turn:
    """One answer in the making. Made by `Turns.start`."""

    def __init__(self, turn_id: str, conversation_id: str | None, chat: Chat, tail: Tail) -> None:
        self.id = turn_id
        self.conversation_id = conversation_id
        self.state = "starting"
        self.chat = chat
        self.tail = tail
        self.began = time.monotonic()
        self.unfollowed_since: float | None = self.began
        self._greenlet: gevent.Greenlet[[Callable[[Turn], None]], None] | None = None
        self._reading = False
        self._end_asked: RelayError | TurnCancelled | None = None
        self._first_token: float | None = None
        self._chars = 0
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDS

    def start(self, on_end: Callable[["Turn"], None]) -> None:
        self._greenlet = gevent.spawn(self._run, on_end)

    def follow(self, cursor: int = 0) -> Follower:
        """A cursor for someone who reads along; `leave` gives it back."""
        self.unfollowed_since = None
        return self.tail.follow(cursor)

    def leave(self, follower: Follower) -> None:
        follower.close()
        if not self.tail.audience and self.unfollowed_since is None:
            self.unfollowed_since = time.monotonic()

    def end_with(self, reason: RelayError | TurnCancelled) -> None:
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
        except TurnCancelled as cancelled:
            self._end(cancelled.status)
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
                self._take(deltas)
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
        if self._chars > MAX_ANSWER_CHARS:
            raise AnswerTooLong

    def _end(self, status: str, error: RelayError | None = None) -> None:
        self._move(status)
        events: list[Event] = []
        if error is not None:
            events.append(Failure(self.tail.last_id + 1, error.sentence, error.code))
        events.append(Done(self.tail.last_id + 1 + len(events), status, self._finish_reason, self._usage))
        self.tail.append(events)
        self._log_end(status, error)

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


class Turns:
    """All turns of this worker."""

    def __init__(self, settings: Settings, gateway: Gateway, journal: Journal) -> None:
        self.idle = Flag()
        self.draining = False
        self._settings = settings
        self._gateway = gateway
        self._journal = journal
        self._running: dict[str, Turn] = {}
        self._followed: set[Turn] = set()
        self._unflushed: set[Tail] = set()
        self._flush_due = Flag()
        self._next_purge = 0.0
        self._greenlets: list[gevent.Greenlet[[], None]] = []
        self.idle.set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, prompt: Prompt, conversation_id: str | None) -> Turn:
        """Begins a turn and returns at once. Raises TooManyTurns or Draining; nothing was asked then."""
        if self.draining:
            raise Draining(retry_after=1)
        if len(self._running) >= self._settings.max_turns:
            raise TooManyTurns(retry_after=2)
        if not self._greenlets:
            self._greenlets = [gevent.spawn(self._sweep), gevent.spawn(self._flush)]
        turn_id = secrets.token_urlsafe(16)
        deadline = time.monotonic() + self._settings.gateway_timeout
        self._journal.begin(turn_id, conversation_id)
        tail = Tail(turn_id, self._journal, self._note_unflushed)
        turn = Turn(turn_id, conversation_id, self._gateway.open_chat(prompt, turn_id, deadline), tail)
        self._running[turn_id] = turn
        self._followed.add(turn)
        self.idle.clear()
        turn.start(self._note_end)
        return turn

    def leave(self, turn: Turn, follower: Follower) -> None:
        """The follower goes; without any, the turn goes on for DISCONNECT_GRACE."""
        turn.leave(follower)
        self._check_grace(turn, time.monotonic())

    def interrupt(self) -> None:
        """Ends every turn with `interrupted` and begins no more, because the process is about to go."""
        self.draining = True
        for turn in list(self._running.values()):
            turn.end_with(TurnCancelled("interrupted"))

    def close(self) -> None:
        gevent.killall(self._greenlets, block=False)

    def _note_end(self, turn: Turn) -> None:
        self._running.pop(turn.id, None)
        if not self._running:
            self.idle.set()

    def _note_unflushed(self, tail: Tail) -> None:
        self._unflushed.add(tail)
        self._flush_due.set()

    def _flush(self) -> None:
        """Brings to the journal what the tails have; one transaction for all of them."""
        while True:
            self._flush_due.wait()
            gevent.sleep(FLUSH_INTERVAL)
            self._flush_due.clear()
            self._flush_now()

    def _flush_now(self) -> None:
        tails, self._unflushed = self._unflushed, set()
        batches = [(tail, tail.unkept()) for tail in tails]
        try:
            self._journal.append([batch for _, batch in batches])
        except Exception:
            log.exception("journal failed; trying again")
            self._unflushed |= tails
            self._flush_due.set()
            return
        for tail, batch in batches:
            tail.kept(batch.events[-1].id)

    def _sweep(self) -> None:
        interval = min(SWEEP_INTERVAL, self._settings.gateway_idle_timeout / 4, self._settings.gateway_timeout / 4)
        while True:
            gevent.sleep(interval)
            now = time.monotonic()
            for turn in list(self._followed):
                self._check_deadlines(turn, now)
                self._check_grace(turn, now)
                for follower in turn.tail.followers:
                    check_follower(turn, follower, now)
                if turn.ended and not turn.tail.followers:
                    self._followed.discard(turn)
            if now >= self._next_purge:
                self._next_purge = now + PURGE_INTERVAL
                self._journal.purge()

    def _check_deadlines(self, turn: Turn, now: float) -> None:
        silent_since = turn.chat.silent_since
        if now - turn.began > self._settings.gateway_timeout:
            turn.end_with(TurnTimedOut())
        elif silent_since is not None and now - silent_since > self._settings.gateway_idle_timeout:
            turn.end_with(GatewayStalled())

    def _check_grace(self, turn: Turn, now: float) -> None:
        grace = self._settings.disconnect_grace
        if grace >= 0 and turn.unfollowed_since is not None and now - turn.unfollowed_since >= grace:
            turn.end_with(TurnCancelled("cancelled"))


def check_follower(turn: Turn, follower: Follower, now: float) -> None:
    """Keeps the connection of one who waits alive, and gives up one who does not read."""
    if follower.waiting_since is not None and now - follower.waiting_since >= PING_INTERVAL:
        follower.nudge()
    elif follower.sending_since is not None and now - follower.sending_since >= SEND_TIMEOUT:
        log.warning("client does not read, dropped", extra={"turn": turn.id, "cursor": follower.cursor})
        follower.drop()


def milliseconds(begin: float, end: float | None) -> float | None:
    return None if end is None else round((end - begin) * 1000, 1)
