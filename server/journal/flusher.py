"""Brings to the journal what the tails of this worker have; one transaction for all that is due."""

import logging
import time
from collections.abc import Callable

from gevent.event import Event as Flag

from ..errors import StoreUnavailable
from . import AHEAD, Journal
from .tail import Tail

log = logging.getLogger(__name__)

FLUSH_INTERVAL = 0.25  # seconds; the most that kill -9 can lose
WATCHED_INTERVAL = 0.05  # seconds; while someone on another worker follows the turn
SLACK = 0.025  # seconds; what is due so soon goes in the same transaction
STORE_RETRY = 0.5  # seconds until a store that is out of order is asked again


class Flusher:
    def __init__(self, journal: Journal, on_lost: Callable[[str], None]) -> None:
        """`on_lost` is told of a turn that another worker has ended: this one's lease had run out."""
        self._journal = journal
        self._on_lost = on_lost
        self._waiting: set[Tail] = set()
        self._due = Flag()
        self._hurry = Flag()
        self._asleep_until = 0.0  # monotonic seconds, while it sleeps
        self._failing = False

    def note(self, tail: Tail, at_once: bool = False) -> None:
        """The tail has something new."""
        if tail not in self._waiting:
            self._waiting.add(tail)
            tail.flush_by = time.monotonic() + interval(tail)
            self._due.set()
        if (at_once or tail.ended or tail.last_id - tail.kept_id > AHEAD // 2) and not self._failing:
            tail.flush_by = 0.0
        if tail.flush_by < self._asleep_until:
            self._hurry.set()

    def run(self) -> None:
        """Flushes for ever; to be run in one greenlet."""
        while True:
            self._due.wait()
            self._sleep_until(min(tail.flush_by for tail in self._waiting))
            horizon = time.monotonic() + SLACK
            self.flush([tail for tail in self._waiting if tail.flush_by <= horizon])
            if not self._waiting:
                self._due.clear()

    def _sleep_until(self, soonest: float) -> None:
        """Until what is due first is due, or something is due before that."""
        pause = soonest - time.monotonic()
        if pause > 0:
            self._hurry.clear()
            self._asleep_until = soonest
            self._hurry.wait(pause)
            self._asleep_until = 0.0

    def flush_all(self) -> None:
        """Flushes what there is, once: the process is about to go."""
        self.flush(list(self._waiting))

    def flush(self, tails: list[Tail]) -> None:
        self._waiting -= {tail for tail in tails if tail.is_kept}
        tails = [tail for tail in tails if not tail.is_kept]
        last_ids = [tail.last_id for tail in tails]
        batches = [batch for tail in tails for batch in tail.unkept()]
        try:
            lost = self._journal.append(batches) if batches else []
        except StoreUnavailable as error:
            self._note_failure(error, tails)
            return
        self._note_success()
        now = time.monotonic()
        for tail, last_id in zip(tails, last_ids, strict=True):
            tail.kept(last_id)
            if tail.is_kept:
                self._waiting.discard(tail)
            else:  # more has come meanwhile
                tail.flush_by = 0.0 if tail.ended else now + interval(tail)
        for turn_id in lost:
            self._on_lost(turn_id)

    def _note_failure(self, error: StoreUnavailable, tails: list[Tail]) -> None:
        if not self._failing:
            log.error("journal out of order, answers go on from memory", extra={"detail": error.detail})
        self._failing = True
        for tail in tails:
            tail.flush_by = time.monotonic() + STORE_RETRY

    def _note_success(self) -> None:
        if self._failing:
            log.warning("journal works again", extra={"turns": len(self._waiting)})
        self._failing = False


def interval(tail: Tail) -> float:
    """Seconds that something new may wait."""
    return WATCHED_INTERVAL if tail.is_watched else FLUSH_INTERVAL
