"""The journal's contract, held by each engine; see `Journal`."""

import time

import pytest

from server.errors import StoreUnavailable
from server.journal import AHEAD, LEASE, RENEW_INTERVAL, Batch, closing
from server.journal.sqlite import SqliteJournal
from server.sse import Done, Extra, Failure, Token

from .conftest import until
from .stores import RETAIN, batch, entry, tokens

SOON = 5.0  # seconds within which what waits must have come; far above what it takes


def begun(journal, **fields):
    return journal.begin(entry(**fields), None).entry


class TestBegin:
    def test_a_turn_that_began_is_found_by_all_workers(self, ann, bob):
        turn = entry(fingerprint="f")
        assert ann.begin(turn, None).entry == turn
        assert ann.find(turn.id) == bob.find(turn.id) == turn

    def test_a_turn_may_belong_to_no_conversation(self, ann, bob):
        turn = ann.begin(entry(conversation=None), None).entry
        assert turn.conversation_id is None
        assert bob.find(turn.id) == turn

    def test_a_turn_that_nobody_began_is_not_found(self, ann):
        assert ann.find("nothing") is None
        assert ann.read("nothing", 0, 10) == []

    def test_the_same_key_of_the_same_caller_returns_the_first_turn(self, ann, bob):
        first = ann.begin(entry(fingerprint="one"), "key").entry
        repeated = entry(fingerprint="two")
        assert bob.begin(repeated, "key").entry == first
        assert ann.find(repeated.id) is None
        assert ann.turns_of("c", "alice", 10) == [first]

    def test_the_same_key_of_another_caller_begins_another_turn(self, ann):
        ann.begin(entry(caller="alice"), "key")
        turn = entry(caller="bob")
        assert ann.begin(turn, "key").entry == turn

    def test_callers_cannot_reach_each_others_keys_by_their_names(self, ann):
        ann.begin(entry(caller="a"), "b:c")
        turn = entry(caller="a:b")
        assert ann.begin(turn, "c").entry == turn

    def test_a_key_tells_how_far_the_first_turn_is(self, ann):
        first = ann.begin(entry(), "key").entry
        ann.append([batch(first, 1, 2, Done(3, "complete"))])
        again = ann.begin(entry(), "key").entry
        assert (again.id, again.status, again.last_id) == (first.id, "complete", 3)

    def test_a_key_does_not_end_while_its_turn_runs(self, store, ann):
        first = ann.begin(entry(), "key").entry
        store.live_on(2 * RETAIN, ann)
        ann.purge()
        assert ann.begin(entry(), "key").entry.id == first.id

    def test_a_key_is_free_again_after_the_turns_retention(self, store, ann):
        ann.begin(first := entry(), "key")
        ann.append([batch(first, 1, 1, Done(2, "complete"))])
        store.live_on(RETAIN + 1, ann)
        ann.purge()
        turn = entry()
        assert ann.begin(turn, "key").entry == turn


class TestTurnsOf:
    def test_a_conversation_lists_its_turns_oldest_first(self, ann, bob):
        turns = [entry(began=float(began)) for began in (2, 3, 1)]
        for turn in turns:
            ann.begin(turn, None)
        begun(ann, conversation="another")
        assert bob.turns_of("c", "alice", 10) == sorted(turns, key=lambda turn: turn.began)

    def test_a_limit_keeps_the_newest(self, ann):
        turns = [begun(ann, began=float(began)) for began in range(5)]
        assert ann.turns_of("c", "alice", 2) == turns[-2:]

    def test_other_callers_turns_take_no_place(self, ann):
        ours = [begun(ann, began=float(began)) for began in range(3)]
        for began in range(5):
            begun(ann, began=began + 0.5, caller="bob")
        assert ann.turns_of("c", "alice", 2) == ours[-2:]
        assert len(ann.turns_of("c", "bob", 10)) == 5
        assert ann.turns_of("c", "carol", 10) == []

    def test_turns_that_are_forgotten_take_no_place(self, store, ann):
        old = begun(ann, began=1.0)
        newest = begun(ann, began=3.0)
        middle = begun(ann, began=2.0)
        ann.append([batch(newest, 1, 1, Done(2, "complete"))])
        store.live_on(RETAIN + 1, ann)
        ann.purge()
        assert ann.turns_of("c", "alice", 2) == [old, middle]

    def test_an_unknown_conversation_has_none(self, ann):
        assert ann.turns_of("nothing", "alice", 10) == []


