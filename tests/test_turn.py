"""A turn that is to end in the very moment in which it does."""

import time

import gevent
import pytest
from gevent.event import Event as Flag

from server.errors import GatewayStalled
from server.journal import Entry
from server.journal.memory import MemoryJournal
from server.journal.tail import Tail
from server.spans import PlainTracer
from server.sse import Done
from server.turn import Cancelled, Lost, Turn


class Lease:
    """One that has run out: a turn waits to know whether it may end."""

    lease_ends = 0.0

    def __init__(self):
        self.is_asked, self.is_known = Flag(), Flag()

    def wait_for_lease(self, to_end=False):
        if to_end:
            self.is_asked.set()
            self.is_known.wait()


class Chat:
    """A question whose answer ends when `is_whole` is set."""

    silent_since, retries, correlation = None, 0, None

    def __init__(self):
        self.is_whole = Flag()

    def read(self, taker):
        taker.take(["Hi"])
        self.is_whole.wait()

    def close(self):
        pass


@pytest.fixture
def begun():
    """A turn in the middle of its answer, its chat, its lease, and the list that it is put into at its end."""
    journal = MemoryJournal("worker", 60, 60)
    entry = Entry("turn", None, "caller", began=time.time())
    journal.begin(entry, None)
    chat, lease, ended = Chat(), Lease(), []
    span = PlainTracer().begin(None, {})
    turn = Turn(entry, Tail("turn", journal), chat, lease, lambda tail: None, span)
    turn.start(ended.append)
    gevent.sleep(0)
    return turn, chat, lease, ended


@pytest.mark.parametrize("reason", [Cancelled("asked"), GatewayStalled()])
def test_a_turn_that_has_its_answer_ends_well_whatever_comes_then(begun, reason):
    turn, chat, lease, ended = begun
    chat.is_whole.set()  # its greenlet runs in the next round of the loop,
    turn.end_with(reason)  # which has this for it as well
    assert lease.is_asked.wait(5)
    gevent.sleep(0.01)
    lease.is_known.set()
    gevent.sleep(0.01)
    assert turn.state == "complete"
    assert [type(event) is Done for event in turn.tail.after(0)] == [False, True]
    assert ended == [turn]


def test_but_for_the_word_that_it_is_anothers(begun):
    turn, chat, lease, ended = begun
    chat.is_whole.set()
    assert lease.is_asked.wait(5)
    turn.end_with(Lost())
    gevent.sleep(0.01)
    assert turn.state == "interrupted"
    assert type(turn.tail.after(0)[-1]) is Done
    assert ended == [turn]


def test_a_turn_that_waits_for_its_answer_can_be_ended(begun):
    turn, _, lease, ended = begun
    turn.end_with(Cancelled("asked"))
    assert lease.is_asked.wait(5)
    lease.is_known.set()
    gevent.sleep(0.01)
    assert turn.state == "cancelled"
    assert ended == [turn]
