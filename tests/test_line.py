"""A conversation's line: cursor, loss and takeover, in any order."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from server.errors import StreamNotFound
from server.journal.outbox import Parcel
from server.journal.tail import READ_LIMIT, Tail
from server.sse import Done, Extra, Failure, Token
from server.transcript.line import Line
from server.transcript.pieces import join

MAX_CHARS = 12


def short(tokens, final):
    return join(tokens, MAX_CHARS, 1000)


def long(tokens, final):
    return join(tokens, 100, 1000)


class World:
    """The turns of one conversation, the outbox, and what the transcript holds."""

    def __init__(self):
        self.tails = {}  # by turn, in the order in which they began
        self.cursors = {}  # by turn, what is stored of those that are not delivered
        self.arrived = []  # (turn, id of an event): what the transcript holds
        self.missing = set()  # turns that the journal has forgotten

    def begin(self):
        turn_id = f"turn-{len(self.tails)}"
        self.tails[turn_id] = Tail(turn_id, journal=None)
        self.cursors[turn_id] = 0
        return turn_id

    def say(self, turn_id, count, end=False, beside=()):
        """`count` events, of which those whose places are in `beside` are no text."""
        tail = self.tails[turn_id]
        ids = range(tail.last_id + 1, tail.last_id + 1 + count)
        events = [Extra(n, b"{}") if n - ids[0] in beside else Token(n, f"{n},") for n in ids]
        if end:
            last = tail.last_id + count
            events += [Failure(last + 1, "No.", "no"), Done(last + 2, "failed")]
        if events:
            tail.append(events)

    def places_of(self, turn_id):
        """The place of each token among the turn's tokens, by its id."""
        tokens = [event.id for event in self.tails[turn_id].after(0) if type(event) is Token]
        return {number: place for place, number in enumerate(tokens, 1)}

    def parcels(self):
        return [Parcel(turn_id, cursor) for turn_id, cursor in self.cursors.items()]

    def listen(self, turn_id, cursor, bell):
        if turn_id in self.missing:
            raise StreamNotFound
        return self.tails[turn_id].follow(cursor, is_audience=False, bell=bell)

    def note(self, line, receipt):
        self.cursors[receipt.turn_id] = max(self.cursors[receipt.turn_id], receipt.cursor)
        if receipt.whole:
            del self.cursors[receipt.turn_id]

    def line(self):
        line = Line("c", self.listen, self.note)
        line.update(self.parcels())
        return line


def text_of(piece):
    return [int(number) for number in piece.text.split(",")[:-1]]


class Lines(RuleBasedStateMachine):
    """A holder after the other; the one that is there sends, hears pongs, and is lost."""

    def __init__(self):
        super().__init__()
        self.world = World()
        self.line = self.world.line()
        self.flight = []  # (turn, id) that were sent on this link and not yet received
        self.pings = []  # (how much of the flight lies before it, mark)
        self.confirmed = {}  # by turn, the last id that a pong has told the holder of

    @rule()
    def begin(self):
        self.world.begin()
        self.line.update(self.world.parcels())

    @precondition(lambda self: self.world.tails)
    @rule(data=st.data(), count=st.integers(0, 6), end=st.booleans(), beside=st.sets(st.integers(0, 5)))
    def say(self, data, count, end, beside):
        running = [turn_id for turn_id, tail in self.world.tails.items() if not tail.ended]
        if running:
            self.world.say(data.draw(st.sampled_from(running)), count, end, beside)

    @rule(answers=st.lists(st.sampled_from([True, True, False, None]), max_size=5))
    def sleep(self, answers):
        """What comes is passed on, until the sender has no more answers; None is one that refuses."""

        def send(delivery, token):
            answer = answers.pop(0) if answers else None
            if answer is None:
                raise ConnectionError
            self.flight.append((delivery.turn_id, token.id))
            return answer

        self.line.pass_on(send)

    @rule()
    def send(self):
        self.line.hold()
        piece = self.line.next_piece(short)
        if piece is not None:
            ids = text_of(piece)
            said = self.world.tails[piece.turn_id].after(piece.first - 1)
            tokens = [event.id for event in said if type(event) is Token and event.id <= piece.last]
            assert ids == tokens, "nothing is left out of a message"
            assert len(piece.text) <= MAX_CHARS or len(ids) == 1
            self.flight += [(piece.turn_id, number) for number in ids]

    @rule()
    def ping(self):
        mark = self.line.mark()
        if mark is not None and not self.pings:
            self.pings.append((len(self.flight), mark))

    @precondition(lambda self: self.pings)
    @rule()
    def pong(self):
        before, mark = self.pings.pop()
        for turn_id, number in self.flight[:before]:
            self.confirmed[turn_id] = number
        self.world.arrived += self.flight[:before]
        self.flight = self.flight[before:]
        self.line.confirm(mark)

    @rule(share=st.floats(0, 1))
    def lose_the_link(self, share):
        """Some of what was sent has come through, and nobody knows."""
        self.world.arrived += self.flight[: round(share * len(self.flight))]
        self.flight, self.pings = [], []
        self.line.rewind()

    @rule(share=st.floats(0, 1), stale=st.booleans())
    def lose_the_holder(self, share, stale):
        """Another takes over, with the cursors that are stored."""
        self.lose_the_link(share)
        self.line.close()
        self.line = self.world.line()

    @rule(data=st.data())
    def hear_of_the_same_again(self, data):
        parcels = self.world.parcels()
        self.line.update(parcels[: data.draw(st.integers(0, len(parcels)))])

    @invariant()
    def all_is_there_in_order(self):
        check(self.world)

    def teardown(self):
        for turn_id, tail in self.world.tails.items():
            if not tail.ended:
                self.world.say(turn_id, 1, end=True)
        for _ in range(1000):
            self.send()
            self.ping()
            if self.pings:
                self.pong()
        assert not self.line
        assert not self.world.cursors, "all is delivered"
        check(self.world)
        for turn_id, tail in self.world.tails.items():
            tokens = [event.id for event in tail.after(0) if type(event) is Token]
            assert sorted({number for turn, number in self.world.arrived if turn == turn_id}) == tokens
            assert not tail.followers, "nobody follows what is delivered"


