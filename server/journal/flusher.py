"""Brings to the journal what the tails of this worker have; one transaction for all that is due."""

import time
from collections.abc import Callable

from gevent.event import Event as Flag

from .. import metrics
from ..errors import StoreUnavailable
from . import AHEAD, Batch, Journal
from .health import Health
from .tail import Tail

FLUSH_INTERVAL = 0.25  # seconds; the most that kill -9 can lose
WATCHED_INTERVAL = 0.05  # seconds; while someone on another worker follows the turn
END_INTERVAL = 0.02  # seconds; of a turn that has ended: those that end together share a transaction
SLACK = 0.1  # seconds; what is due so soon goes in the same transaction
MAX_BATCHES = 200  # a transaction; to pack them takes some milliseconds, in which nothing else runs
STORE_RETRY = 0.5  # seconds until a store that is out of order is asked again


class Flusher:
    def __init__(self, journal: Journal, health: Health, on_lost: Callable[[str], None]) -> None:
        """`on_lost` is told of a turn that another worker has ended: this one's lease had run out."""
        self._journal = journal
        self._health = health
        self._on_lost = on_lost
        self._waiting: dict[Tail, None] = {}  # in the order in which they are due, but for those that hurry
        self._hurried: dict[Tail, None] = {}  # of them, those that are due before it is their turn
        self._row_ends = 0.0  # monotonic seconds; when the last in the row is due
        self._due = Flag()
        self._hurry = Flag()
        self._asleep_until = 0.0  # monotonic seconds, while it sleeps

    def note(self, tail: Tail, at_once: bool = False) -> None:
        """The tail has something new."""
        if tail not in self._waiting:
            now = time.monotonic()
            self._wait(tail, now + FLUSH_INTERVAL)
            self._due.set()
            if now < tail.watched_until:
                self._hurry_up(tail, now + WATCHED_INTERVAL)
        if (at_once or tail.last_id - tail.kept_id > AHEAD // 2) and not self._health.failing:
            self._hurry_up(tail, 0.0)
        elif tail.ended and not self._health.failing:
            self._hurry_up(tail, time.monotonic() + END_INTERVAL)

    def run(self) -> None:
        """Flushes for ever; to be run in one greenlet."""
        while True:
            self._due.wait()
            soonest = min([tail.flush_by for tail in self._hurried] + [next(iter(self._waiting)).flush_by])
            if self._sleep_until(soonest):
                self.flush(self._take_due(time.monotonic() + SLACK))
            if not self._waiting:
                self._due.clear()

    def _wait(self, tail: Tail, flush_by: float) -> None:
        """Puts it behind all others, as one that hurries where these are due later."""
        self._forget(tail)
        self._waiting[tail] = None
        tail.flush_by = flush_by
        if flush_by < self._row_ends:
            self._bring_forward(tail)
        self._row_ends = max(self._row_ends, flush_by)

    def _hurry_up(self, tail: Tail, flush_by: float) -> None:
        if flush_by < tail.flush_by:
            tail.flush_by = flush_by
            self._bring_forward(tail)

    def _bring_forward(self, tail: Tail) -> None:
        self._hurried[tail] = None
        if tail.flush_by < self._asleep_until:
            self._hurry.set()

    def _take_due(self, horizon: float) -> list[Tail]:
        due = [tail for tail in self._hurried if tail.flush_by <= horizon]
        for tail in self._waiting:
            if tail in self._hurried:
                continue
            if tail.flush_by > horizon:
                break
            due.append(tail)
        # More than one transaction holds: those that have waited longest go first, or some would never go.
        return sorted(due, key=lambda tail: tail.flush_by) if len(due) > MAX_BATCHES else due

    def _sleep_until(self, soonest: float) -> bool:
        """Whether it is so late now; not if meanwhile something is due before that."""
        pause = soonest - time.monotonic()
        if pause <= 0:
            return True
        self._hurry.clear()
        self._asleep_until = soonest
        is_hurried = self._hurry.wait(pause)
        self._asleep_until = 0.0
        return not is_hurried

    def flush_all(self) -> None:
        """Flushes what there is: the process is about to go. A store that is out of order is asked but once."""
        self.flush(list(self._waiting))
        while self._waiting and not self._health.failing:
            self.flush(list(self._waiting))

    @property
    def is_done(self) -> bool:
        """Whether the journal has everything."""
        return not self._waiting

    def flush(self, tails: list[Tail]) -> None:
        for tail in tails:
            if tail.is_kept:
                self._forget(tail)
        tails = [tail for tail in tails if not tail.is_kept]
        tails, batches = gather(tails)
        last_ids = [tail.last_id for tail in tails]
        if not batches:
            return
        began = time.monotonic()
        try:
            lost = self._journal.append(batches)
        except StoreUnavailable as error:
            metrics.journal_flush_failures.inc()
            self._health.note_failure(error)
            for tail in tails:
                self._wait(tail, time.monotonic() + STORE_RETRY)
            return
        self._health.note_success()
        metrics.journal_flush.observe(time.monotonic() - began)
        for tail, last_id in zip(tails, last_ids, strict=True):
            tail.kept(last_id)
            self._forget(tail)
            if not tail.is_kept:  # more has come meanwhile
                self.note(tail)
        for turn_id in lost:
            self._on_lost(turn_id)

    def _forget(self, tail: Tail) -> None:
        self._waiting.pop(tail, None)
        self._hurried.pop(tail, None)


def gather(tails: list[Tail]) -> tuple[list[Tail], list[Batch]]:
    """The first of `tails`, and what they have for the journal: no more than one transaction should hold."""
    batches: list[Batch] = []
    for count, tail in enumerate(tails):
        if len(batches) >= MAX_BATCHES:
            return tails[:count], batches
        batches += tail.unkept()
    return tails, batches
