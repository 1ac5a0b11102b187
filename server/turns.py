"""All turns of this worker, and the way to those of other workers.

One sweeper greenlet does what needs a clock: pings, deadlines, grace. Others flush, carry news and keep the lease.
"""

import logging
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

import gevent
from gevent.event import Event as Flag

from . import metrics, pulse, spans
from .access.allowance import Standing
from .bell import Bell
from .content import Content
from .errors import (
    BadCursor,
    ConversationBusy,
    Draining,
    GatewayStalled,
    Interrupted,
    KeyUsedOtherwise,
    StoreUnavailable,
    StreamNotFound,
    TooManyTurns,
    TurnTimedOut,
)
from .gateway import Gateway
from .journal import Entry, Journal, Wish
from .journal.courier import Courier
from .journal.flusher import Flusher
from .journal.health import Health
from .journal.outbox import Delivery
from .journal.tail import Follower, Tail
from .prompt import Prompt
from .settings import Settings
from .sse import Event
from .tracing import TraceContext
from .turn import Cancelled, Lost, Turn

log = logging.getLogger(__name__)

PING_INTERVAL = 15.0  # seconds of silence until a follower gets a ping
SEND_TIMEOUT = (
    20.0  # seconds that one write to a follower may take; below what the kernel waits (client.USER_TIMEOUT_MS)
)
SWEEP_INTERVAL = 0.5  # seconds
DISMISSED_GRACE = 5.0  # seconds at least for those who were sent to another worker to be there
LOOP_PAUSE = 1.0  # seconds until a loop that broke is run again
ERASE_PATIENCE = 8.0  # seconds for running turns to end; those of a worker that has died take some five
ERASE_PAUSE = 0.1  # seconds between two looks whether they have
MOMENTS = 16  # a second; in which ids begin alike
LIST_LIMIT = 100  # turns of a conversation that are listed


class Key(NamedTuple):
    """Makes a question that is sent twice begin one turn."""

    value: str  # the Idempotency-Key
    fingerprint: str  # of the body that came with it


class Started(NamedTuple):
    entry: Entry
    turn: Turn | None = None  # without one it had begun before, here or elsewhere
    standing: Standing | None = None  # what its caller has left, where a rate limits it


class Mirror(Protocol):
    """What goes along with the turns: the transcript."""

    def loops(self) -> list[Callable[[], None]]:
        """To be run, each in a greenlet of its own, for ever."""

    def note(self, conversation_id: str) -> None:
        """A turn of this conversation has begun. Returns at once."""

    def doubt(self) -> None:
        """This worker's lease had run out."""

    def drain(self) -> None:
        """This worker stops."""