class TestAppend:
    def test_all_workers_read_what_was_appended_in_order(self, ann, bob):
        turn = begun(ann)
        assert not ann.append([batch(turn, 1, 3)])
        assert not ann.append([batch(turn, 4, 5)])
        assert ann.read(turn.id, 0, 100) == bob.read(turn.id, 0, 100) == tokens(1, 5)

    def test_a_cursor_may_lie_anywhere(self, ann):
        turn = begun(ann)
        ann.append([batch(turn, 1, 3)])
        ann.append([batch(turn, 4, 6)])
        for cursor in range(7):
            assert ann.read(turn.id, cursor, 100) == tokens(cursor + 1, 6)
        assert ann.read(turn.id, 100, 100) == []

    def test_events_of_many_turns_go_in_one_call(self, ann, bob):
        turns = [begun(ann) for _ in range(250)]
        assert not ann.append([batch(turn, 1, n % 3 + 1) for n, turn in enumerate(turns)])
        for n, turn in enumerate(turns):
            assert bob.read(turn.id, 0, 10) == tokens(1, n % 3 + 1)

    def test_a_limit_is_kept_about_and_the_rest_follows(self, ann):
        turn = begun(ann)
        for first in range(1, 1001, 5):
            ann.append([batch(turn, first, first + 4)])
        events = []
        while piece := ann.read(turn.id, len(events), 30):
            assert len(piece) < 40
            assert len(piece) >= min(30, 1000 - len(events))
            events += piece
        assert events == tokens(1, 1000)

    def test_an_append_of_nothing_is_nothing(self, ann):
        assert not ann.append([])

    def test_a_repeated_batch_is_kept_once(self, ann):
        turn = begun(ann)
        ann.append([batch(turn, 1, 3)])
        assert not ann.append([batch(turn, 1, 3)])
        assert ann.read(turn.id, 0, 100) == tokens(1, 3)

    def test_a_batch_at_the_head_of_a_longer_one_is_kept_once(self, ann, bob):
        turn = begun(ann)
        ann.append([batch(turn, 1, 2)])
        ann.append([batch(turn, 3, 5)])
        assert not ann.append([batch(turn, 3, 8)])
        for cursor in range(9):
            assert bob.read(turn.id, cursor, 100) == tokens(cursor + 1, 8)
            assert bob.news({turn.id: cursor}, 0).events.get(turn.id, []) == tokens(cursor + 1, 8)

    def test_a_repeated_end_is_kept_once_and_is_no_loss(self, ann):
        turn = begun(ann)
        ann.append([batch(turn, 1, 1)])
        last = batch(turn, 2, 2, Done(3, "complete"))
        ann.append([last])
        assert not ann.append([last])
        assert ann.read(turn.id, 0, 100) == [*tokens(1, 2), Done(3, "complete")]

    def test_batches_of_unknown_turns_are_dropped_beside_others(self, ann):
        unknown, turn = entry(), begun(ann)
        assert not ann.append([batch(unknown, 1, 2), batch(turn, 1, 2)])
        assert ann.find(unknown.id) is None
        assert ann.read(unknown.id, 0, 10) == []
        assert ann.read(turn.id, 0, 10) == tokens(1, 2)

    def test_the_entry_tells_how_far_the_turn_is_and_may_run_on(self, ann, bob):
        turn = begun(ann)
        assert turn.reach == AHEAD
        ann.append([batch(turn, 1, 7)])
        assert bob.find(turn.id) == turn._replace(last_id=7, reach=7 + AHEAD)

    def test_done_ends_the_turn(self, ann, bob):
        turn = begun(ann)
        ann.append([batch(turn, 1, 1, Done(2, "cancelled"))])
        found = bob.find(turn.id)
        assert found._replace(ended=None) == turn._replace(status="cancelled", last_id=2, reach=2)
        assert found.ended is not None
        assert not found.running

    @pytest.mark.parametrize(
        "event",
        [
            Token(1, ""),
            Token(1, "Zoë 👩‍👩‍👧‍👦 \U0010ffff 日本語"),
            Token(1, "\0\x01\x1f\x7f"),
            Token(1, "\r\n\n\r\u2028\u2029"),
            Token(1, '"\\ {} [] null'),
            Token(1, "x" * 100_000),
            Extra(1, '{"delta":{"tool_calls":[{"index":0,"x":"Zoë \\"\\u0000"}]},"logprobs":null}'.encode()),
            Failure(1, "Zu viel. 🛑\n", "rate_limited"),
            Done(1, "complete"),
            Done(1, "complete", "stop", {"prompt_tokens": 3, "details": {"cached": [1, None, 0.5]}}),
        ],
        ids=lambda event: f"{type(event).__name__}-{str(event[1])[:12]!r}",
    )
    def test_each_kind_of_event_comes_back_as_it_was(self, ann, bob, event):
        turn = begun(ann)
        ann.append([Batch(turn.id, [event])])
        assert bob.read(turn.id, 0, 10) == [event]
        assert bob.news({turn.id: 0}, 0).events == {turn.id: [event]}

    def test_names_may_hold_any_character(self, ann, bob):
        turn = ann.begin(entry(conversation="c {x}:1 🦊\n", caller="Zoë:{y}"), "key:{z} \n").entry
        assert bob.find(turn.id) == turn
        assert bob.turns_of("c {x}:1 🦊\n", "Zoë:{y}", 5) == [turn]
        assert bob.begin(entry(caller="Zoë:{y}"), "key:{z} \n").entry == turn


