"""What is due when, and that nothing which waits is forgotten."""

import time

import gevent
import pytest

from server.errors import StoreUnavailable
from server.journal import flusher as flusher_module
from server.journal.flusher import END_INTERVAL, FLUSH_INTERVAL, SLACK, STORE_RETRY, WATCHED_INTERVAL, Flusher
from server.journal.health import Health
from server.journal.tail import Tail
from server.sse import Done, Token

LATE = 0.15  # seconds that a busy machine may take


class Recorder:
    """A journal that notes what it gets, and when; `down` makes it refuse."""

    def __init__(self):
        self.kept = []
        self.down = False
        self.pause = 0.0

    def append(self, batches):
        gevent.sleep(self.pause)
        if self.down:
            raise StoreUnavailable
        self.kept.append((time.monotonic(), {batch.turn_id: [event.id for event in batch.events] for batch in batches}))
        return []

    def when(self, turn_id):
        """When a turn's first events came."""
        return next(at for at, turns in self.kept if turn_id in turns)

    def ids_of(self, turn_id):
        return [number for _, turns in self.kept for number in turns.get(turn_id, [])]


@pytest.fixture
def journal():
    return Recorder()


@pytest.fixture
def flusher(journal):
    flusher = Flusher(journal, Health(), None)
    greenlet = gevent.spawn(flusher.run)
    yield flusher
    greenlet.kill()


def say(flusher, tail, end=False):
    number = tail.last_id + 1
    tail.append([Done(number, "complete") if end else Token(number, "a")])
    flusher.note(tail)


def wait_for_all(flusher):
    with gevent.Timeout(5):
        while not flusher.is_done:
            gevent.sleep(0.005)


def test_what_comes_waits_for_more_and_what_is_due_soon_goes_along(flusher, journal):
    first, second = Tail("first", journal), Tail("second", journal)
    began = time.monotonic()
    say(flusher, first)
    gevent.sleep(SLACK / 2)
    say(flusher, second)
    say(flusher, first)
    wait_for_all(flusher)
    assert [turns for _, turns in journal.kept] == [{"first": [1, 2], "second": [1]}]
    assert FLUSH_INTERVAL - 0.01 <= journal.when("first") - began <= FLUSH_INTERVAL + LATE


def test_an_end_and_what_is_watched_elsewhere_do_not_wait_for_what_came_before(flusher, journal):
    waiting, watched, ended = Tail("waiting", journal), Tail("watched", journal), Tail("ended", journal)
    began = time.monotonic()
    watched.watched_until = began + 60
    say(flusher, waiting)
    say(flusher, watched)
    say(flusher, ended)
    say(flusher, ended, end=True)
    with gevent.Timeout(5):
        while not (ended.is_kept and watched.is_kept):
            gevent.sleep(0.002)
    assert journal.when("ended") - began <= END_INTERVAL + LATE
    assert journal.when("watched") - began <= WATCHED_INTERVAL + LATE
    assert not waiting.is_kept
    wait_for_all(flusher)
    assert journal.when("waiting") - began >= FLUSH_INTERVAL - SLACK - 0.01


def test_what_comes_while_a_flush_is_on_its_way_is_not_forgotten(flusher, journal):
    journal.pause = 0.02
    tail = Tail("turn", journal)
    for _ in range(100):
        say(flusher, tail)
        gevent.sleep(0.005)
    say(flusher, tail, end=True)
    wait_for_all(flusher)
    assert journal.ids_of("turn") == list(range(1, 102))


def test_a_store_that_comes_back_gets_everything(flusher, journal):
    tails = [Tail(f"turn-{number}", journal) for number in range(5)]
    journal.down = True
    for tail in tails:
        say(flusher, tail)
    gevent.sleep(FLUSH_INTERVAL + STORE_RETRY / 2)
    for tail in tails[:2]:
        say(flusher, tail, end=True)
    assert not journal.kept
    journal.down = False
    wait_for_all(flusher)
    assert [journal.ids_of(tail.turn_id) for tail in tails] == [[1, 2]] * 2 + [[1]] * 3


def test_what_must_go_at_once_does(flusher, journal):
    tails = [Tail(f"turn-{number}", journal) for number in range(50)]
    for tail in tails:
        say(flusher, tail)
    gevent.sleep(0)
    began = time.monotonic()
    flusher.note(tails[-1], at_once=True)
    with gevent.Timeout(5):
        while not tails[-1].is_kept:
            gevent.sleep(0.001)
    assert time.monotonic() - began < LATE
    assert [list(turns) for _, turns in journal.kept] == [["turn-49"]]
    wait_for_all(flusher)


def test_ends_share_a_transaction_whoever_else_waits(flusher, journal):
    waiting = Tail("waiting", journal)
    say(flusher, waiting)
    gevent.sleep(0.01)
    tails = [Tail(f"turn-{number}", journal) for number in range(4)]
    for tail in tails:
        say(flusher, tail, end=True)
        gevent.sleep(END_INTERVAL / 10)
    wait_for_all(flusher)
    assert [sorted(turns) for _, turns in journal.kept] == [[tail.turn_id for tail in tails], ["waiting"]]


def test_what_failed_does_not_hold_up_what_comes_after(flusher, journal):
    failed, later = Tail("failed", journal), Tail("later", journal)
    journal.down = True
    say(flusher, failed)
    with gevent.Timeout(5):
        while failed.flush_by - time.monotonic() <= FLUSH_INTERVAL:
            gevent.sleep(0.005)
    journal.down = False
    began = time.monotonic()
    say(flusher, later)
    wait_for_all(flusher)
    assert journal.when("later") - began <= FLUSH_INTERVAL + 0.05


def test_no_one_starves_when_more_is_due_than_a_transaction_holds(flusher, journal, monkeypatch):
    monkeypatch.setattr(flusher_module, "MAX_BATCHES", 5)
    journal.pause = WATCHED_INTERVAL
    watched = [Tail(f"watched-{number}", journal) for number in range(20)]
    plain = [Tail(f"plain-{number}", journal) for number in range(5)]
    for tail in watched:
        tail.watched_until = time.monotonic() + 60
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        for tail in watched + plain:
            say(flusher, tail)
        gevent.sleep(0.02)
    assert all(tail.kept_id for tail in watched + plain)
