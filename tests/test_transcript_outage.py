"""The platform is down for an hour, by a clock that the test moves: memory stays bounded, and then all is delivered."""

import tracemalloc

import gevent
import pytest

from server.bell import Bell
from server.errors import StreamNotFound
from server.journal import Batch
from server.journal.outbox import WINDOW, Parcel
from server.journal.sqlite import SqliteJournal
from server.journal.tail import Tail
from server.sse import Done, Token
from server.transcript.conversation import Conversation, SinkLost
from server.transcript.line import Line
from server.transcript.pieces import join

from .stores import entry

HOUR = 3600.0  # seconds
TURN_EACH = 10.0  # seconds between two questions of the conversation
TOKENS = 200  # of an answer, with some kilobytes
TEXT = "some words of an answer "
MAX_GROWTH = 600_000  # bytes of memory, the test's own included; the text that waits is three times as much


class World:
    """One conversation, its journal, a platform that is down until an hour has passed, and the time."""

    def __init__(self, path):
        self.now = 0.0
        self.journal = SqliteJournal(path, "worker", HOUR, 24 * HOUR)
        self.journal.renew()
        self.turns = []
        self.received = []
        self.tries = 0
        self.most_waiting = 0
        self.held = 0  # bytes, when the platform comes back
        self.line = Line("c", self.listen, self.note)
        self.conversation = Conversation(self.line, self, may_send=lambda: True, pause=self.pause)

    def ask(self):
        turn = entry(mirrored=True)
        self.journal.begin(turn, None)
        self.journal.append([Batch(turn.id, [*tokens(), Done(TOKENS + 1, "complete")])])
        self.turns.append(turn.id)
        self.claim()

    def claim(self):
        self.journal.renew()
        self.line.update(self.journal.outbox.claim(["c"])["c"])
        self.most_waiting = max(self.most_waiting, len(self.line))

    def listen(self, turn_id, cursor, bell: Bell):
        found = self.journal.find(turn_id)
        if found is None:
            raise StreamNotFound
        tail = Tail(turn_id, self.journal, found.last_id)
        tail.ended = True
        return tail.follow(cursor, is_audience=False, bell=bell)

    def note(self, line, receipt):
        self.journal.renew()
        assert self.journal.outbox.confirm([receipt]) == []
        if receipt.whole and not line:
            self.claim()

    def pause(self, hurry, seconds):
        """Time passes, and people go on to ask."""
        before, self.now = self.now, self.now + seconds
        for _ in range(int(self.now // TURN_EACH) - int(before // TURN_EACH)):
            self.ask()
        gevent.sleep(0)

    def carry(self, conversation):
        """The platform: refuses for an hour, then takes all."""
        self.tries += 1
        if self.now < HOUR:
            raise SinkLost("down")
        self.held = self.held or tracemalloc.get_traced_memory()[0]
        while self.line:
            piece = self.line.next_piece(lambda found, final: join(found, 8000, 60_000))
            if piece is not None:
                self.received.append((piece.turn_id, piece.text))
                self.line.confirm(self.line.mark())
            gevent.sleep(0)

    def close(self):
        pass


def tokens():
    return [Token(number, TEXT) for number in range(1, TOKENS + 1)]


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "relay.db")
    yield world
    world.journal.close()


def test_an_hour_without_the_platform_holds_little_memory_and_loses_nothing(world):
    world.ask()
    tracemalloc.start()
    try:
        ended = gevent.event.Event()
        world.conversation.start(lambda _: ended.set())
        assert ended.wait(60), "all is delivered"
    finally:
        tracemalloc.stop()
    assert len(world.turns) > HOUR / TURN_EACH - 5
    assert len(world.turns) * TOKENS * len(TEXT) > 2.8 * MAX_GROWTH, "what waited is far more than what was held"
    assert world.held < MAX_GROWTH
    assert world.most_waiting <= WINDOW
    assert HOUR / 30 < world.tries < HOUR, "it tried on, and gave the platform time"
    sent = {}
    for turn_id, text in world.received:
        sent[turn_id] = sent.get(turn_id, "") + text
    assert list(sent) == world.turns, "in the order in which they began"
    assert set(sent.values()) == {TEXT * TOKENS}
    assert world.journal.outbox.undelivered(10) == []


def test_a_parcel_that_waits_is_small():
    line = Line("c", None, None)
    line.update([Parcel(f"turn-{number}", 0) for number in range(WINDOW)])
    assert all(delivery.follower is None for delivery in line._deliveries)