class TestSecret:
    def test_the_first_that_is_proposed_is_everyones(self, ann, bob):
        assert ann.secret(b"first") == b"first"
        assert bob.secret(b"second") == b"first"
        assert ann.secret(b"third") == b"first"

    def test_it_outlives_those_who_proposed_it(self, store, ann):
        ann.secret(b"first")
        store.live_on(5 * RETAIN)
        assert store.open("carol").secret(b"second") == b"first"


class TestLease:
    def test_the_first_lease_is_none_that_was_unbroken(self, store):
        journal = store.open("new")
        assert not journal.renew()
        assert journal.renew()
        journal.close()

    def test_a_renewed_lease_is_unbroken(self, store, ann):
        store.live_on(3 * LEASE, ann)

    def test_a_lease_that_ended_is_told(self, store, ann):
        store.forward(LEASE + RENEW_INTERVAL)
        assert not ann.renew()
        assert ann.renew()

    def test_turns_of_the_living_are_left_alone(self, store, ann, bob):
        turn = begun(ann)
        store.live_on(3 * LEASE, ann, bob)
        assert not bob.interrupt_orphans()
        assert bob.find(turn.id).running

    def test_turns_of_the_dead_are_interrupted_once(self, store, ann, bob):
        ours = begun(bob)
        turns = [begun(ann) for _ in range(3)]
        ended = begun(ann)
        ann.append([batch(turns[0], 1, 4), batch(ended, 1, 1, Done(2, "complete"))])
        store.outlive_lease(bob)
        assert set(bob.interrupt_orphans()) == {turn.id for turn in turns}
        assert not bob.interrupt_orphans()
        assert bob.find(ours.id).running
        assert bob.find(ended.id).status == "complete"
        assert [bob.find(turn.id).status for turn in turns] == ["interrupted"] * 3

    def test_many_orphans_are_all_interrupted_in_the_end(self, store, ann, bob):
        turns = {begun(ann).id for _ in range(700)}
        store.outlive_lease(bob)
        ended = set()
        while found := bob.interrupt_orphans():
            ended |= set(found)
        assert ended == turns

    def test_closing_events_lie_behind_whatever_a_client_can_have_seen(self, store, ann, bob):
        turn = begun(ann)
        ann.append([batch(turn, 1, 4)])
        store.outlive_lease(bob)
        bob.interrupt_orphans()
        last = list(closing(4 + AHEAD))
        assert bob.read(turn.id, 0, 100) == [*tokens(1, 4), *last]
        assert bob.read(turn.id, 4 + AHEAD, 100) == last
        assert bob.read(turn.id, 4 + AHEAD + 1, 100) == last[1:]
        assert bob.news({turn.id: 4 + AHEAD}, 0).events == {turn.id: last}
        assert bob.find(turn.id).last_id == bob.find(turn.id).reach == 4 + AHEAD + 2

    def test_a_turn_without_events_is_closed_behind_the_first_allowance(self, store, ann, bob):
        turn = begun(ann)
        store.outlive_lease(bob)
        bob.interrupt_orphans()
        assert bob.read(turn.id, 0, 100) == list(closing(AHEAD))

    def test_a_writer_that_comes_back_late_changes_nothing(self, store, ann, bob):
        turn, other = begun(ann), begun(ann)
        ann.append([batch(turn, 1, 4), batch(other, 1, 1, Done(2, "complete"))])
        store.outlive_lease(bob)
        bob.interrupt_orphans()
        kept = bob.read(turn.id, 0, 100)
        ours = begun(ann)
        for late in (batch(turn, 5, 9), batch(turn, 5, 9), batch(turn, 5, 5, Done(6, "complete"))):
            assert list(ann.append([late, batch(ours, 1, 2)])) == [turn.id]
            assert bob.read(turn.id, 0, 100) == kept
            assert bob.find(turn.id).status == "interrupted"
        assert bob.read(ours.id, 0, 100) == tokens(1, 2)

    def test_who_lost_the_lease_but_no_turn_goes_on(self, store, ann, bob):
        turn = begun(ann)
        store.forward(LEASE + RENEW_INTERVAL)
        assert not ann.renew()
        assert not bob.interrupt_orphans()
        assert not ann.append([batch(turn, 1, 2)])

    def test_closing_gives_up_the_lease(self, store, ann):
        journal = store.open("gone")
        journal.renew()
        turn = begun(journal)
        journal.close()
        store.live_on(LEASE, ann)  # before that nobody is judged
        assert list(ann.interrupt_orphans()) == [turn.id]


