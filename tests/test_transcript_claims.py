"""What a worker asks the outbox, while other things happen."""

import gevent
import pytest
from gevent.event import Event as Flag

from server.journal import Batch
from server.journal.memory import MemoryJournal
from server.journal.tail import Tail
from server.sse import Done, Token
from server.transcript import Transcript

from .stores import entry


class Slow:
    """An outbox whose claims are answered late: what begins meanwhile is not in the answer."""

    def __init__(self, outbox):
        self._outbox = outbox
        self.claims = 0
        self.on_claim = lambda: None
        self.on_confirm = lambda: None
        self.told = []  # what it was told, in order

    def __getattr__(self, name):
        return getattr(self._outbox, name)

    def claim(self, names):
        found = self._outbox.claim(names)
        self.claims += 1
        self.on_claim()
        gevent.sleep(0.01)
        return found

    def confirm(self, receipts):
        self.told += ["arrived" for _ in receipts]
        self.on_confirm()
        return self._outbox.confirm(receipts)

    def release(self, names):
        self.told.append("given up")
        self._outbox.release(names)


class World:
    """The only worker, and a platform that takes everything at once."""

    hurries = False

    def __init__(self):
        self.journal = MemoryJournal("worker", 60, 60)
        self.journal.renew()
        self.outbox = Slow(self.journal.outbox)
        self.transcript = Transcript(self.outbox, self, self, max_open=10)
        self.received = []
        self.on_arrival = lambda conversation: None
        self.loops = [gevent.spawn(loop) for loop in self.transcript.loops()]

    def ask(self):
        turn = entry(mirrored=True)
        self.journal.begin(turn, None)
        self.journal.append([Batch(turn.id, [Token(1, "text "), Done(2, "complete")])])
        self.transcript.note("c")
        return turn.id

    def listen(self, turn_id, cursor, bell):
        tail = Tail(turn_id, self.journal, 2)
        tail.ended = True
        return tail.follow(cursor, is_audience=False, bell=bell)

    def may_send(self):
        return True

    def may_judge(self):
        return False  # so that nothing is found again by a look at what nobody holds

    def runs_here(self, turn_id):
        return False

    def runs_elsewhere(self, turn_id):
        return False

    def carry(self, conversation):
        while not conversation.leaving:
            piece = conversation.line.next_piece(lambda tokens, final: ("".join(t.text for t in tokens), len(tokens)))
            if piece is None:
                conversation.bell.wait()
            else:
                self.received.append(piece.turn_id)
                conversation.line.confirm(conversation.line.mark())
                self.on_arrival(conversation)

    def close(self):
        pass


@pytest.fixture
def world():
    world = World()
    yield world
    world.transcript.close()
    gevent.killall(world.loops)


def wait_for(condition):
    with gevent.Timeout(5, AssertionError("it did not come true")):
        while not condition():
            gevent.sleep(0.005)


def test_a_turn_that_begins_while_a_claim_is_under_way_is_not_forgotten(world):
    asked = []
    world.outbox.on_claim = lambda: asked.append(world.ask()) if world.outbox.claims == 1 else None
    first = world.ask()
    wait_for(lambda: len(world.received) == 2)
    assert world.received == [first, *asked]


def test_a_turn_that_is_delivered_asks_for_more_only_where_there_may_be_more(world):
    for number in range(1, 4):
        world.ask()
        wait_for(lambda n=number: len(world.received) == n and not world.transcript.busy)
    assert world.outbox.claims == 3


def test_a_conversation_is_given_up_once_the_outbox_has_heard_of_all_that_arrived_there(world):
    """Some of it arrives while the outbox is told of the rest; who takes over must not send that again."""
    is_told = Flag()

    def arrive(conversation):
        if len(world.received) == 1:
            is_told.wait()
        else:
            conversation.leave()

    def take_long():
        is_told.set()
        wait_for(lambda: not world.transcript.open)

    world.on_arrival, world.outbox.on_confirm = arrive, take_long
    world.ask()
    world.ask()
    wait_for(lambda: "given up" in world.outbox.told and not world.transcript.busy)
    assert world.outbox.told == ["arrived", "arrived", "given up"]
