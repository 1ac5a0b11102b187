"""What this worker and the others tell each other through the journal.

It follows turns of other workers for those who read them here, carries wishes (cancel, watch) to where a turn runs,
keeps the lease by which this worker's turns are its own, and ends the turns of workers that have died.
"""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import gevent
from gevent.event import Event as Flag

from .. import metrics
from ..bell import Bell
from ..errors import Interrupted, StoreUnavailable
from ..sse import Event
from . import LEASE, RENEW_INTERVAL, Entry, Journal, Wish
from .health import Health
from .tail import READ_LIMIT, Follower, Tail

log = logging.getLogger(__name__)

NEWS_TIMEOUT = 1.0  # seconds that one wait for news takes
STORE_RETRY = 0.5  # seconds until a store that is out of order is asked again
END_PATIENCE = (
    30.0  # seconds that an answer's end is held back while it is open whether the turn is still this worker's
)
PURGE_INTERVAL = 10.0  # seconds
# Seconds that a worker must have held its own lease before it ends the turns of others: when a store has been out of
# reach, their owners get no less time than ever to say that they live.
HOLD = LEASE
MARGIN = 0.5  # seconds before the lease's end in which what only its owner may do is done no more
WATCH_INTERVAL = 1.0  # seconds between two words to a writer that someone here follows its turn
WATCH: Wish = "watch"
MIRROR: Wish = "mirror"