def check(world):
    """Each turn's tokens come in order, without a hole; going back repeats, and later turns do not come between."""
    last = {}
    order = []
    places = {turn_id: world.places_of(turn_id) for turn_id in world.tails}
    for turn_id, number in world.arrived:
        place = places[turn_id][number]
        assert place <= last.get(turn_id, 0) + 1, "no hole"
        last[turn_id] = max(place, last.get(turn_id, 0))
        if turn_id not in order:
            assert all(int(turn_id[5:]) > int(earlier[5:]) for earlier in order), "in the order in which they began"
            order.append(turn_id)


def test_whatever_happens_all_text_arrives_in_order():
    run_state_machine_as_test(
        Lines,
        settings=settings(
            max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_what_was_confirmed_is_not_sent_again():
    world = World()
    turn_id = world.begin()
    world.say(turn_id, 5)
    line = world.line()
    assert text_of(line.next_piece(long)) == [1, 2, 3, 4, 5]
    mark = line.mark()
    world.say(turn_id, 2)
    assert text_of(line.next_piece(long)) == [6, 7]
    line.confirm(mark)
    line.rewind()
    assert text_of(line.next_piece(long)) == [6, 7]
    assert world.cursors == {turn_id: 5}


def test_a_later_turn_waits_for_the_end_of_an_earlier_one():
    world = World()
    first, second = world.begin(), world.begin()
    world.say(second, 3, end=True)
    line = world.line()
    assert line.next_piece(long) is None
    world.say(first, 1, end=True)
    assert line.next_piece(long).turn_id == first
    assert line.next_piece(long).turn_id == second


def test_only_the_turn_that_is_being_sent_is_followed():
    world = World()
    turns = [world.begin() for _ in range(20)]
    for turn_id in turns:
        world.say(turn_id, 1)
    line = world.line()
    line.next_piece(long)
    assert [len(tail.followers) for tail in world.tails.values()] == [1] + [0] * 19
    line.rewind()
    assert not world.tails[turns[0]].followers, "what waits for a lost link costs nothing but its name"


@pytest.mark.parametrize("missing", [True, False])
def test_a_turn_without_text_is_delivered_by_its_end(missing):
    world = World()
    turn_id = world.begin()
    world.say(turn_id, 0, end=True)
    world.missing = {turn_id} if missing else set()
    line = world.line()
    assert line.next_piece(long) is None
    assert not world.cursors


def test_what_comes_beside_the_text_holds_up_no_text_however_much_it_is():
    world = World()
    turn_id = world.begin()
    world.say(turn_id, 2 * READ_LIMIT + 2, beside=range(1, 2 * READ_LIMIT + 1))
    line = world.line()
    assert text_of(line.next_piece(long)) == [1]
    assert text_of(line.next_piece(long)) == [2 * READ_LIMIT + 2]


@pytest.mark.parametrize("count", [3, READ_LIMIT + 3])
def test_a_turn_that_ends_with_what_is_no_text_is_delivered(count):
    world = World()
    turn_id = world.begin()
    world.say(turn_id, count, end=True, beside=range(1, count))
    line = world.line()
    assert text_of(line.next_piece(long)) == [1]
    assert line.next_piece(long) is None
    line.confirm(line.mark())
    assert not world.cursors


def test_a_turn_that_the_journal_has_forgotten_is_named_and_does_not_block_those_after_it(caplog):
    world = World()
    gone, next_one = world.begin(), world.begin()
    world.missing = {gone}
    world.say(next_one, 1, end=True)
    line = world.line()
    assert line.next_piece(long).turn_id == next_one
    (record,) = caplog.records
    assert (record.turn, record.confirmed) == (gone, 0)


def test_a_turn_that_is_no_more_wanted_is_not_sent_on_and_nobody_hears_of_it():
    world = World()
    gone, next_one = world.begin(), world.begin()
    world.say(gone, 3)
    world.say(next_one, 1, end=True)
    line = world.line()
    assert text_of(line.next_piece(long)) == [1, 2, 3]
    late = line.mark()
    world.say(gone, 2)
    line.keep([next_one])
    assert line.unconfirmed_since is None
    assert not world.tails[gone].followers
    assert line.next_piece(long).turn_id == next_one
    line.confirm(late)
    assert world.cursors == {gone: 0, next_one: 0}
    line.confirm(line.mark())
    assert world.cursors == {gone: 0}, "its outbox knows it no more"
    assert not line


def test_a_turn_that_is_dropped_while_it_is_read_is_not_sent():
    world = World()
    gone = world.begin()
    world.say(gone, 3)
    line = world.line()
    tail = world.tails[gone]
    real = tail.after
    tail.after = lambda cursor: line.keep([]) or real(cursor)
    assert line.next_piece(long) is None
    assert not line


def test_what_the_journal_has_forgotten_is_no_error(caplog):
    world = World()
    world.missing = {world.begin()}
    assert world.line().next_piece(long) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_sink_may_wait_for_more_text():
    world = World()
    turn_id = world.begin()
    world.say(turn_id, 2)
    line = world.line()
    asked = []

    def wait_for_three(tokens, final):
        asked.append((len(tokens), final))
        return join(tokens, 100, 1000) if len(tokens) >= 3 or final else ("", 0)

    assert line.next_piece(wait_for_three) is None
    world.say(turn_id, 1)
    assert text_of(line.next_piece(wait_for_three)) == [1, 2, 3]
    world.say(turn_id, 1, end=True)
    assert text_of(line.next_piece(wait_for_three)) == [4]
    assert asked == [(2, False), (3, False), (1, True)]


@pytest.mark.parametrize(("ready", "flags"), [(10, [False]), (0, [False, True])])
def test_a_sink_is_told_not_to_wait_only_when_nothing_would_leave_of_a_backlog(ready, flags):
    world = World()
    world.say(world.begin(), READ_LIMIT + 1)
    asked = []

    def cut(tokens, final):
        asked.append(final)
        count = len(tokens) if final else ready
        return "".join(token.text for token in tokens[:count]), count

    assert world.line().next_piece(cut).last == (ready or READ_LIMIT)
    assert asked == flags


def passed_on(line):
    """Where tokens go once nothing waits, and all that went there."""
    sent = []
    assert line.next_piece(long) is not None
    line.pass_on(lambda delivery, token: sent.append((delivery.turn_id, token.id)) or True)
    line.bell._rung = False
    return sent


def test_a_token_is_passed_on_as_it_comes_and_wakes_no_one():
    world = World()
    turn_id = world.begin()
    world.say(turn_id, 2)
    line = world.line()
    sent = passed_on(line)
    world.say(turn_id, 1)
    world.say(turn_id, 1)
    assert sent == [(turn_id, 3), (turn_id, 4)]
    assert not line.bell._rung
    assert line.mark().cursor == 4
    line.hold()
    world.say(turn_id, 1)
    assert text_of(line.next_piece(long)) == [5]


@pytest.mark.parametrize("what", [{"count": 2}, {"count": 1, "beside": {0}}, {"count": 0, "end": True}])
def test_only_a_single_token_is_passed_on(what):
    world = World()
    turn_id = world.begin()
    world.say(turn_id, 1)
    line = world.line()
    sent = passed_on(line)
    world.say(turn_id, **what)
    assert not sent
    assert line.bell._rung
    if "end" not in what:
        world.say(turn_id, 1)
        assert not sent, "nothing overtakes what waits"


def test_who_is_behind_is_passed_nothing():
    world = World()
    turn_id = world.begin()
    world.say(turn_id, READ_LIMIT + 1)
    line = world.line()
    sent = []
    assert line.next_piece(short) is not None
    line.pass_on(lambda *token: sent.append(token) or True)
    world.say(turn_id, 1)
    assert not sent