class Turns:
    def __init__(self, settings: Settings, gateway: Gateway, journal: Journal) -> None:
        self.idle = Flag()
        self.idle.set()
        self._settings = settings
        self._allowance = settings.allowance
        self._gateway = gateway
        self._journal = journal
        # Those that run, and those that someone here still reads or that are not kept yet.
        self._turns: dict[str, Turn] = {}
        self._followers: set[Follower] = set()  # all who read here, until their responses have ended
        self._running = 0
        self._last_start: float | None = None
        self._dismissing = False
        self._interrupted = False
        self._closed = False
        self._health = Health()
        self._flusher = Flusher(journal, self._health, self._lose)
        self._tracer: spans.Tracer = spans.PlainTracer()
        self._courier = Courier(journal, self._health, self._take_wish, self._note_gap)
        self._mirror: Mirror | None = None
        self._greenlets: list[gevent.Greenlet[..., None]] = []

    def __len__(self) -> int:
        return self._running

    @property
    def draining(self) -> bool:
        return self._dismissing

    def wait_for_store(self) -> bool:
        """Whether the store keeps what this worker writes, its lease first of all: it renews that all the time.

        Waits for the first renewal, and while one takes longer than it should.
        """
        self.open()
        self._courier.wait_for_lease()
        return not self._health.failing

    @property
    def all_kept(self) -> bool:
        """Whether the journal has everything."""
        return self._flusher.is_done

    def mirror_into(self, mirror: Mirror) -> None:
        """Turns of a conversation are mirrored from now on. To be called before `open`."""
        self._mirror = mirror

    def open(self) -> None:
        """Starts the greenlets; may be repeated."""
        if not self._greenlets:
            pulse.start()
            metrics.turns_limit.inc(self._settings.max_turns)
            self._tracer = spans.tracer()
            courier = self._courier
            loops = [courier.hold_lease, self._sweep, self._flusher.run, courier.carry, courier.tend]
            loops += self._mirror.loops() if self._mirror else []
            self._greenlets = [gevent.spawn(run_for_ever, loop, lambda: self._closed) for loop in loops]

    def start(
        self,
        prompt: Prompt,
        conversation_id: str | None,
        caller: str,
        key: Key | None,
        trace: TraceContext | None = None,
    ) -> Started:
        """Begins a turn, or finds the one that the same caller's `key` has begun before.

        `trace` is where whoever asks stands in a trace.

        Raises TooManyTurns, Draining, StoreUnavailable, KeyUsedOtherwise, TooManyRequests or TooManyTurnsOfCaller;
        nothing was asked then.
        """
        self.open()
        self._check_open()
        if self._running >= self._settings.max_turns:
            raise TooManyTurns(retry_after=2)
        if self._health.failing:
            raise StoreUnavailable(retry_after=2)
        entry = Entry(
            make_id(time.time(), secrets.token_bytes),
            conversation_id,
            caller,
            began=time.time(),
            fingerprint=key.fingerprint if key else "",
            mirrored=self._mirror is not None and conversation_id is not None,
        )
        span = self._tracer.begin(
            trace, spans.of_prompt(entry.id, conversation_id, prompt, self._settings.gateway_model)
        )
        chat = self._gateway.open_chat(prompt, entry.id, time.monotonic() + self._settings.gateway_timeout, span)
        content = Content(entry.id, prompt) if self._settings.log_content else None
        tail = Tail(entry.id, self._journal)
        turn = Turn(entry, tail, chat, self._courier, self._flusher.note, span, content)
        self._running += 1
        self.idle.clear()
        found = None
        try:
            self._courier.wait_for_lease()
            found, standing = self._journal.begin(entry, key.value if key else None, self._allowance)
        finally:
            if found is None or found.id != entry.id:
                self._count_down()
        if found.fingerprint != entry.fingerprint:
            raise KeyUsedOtherwise
        if found.id != entry.id:
            return Started(found)
        self._turns[entry.id] = turn
        metrics.turns_begun.inc()
        metrics.turns_running.inc()
        if self._interrupted:
            turn.end_with(Interrupted())
        turn.start(self._note_end)
        if self._mirror is not None and conversation_id is not None:
            self._mirror.note(conversation_id)
        return Started(entry, turn, standing)

    def find(self, turn_id: str, may_see: Callable[[Entry], bool]) -> Entry:
        """What is known of a turn, wherever it runs. Raises StreamNotFound or StoreUnavailable.

        A turn that is there, but not for who asks, is looked up like one that is not: the time tells nothing either.
        """
        self.open()  # what the dead left to run must be ended
        turn = self._turns.get(turn_id)
        is_mine = turn is not None and may_see(turn.entry)
        if turn is not None and is_mine and not (turn.ended and turn.tail.is_kept):
            return turn.entry
        try:
            entry = self._journal.find(turn_id)  # one that has ended here may have been erased since
        except StoreUnavailable:
            if turn is None or not is_mine:
                raise
            return turn.entry
        if entry is None or not may_see(entry):
            raise StreamNotFound
        return entry

    def turns_of(self, conversation_id: str, caller: str) -> list[Entry]:
        """The newest that this caller began in a conversation, oldest first. Raises StoreUnavailable.

        Those that run here are ahead of the journal: who has just read a turn's end finds it ended.
        """
        found = self._journal.turns_of(conversation_id, caller, LIST_LIMIT)
        return [self._turns[entry.id].entry if entry.id in self._turns else entry for entry in found]

    def follow(self, entry: Entry, cursor: int, can_return: bool = True) -> Follower:
        """Someone who reads here; `leave` gives it back. Raises BadCursor for a cursor that no one can have."""
        self.open()
        if cursor > entry.reach:
            raise BadCursor
        turn = self._turns.get(entry.id)
        if turn is None:
            follower = self._courier.follow(entry, cursor, can_return=can_return)
        else:
            follower = turn.follow(cursor, can_return)
        self._followers.add(follower)
        metrics.followers.inc()
        return follower

    def listen(self, turn_id: str, cursor: int, bell: Bell) -> Follower:
        """Follows a turn, wherever it runs, as no audience. Raises StreamNotFound or StoreUnavailable."""
        turn = self._turns.get(turn_id)
        if turn is not None:
            return turn.tail.follow(cursor, is_audience=False, bell=bell)
        entry = self._journal.find(turn_id)
        if entry is None:
            raise StreamNotFound
        return self._courier.follow(entry, cursor, is_audience=False, bell=bell)

    def runs_here(self, turn_id: str) -> bool:
        return turn_id in self._turns and not self._turns[turn_id].ended

    def runs_elsewhere(self, turn_id: str) -> bool:
        """Whether another worker runs it, for a turn that someone follows here."""
        return self._courier.mirrors(turn_id)

    def may_send(self) -> bool:
        """Whether this worker's lease holds for certain."""
        return self._courier.lease_is_sure

    def may_judge(self) -> bool:
        """Whether this worker may say of others that their leases do not hold."""
        return self._courier.may_judge

    def delivery(self, turn_id: str) -> Delivery | None:
        """How far the turn's text is on its way into the transcript, if it goes there. Raises StoreUnavailable."""
        return self._journal.outbox.find(turn_id)

    def leave(self, follower: Follower) -> None:
        """The follower goes; without any, the turn goes on for DISCONNECT_GRACE."""
        follower.close()
        if follower in self._followers:  # `leave` may be repeated
            self._followers.remove(follower)
            metrics.followers.dec()
        turn = self._turns.get(follower.turn_id)
        if turn is not None:
            now = time.monotonic()
            turn.note_audience(now)
            self._check_grace(turn, now)

    def events_of(self, entry: Entry) -> list[Event]:
        """All events up to now. Raises StoreUnavailable."""
        turn = self._turns.get(entry.id)
        # A turn that another worker has ended may still have here what was never kept.
        is_here = turn is not None and not (turn.ended and turn.tail.is_kept)
        tail = turn.tail if turn is not None and is_here else Tail(entry.id, self._journal, entry.last_id)
        events: list[Event] = []
        while more := tail.after(events[-1].id if events else 0):
            events += more
        return events

    def cancel(self, entry: Entry) -> None:
        """Ends the turn, wherever it runs; does nothing to one that has ended. Raises StoreUnavailable."""
        turn = self._turns.get(entry.id)
        if turn is not None:
            turn.end_with(Cancelled("asked"))
        elif entry.running:
            self._journal.ask([entry.id], "cancel")

    def erase(self, conversation_id: str, caller: str) -> None:
        """Forgets all that this caller began in a conversation; what runs of it is cancelled first.

        Raises ConversationBusy when that does not end in time, or StoreUnavailable; to be repeated then.
        """
        self.open()  # what the dead left to run must be ended
        deadline = time.monotonic() + ERASE_PATIENCE
        while running := self._journal.erase(conversation_id, caller):
            if time.monotonic() >= deadline:
                raise ConversationBusy(retry_after=2)
            elsewhere = [turn_id for turn_id in running if turn_id not in self._turns]
            for turn_id in running:
                if turn_id in self._turns:
                    self._turns[turn_id].end_with(Cancelled("erased"))
            if elsewhere:
                self._journal.ask(elsewhere, "cancel")
            gevent.sleep(ERASE_PAUSE)

    def drain(self, last_start: float) -> None:
        """Sends followers elsewhere who can come back; begins no turn after `last_start` (monotonic seconds)."""
        self._last_start = last_start
        self._dismissing = True
        self._dismiss()
        if self._mirror is not None:
            self._mirror.drain()

    def interrupt(self) -> None:
        """Ends every turn with `interrupted` and begins no more, because the process is about to go."""
        self._last_start = 0.0
        self._dismissing = self._interrupted = True
        for turn in list(self._turns.values()):
            turn.end_with(Interrupted())

    def close(self) -> None:
        """Brings the rest to the journal and gives up the lease; all turns have ended. May be repeated."""
        if self._closed:
            return
        self._closed = True
        gevent.killall(self._greenlets, block=False)
        self._flusher.flush_all()
        with suppress(StoreUnavailable):  # then the lease runs out by itself
            self._journal.close()
        metrics.flush()
        self._tracer.flush()

    def _lose(self, turn_id: str) -> None:
        turn = self._turns.get(turn_id)
        if turn is not None and turn.ended:
            log.error(
                "another worker has ended the turn otherwise: its journal was out of reach", extra={"turn": turn_id}
            )
        elif turn is not None:
            turn.end_with(Lost())

    def _note_gap(self) -> None:
        if self._mirror is not None:
            self._mirror.doubt()
        self._check_owned()

    def _check_owned(self) -> None:
        """Ends the turns that another worker has ended while this one said nothing. Raises StoreUnavailable."""
        for turn in list(self._turns.values()):
            if not turn.ended:
                entry = self._journal.find(turn.id)
                if entry is not None and not entry.running:
                    turn.end_with(Lost())

    def _take_wish(self, subject: str, wish: Wish) -> None:
        turn = self._turns.get(subject)
        if wish == "deliver" and self._mirror is not None:
            self._mirror.note(subject)
        elif wish == "cancel" and turn is not None:
            turn.end_with(Cancelled("asked"))
        elif wish == "watch" and turn is not None:
            turn.watch()
            self._hurry(turn)
        elif wish == "mirror" and turn is not None:
            turn.mirror()
            self._hurry(turn)

    def _hurry(self, turn: Turn) -> None:
        if not turn.tail.is_kept:
            self._flusher.note(turn.tail, at_once=True)

    def _note_end(self, turn: Turn) -> None:
        metrics.turns_running.dec()
        self._count_down()

    def _count_down(self) -> None:
        self._running -= 1
        if not self._running:
            self.idle.set()

    def _sweep(self) -> None:
        interval = min(SWEEP_INTERVAL, self._settings.gateway_idle_timeout / 4, self._settings.gateway_timeout / 4)
        while True:
            gevent.sleep(interval)
            now = time.monotonic()
            for turn in list(self._turns.values()):
                self._check_turn(turn, now)
            for follower in list(self._followers):
                check_follower(follower, now)
            if self._dismissing:
                self._dismiss()

    def _check_turn(self, turn: Turn, now: float) -> None:
        if not turn.ended:
            self._check_deadlines(turn, now)
            turn.note_audience(now)
            self._check_grace(turn, now)
        elif turn.tail.is_kept and not turn.tail.followers:
            del self._turns[turn.id]

    def _check_deadlines(self, turn: Turn, now: float) -> None:
        silent_since = turn.chat.silent_since
        if now - turn.began > self._settings.gateway_timeout:
            turn.end_with(TurnTimedOut())
        elif silent_since is not None and now - silent_since > self._settings.gateway_idle_timeout:
            turn.end_with(GatewayStalled())

    def _check_grace(self, turn: Turn, now: float) -> None:
        grace = self._settings.disconnect_grace
        if self._health.failing:
            turn.postpone_grace(now)
        elif self._dismissing and grace >= 0:
            grace = max(grace, DISMISSED_GRACE)
        if grace >= 0 and turn.unfollowed_since is not None and now - turn.unfollowed_since >= grace:
            turn.end_with(Cancelled("no follower"))

    def _check_open(self) -> None:
        if self._last_start is not None and time.monotonic() > self._last_start:
            raise Draining(retry_after=1)

    def _dismiss(self) -> None:
        for follower in list(self._followers):
            if follower.can_return and not follower.closed:
                follower.dismiss()