class TestNews:
    def test_events_behind_the_cursors_come_at_once(self, ann, bob):
        one, two, three = begun(ann), begun(ann), begun(ann)
        ann.append([batch(one, 1, 4), batch(two, 1, 4), batch(three, 1, 4)])
        news = bob.news({one.id: 0, two.id: 3, three.id: 4}, 10)
        assert news.events == {one.id: tokens(1, 4), two.id: tokens(4, 4)}
        assert not news.wishes

    def test_a_long_absence_is_made_up_for_piece_by_piece(self, ann, bob):
        turn = begun(ann)
        for first in range(1, 3001):
            ann.append([batch(turn, first, first)])
        events = []
        while news := bob.news({turn.id: len(events)}, 0).events:
            assert len(news[turn.id]) <= 1000
            events += news[turn.id]
        assert events == tokens(1, 3000)

    def test_nothing_comes_after_the_timeout(self, ann, bob):
        turn = begun(ann)
        began = time.monotonic()
        assert not any(bob.news({turn.id: 0}, 0.2))
        assert 0.15 < time.monotonic() - began < SOON
        assert not any(bob.news({}, 0))

    def test_an_append_elsewhere_ends_the_waiting(self, store, ann, bob):
        turn = begun(ann)
        waiting = store.later(bob.news, {turn.id: 0}, 30)
        store.pause(0.1)
        assert not waiting.ready()
        ann.append([batch(turn, 1, 2)])
        assert waiting.get(SOON).events == {turn.id: tokens(1, 2)}

    def test_the_closing_events_of_the_dead_end_the_waiting(self, store, ann, bob):
        turn = begun(ann)
        store.outlive_lease(bob)
        waiting = store.later(bob.news, {turn.id: AHEAD}, 30)
        store.pause(0.1)
        bob.interrupt_orphans()
        assert until(lambda: waiting.get(SOON)).events == {turn.id: list(closing(AHEAD))}

    def test_a_wake_ends_the_waiting(self, store, ann):
        waiting = store.later(ann.news, {}, 30)
        store.pause(0.1)
        ann.wake()
        assert not any(waiting.get(SOON))

    def test_a_wake_of_another_worker_does_not(self, store, ann, bob):
        waiting = store.later(ann.news, {}, 0.4)
        store.pause(0.1)
        bob.wake()
        store.pause(0.1)
        assert not waiting.ready()
        assert not any(waiting.get(SOON))

    @pytest.mark.parametrize("wish", ["cancel", "watch"])
    def test_a_wish_reaches_the_writer_once(self, ann, bob, wish):
        turn, other = begun(ann), begun(bob)
        assert set(bob.ask([turn.id, other.id], wish)) == {turn.id, other.id}
        assert list(ann.news({}, 1).wishes) == [(turn.id, wish)]
        assert list(bob.news({}, 1).wishes) == [(other.id, wish)]
        assert not ann.news({}, 0).wishes
        assert not bob.news({}, 0).wishes

    def test_a_wish_ends_the_waiting(self, store, ann, bob):
        turn = begun(ann)
        waiting = store.later(ann.news, {}, 30)
        store.pause(0.1)
        bob.ask([turn.id], "cancel")
        assert list(waiting.get(SOON).wishes) == [(turn.id, "cancel")]

    def test_wishes_and_events_come_together(self, ann, bob):
        ours, theirs = begun(ann), begun(bob)
        bob.ask([ours.id], "cancel")
        bob.ask([ours.id], "watch")
        bob.append([batch(theirs, 1, 1)])
        seen = [ann.news({theirs.id: 0}, 1)]
        assert set(seen[0].wishes) == {(ours.id, "cancel"), (ours.id, "watch")}
        assert seen[0].events == {theirs.id: tokens(1, 1)}

    def test_nobody_is_asked_about_turns_that_do_not_run(self, store, ann, bob):
        ended = begun(ann)
        ann.append([batch(ended, 1, 1, Done(2, "complete"))])
        assert not bob.ask([ended.id, "nothing"], "cancel")
        assert not bob.ask([], "cancel")
        assert not ann.news({}, 0).wishes