class Courier:
    def __init__(
        self, journal: Journal, health: Health, on_wish: Callable[[str, Wish], None], on_gap: Callable[[], None]
    ) -> None:
        """`on_gap` is called when the lease had run out: turns of this worker may have been ended by another one."""
        self._journal = journal
        self._health = health
        self._on_wish = on_wish
        self._on_gap = on_gap
        self._mirrors: dict[str, Tail] = {}
        self._unwatched: set[str] = set()  # mirrors of which their writers do not know yet
        self.lease_ends = 0.0  # monotonic seconds
        self._held_since: float | None = None
        self._asked = Flag()  # pulses each time that the lease was asked for

    def follow(
        self, entry: Entry, cursor: int, is_audience: bool = True, can_return: bool = False, bell: Bell | None = None
    ) -> Follower:
        """A follower of a turn that another worker writes, or that has ended; the rest as `Tail.follow`."""
        tail = self._mirrors.get(entry.id)
        is_news = entry.running and (tail is None or (is_audience and not tail.audience))
        if tail is None:
            tail = Tail(entry.id, self._journal, entry.last_id)
            tail.ended = not entry.running
        follower = tail.follow(cursor, is_audience, can_return, bell)
        if is_news:
            self._mirrors[entry.id] = tail
            self._unwatched.add(entry.id)
            with suppress(StoreUnavailable):  # then `carry` comes round by itself, a little later
                self._journal.wake()
        return follower

    def mirrors(self, turn_id: str) -> bool:
        """Whether another worker runs this turn, and someone here follows it."""
        return turn_id in self._mirrors and not self._mirrors[turn_id].ended

    @property
    def lease_is_sure(self) -> bool:
        """Whether no other worker can think that this one's lease has ended."""
        return time.monotonic() < self.lease_ends - MARGIN

    @property
    def may_judge(self) -> bool:
        """Whether this worker may say that others' leases have ended."""
        return self._held_since is not None and time.monotonic() - self._held_since >= HOLD

    def wait_for_lease(self, to_end: bool = False) -> None:
        """Waits, after this process was stopped for a while, until it is known which turns are still its own.

        Does not wait for a store that is out of order, unless `to_end`: another worker, which may still reach it, can
        have ended the turn there, and two ends must not contradict each other. That wait is bounded.
        """
        if time.monotonic() < self.lease_ends:
            return
        patience = time.monotonic() + END_PATIENCE
        while (now := time.monotonic()) >= self.lease_ends:
            if self._health.failing and (not to_end or self._journal.shared_fate or now >= patience):
                return
            self._asked.wait(RENEW_INTERVAL)

    def carry(self) -> None:
        """Brings news for ever; to be run in one greenlet."""
        while True:
            try:
                self._carry_once()
            except StoreUnavailable:
                gevent.sleep(STORE_RETRY)  # `hold_lease` says so in the log

    def hold_lease(self) -> None:
        """Keeps the lease for ever; to be run in one greenlet, which does nothing else that can take long."""
        while True:
            begin = time.monotonic()
            try:
                unbroken = self._journal.renew()
                now = time.monotonic()
                if not unbroken or now >= self.lease_ends:
                    self._held_since = None
                    self._on_gap()
                self._held_since = self._held_since or now
                self.lease_ends = begin + LEASE
                self._health.note_success()
            except StoreUnavailable as error:
                self._held_since = None
                self._health.note_failure(error)
                now = time.monotonic()
                if self._journal.shared_fate and now < self.lease_ends:
                    # Just now the store was out of everyone's reach: who comes back first judges no one for as long.
                    # Not after a sleep that was longer than the lease: what happened meanwhile nobody knows.
                    self.lease_ends = now + LEASE
            self._asked.set()
            self._asked.clear()
            gevent.sleep(RENEW_INTERVAL)

    def tend(self) -> None:
        """Ends what the dead left, tells writers that they are followed, cleans up, for ever; in one greenlet."""
        next_watch = next_purge = 0.0
        while True:
            gevent.sleep(RENEW_INTERVAL)
            now = time.monotonic()
            with suppress(StoreUnavailable):  # `hold_lease` says so in the log
                if self.may_judge:
                    self._end_orphans()
                if now >= next_watch:
                    next_watch = now + WATCH_INTERVAL
                    self._watch()
                if now >= next_purge:
                    next_purge = now + PURGE_INTERVAL
                    self._purge()

    def _carry_once(self) -> None:
        unwatched, self._unwatched = self._unwatched, set()
        self._ask_for(unwatched & self._mirrors.keys())
        cursors = {turn_id: tail.last_id for turn_id, tail in self._mirrors.items()}
        news = self._journal.news(cursors, NEWS_TIMEOUT)
        for turn_id, events in news.events.items():
            tail = self._mirrors.get(turn_id)
            # A mirror that was made since may lack what came before these events.
            if tail is not None and tail.last_id >= cursors[turn_id]:
                bring(tail, events)
        for turn_id, wish in news.wishes:
            self._on_wish(turn_id, wish)
        self._mirrors = {key: tail for key, tail in self._mirrors.items() if tail.followers and not tail.ended}

    def _end_orphans(self) -> None:
        """Counts and logs them in their workers' place, which cannot: the journal names each to one worker alone."""
        for turn_id in self._journal.interrupt_orphans():
            metrics.note_end("interrupted", Interrupted.code)
            fields = {"turn": turn_id}
            with suppress(StoreUnavailable):  # it has ended, and is told of all the same
                if entry := self._journal.find(turn_id):
                    fields |= {"conversation": entry.conversation_id or "", "caller": entry.caller}
            log.warning("turn interrupted: its worker has died", extra=fields)

    def _watch(self) -> None:
        """Says to the writers that someone follows; lets go of turns that have ended or are gone."""
        if not self._mirrors:
            return
        asked = dict(self._mirrors)
        running = self._ask_for(asked.keys())
        for turn_id, tail in asked.items():
            if turn_id in running:
                continue
            while events := self._journal.read(turn_id, tail.last_id, READ_LIMIT):
                bring(tail, events)
            tail.ended = True
            for follower in list(tail.followers):
                follower.wake()

    def _ask_for(self, turn_ids: Collection[str]) -> set[str]:
        """Tells the writers that someone follows, or the transcript does. Returns the turns that still run."""
        watched = {turn_id for turn_id in turn_ids if self._mirrors[turn_id].audience}
        running: set[str] = set()
        for wanted, wish in ((watched, WATCH), (set(turn_ids) - watched, MIRROR)):
            if wanted:
                running |= set(self._journal.ask(wanted, wish))
        return running

    def _purge(self) -> None:
        self._journal.purge()
        for delivery in self._journal.outbox.expire():
            metrics.transcript_turns_expired.inc()
            fields = {"turn": delivery.turn_id, "conversation": delivery.conversation_id, "reason": delivery.reason}
            log.error("transcript incomplete: the rest was not delivered in time, and is forgotten", extra=fields)


def bring(tail: Tail, events: Sequence[Event]) -> None:
    """Adds what the journal holds to a mirror, but for what it has already."""
    fresh = [event for event in events if event.id > tail.last_id]
    if fresh:
        tail.append(fresh)
        tail.kept(tail.last_id)