def make_id(now: float, random_bytes: Callable[[int], bytes]) -> str:
    """A new turn's id: 96 random bits, which no one guesses, behind the moment in which it begins.

    So what begins together lies together in the store, and one page is written for several turns: measured with five a
    transaction, 36 µs of SQLite's for a turn's two writes, against 50 µs with ids that are random from the first byte.
    """
    moment = int(now * MOMENTS) % 2**32
    return urlsafe_b64encode(moment.to_bytes(4) + random_bytes(12)).decode().rstrip("=")


def run_for_ever(loop: Callable[[], None], is_over: Callable[[], bool]) -> None:
    """Runs a loop again when it breaks: without it no turn would end, or the lease would."""
    while not is_over():
        try:
            loop()
        except Exception:
            if is_over():
                return  # it was killed, of which Redis' client makes another error
            log.exception("a loop broke, running it again")
        gevent.sleep(LOOP_PAUSE)


def check_follower(follower: Follower, now: float) -> None:
    """Keeps the connection of one who waits alive, and gives up one who does not read."""
    if follower.waiting_since is not None and now - follower.waiting_since >= PING_INTERVAL:
        follower.nudge()
    elif follower.sending_since is not None and now - follower.sending_since >= SEND_TIMEOUT:
        log.warning("client does not read, dropped", extra={"turn": follower.turn_id, "cursor": follower.cursor})
        follower.drop()