class TestPurge:
    def test_an_ended_turn_is_kept_for_its_time_and_then_forgotten(self, store, ann, bob):
        turn = begun(ann)
        ann.append([batch(turn, 1, 1)])
        store.live_on(2 * RETAIN, ann)
        ann.append([batch(turn, 2, 2, Done(3, "complete"))])
        store.live_on(RETAIN - 10, ann)
        ann.purge()
        assert bob.read(turn.id, 0, 10) == [*tokens(1, 2), Done(3, "complete")]
        store.live_on(10 + RENEW_INTERVAL, ann)
        ann.purge()
        assert bob.find(turn.id) is None
        assert bob.read(turn.id, 0, 10) == []
        assert bob.turns_of("c", "alice", 10) == []

    def test_a_turn_that_runs_is_never_forgotten(self, store, ann):
        turn = begun(ann)
        ann.append([batch(turn, 1, 1)])
        store.live_on(5 * RETAIN, ann)
        ann.purge()
        assert ann.read(turn.id, 0, 10) == tokens(1, 1)
        assert ann.turns_of("c", "alice", 10) == [ann.find(turn.id)]
        assert not ann.append([batch(turn, 2, 2)])

    def test_an_interrupted_turn_is_forgotten_as_well(self, store, ann, bob):
        turn = begun(ann)
        store.outlive_lease(bob)
        bob.interrupt_orphans()
        store.live_on(RETAIN + RENEW_INTERVAL, bob)
        bob.purge()
        assert bob.find(turn.id) is None
        assert not ann.append([batch(turn, 1, 1)])


def test_errors_tell_the_kind_and_nothing_else():
    """The URL holds a password."""
    from server.journal.redis import RedisJournal  # noqa: PLC0415

    journal = RedisJournal("redis://:hunter2@127.0.0.1:1/0", "ann", RETAIN, RETAIN)
    with pytest.raises(StoreUnavailable) as raised:
        journal.renew()
    assert raised.value.detail == "ConnectionError"
    assert raised.value.__cause__ is None


def test_who_could_not_renew_its_own_lease_judges_no_one(tmp_path):
    """A transaction that waited for a lock finds every lease over, those of the living too."""
    now = [1_800_000_000.0]
    ann, bob = (SqliteJournal(tmp_path / "relay.db", name, 60, 60, *[lambda: now[0]] * 2) for name in ("ann", "bob"))
    turn = begun(ann)
    ann.renew()
    bob.renew()
    now[0] += LEASE + 0.1
    assert not bob.interrupt_orphans()
    assert bob.find(turn.id).running
    bob.renew()
    assert not bob.interrupt_orphans(), "ann is given the time for it as well"
    for _ in range(2):
        now[0] += LEASE / 2 + 0.1
        bob.renew()
    assert bob.interrupt_orphans() == [turn.id]
    for journal in (ann, bob):
        journal.close()


def test_a_lease_from_before_the_machine_was_restarted_is_over(tmp_path):
    now = [1_800_000_000.0]
    ann, bob = (SqliteJournal(tmp_path / "relay.db", name, 60, 60, *[lambda: now[0]] * 2) for name in ("ann", "bob"))
    turn = begun(ann)
    ann.renew()
    for now[0] in (60.0, 61.5, 63.1):
        bob.renew()
    assert bob.interrupt_orphans() == [turn.id]
    for journal in (ann, bob):
        journal.close()


@pytest.mark.parametrize("seconds", [-3600.0, -2.0, 2.0, 300.0])
def test_a_clock_that_is_set_ends_no_lease(tmp_path, seconds):
    """Leases go by a clock that counts from the machine's start."""
    now = [1_800_000_000.0]
    ann, bob = (SqliteJournal(tmp_path / "relay.db", name, 60, 60, lambda: now[0]) for name in ("ann", "bob"))
    turn = begun(ann, mirrored=True)
    ann.renew()
    bob.renew()
    ann.outbox.claim(["c"])
    now[0] += seconds
    assert bob.renew()
    assert not bob.interrupt_orphans()
    assert not bob.outbox.unheld(10)
    assert not bob.outbox.claim(["c"])
    assert ann.renew()
    assert bob.find(turn.id).running
    for journal in (ann, bob):
        journal.close()


def test_a_folder_that_cannot_be_reached_is_a_store_that_is_unavailable(tmp_path):
    """A mount that was taken away, or a folder whose rights were: `news`, which looks by itself, says so too."""
    (tmp_path / "file").write_text("")
    journal = SqliteJournal(tmp_path / "file" / "relay.db", "ann", 60, 60)
    for use in (journal.renew, lambda: journal.news({}, 0)):
        with pytest.raises(StoreUnavailable):
            use()
    with pytest.raises(StoreUnavailable):
        journal.close()
