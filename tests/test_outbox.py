"""The outbox's contract, held by each engine; see `Outbox`."""

import sqlite3
from contextlib import closing

import pytest

from server.errors import StoreUnavailable
from server.journal import LEASE, RENEW_INTERVAL
from server.journal.memory import MemoryJournal
from server.journal.outbox import MAX_REASON, WINDOW, Delivery, Parcel, Receipt
from server.journal.redis import RedisJournal
from server.journal.sqlite import DEAD_WORKER, SqliteJournal
from server.journal.sqlite_file import SCHEMA, prepare
from server.sse import Done

from .conftest import until
from .stores import RETAIN, RETAIN_UNDELIVERED, RedisStore, batch, entry, tokens


@pytest.fixture
def cid(store):
    """The journal of a third worker with the same store."""
    return store.worker("cid")


def begun(journal, conversation="c", **fields):
    return journal.begin(entry(conversation, mirrored=True, **fields), None).entry


def ended(journal, conversation="c"):
    turn = begun(journal, conversation)
    journal.append([batch(turn, 1, 2, Done(3, "complete"))])
    return turn


def parcels(*turns):
    return [Parcel(turn.id, 0) for turn in turns]


def claimed(journal, conversation="c"):
    """What a claim of one conversation gives; None where another holds it."""
    found = journal.outbox.claim([conversation]).get(conversation)
    return None if found is None else list(found)


def whole(turn, cursor=3):
    return Receipt(turn.id, cursor, True)


def wishes(journal):
    return list(journal.news({}, 0).wishes)


class TestBegin:
    def test_a_mirrored_turn_waits_for_delivery(self, ann, bob):
        turn = begun(ann)
        assert bob.outbox.find(turn.id) == Delivery(turn.id, "c", "pending", 0, None)
        assert bob.find(turn.id) == ann.turns_of("c", "alice", 10)[0] == turn
        assert bob.find(turn.id).mirrored is True

    def test_one_that_is_not_mirrored_does_not(self, ann):
        turn = ann.begin(entry(), None).entry
        assert ann.find(turn.id).mirrored is False
        assert ann.outbox.find(turn.id) is None
        assert not ann.outbox.undelivered(10)
        assert not ann.outbox.unheld(10)
        assert claimed(ann) == []

    def test_nor_does_one_that_belongs_to_no_conversation(self, ann):
        turn = begun(ann, conversation=None)
        assert ann.find(turn.id).mirrored
        assert ann.outbox.find(turn.id) is None
        assert not ann.outbox.unheld(10)
        assert not ann.outbox.undelivered(10)

    def test_an_unknown_turn_has_no_delivery(self, ann):
        assert ann.outbox.find("nothing") is None

    def test_turns_wait_in_the_order_in_which_the_store_saw_them_begin(self, ann, bob):
        turns = [begun(journal, began=float(began)) for journal, began in ((ann, 9), (bob, 5), (ann, 7), (bob, 1))]
        assert claimed(ann) == parcels(*turns)

    def test_a_begin_answered_from_a_key_adds_nothing(self, ann, bob):
        turn = ann.begin(entry(mirrored=True), "key").entry
        claimed(ann)
        assert bob.begin(entry(mirrored=True), "key").entry == turn
        assert claimed(ann) == parcels(turn)
        assert not wishes(ann)
        ann.outbox.confirm([whole(turn)])
        assert bob.begin(entry(mirrored=True), "key").entry.id == turn.id
        assert claimed(ann) == []

    def test_the_holder_elsewhere_is_told(self, ann, bob):
        assert claimed(ann) == []
        turn = begun(bob)
        assert wishes(ann) == [("c", "deliver")]
        assert not wishes(ann), "once"
        assert not wishes(bob)
        assert claimed(ann) == parcels(turn)

    def test_the_wish_ends_the_holders_waiting(self, store, ann, bob):
        claimed(ann)
        waiting = store.later(ann.news, {}, 30)
        store.pause(0.1)
        begun(bob)
        assert list(waiting.get(5).wishes) == [("c", "deliver")]

    def test_a_holder_that_begins_the_turn_itself_is_not_told(self, ann):
        claimed(ann)
        begun(ann)
        assert not wishes(ann)

    def test_nobody_is_told_where_no_living_worker_holds(self, store, ann, bob):
        begun(bob)
        claimed(ann)
        store.outlive_lease(bob)
        begun(bob)
        ann.renew()
        assert not wishes(ann)
        assert not wishes(bob)

    def test_nobody_is_told_of_turns_that_are_not_mirrored(self, ann, bob):
        claimed(ann)
        bob.begin(entry(), None)
        assert not wishes(ann)

    def test_names_may_hold_any_character(self, ann, bob):
        name = "c {x}:1 🦊\n"
        claimed(bob, name)
        turn = begun(ann, name)
        assert wishes(bob) == [(name, "deliver")]
        assert claimed(bob, name) == parcels(turn)
        assert list(bob.outbox.park(name, "Zoë 🦊\n")) == [turn.id]
        assert ann.outbox.find(turn.id) == Delivery(turn.id, name, "parked", 0, "Zoë 🦊\n")
        assert list(ann.outbox.retry(name)) == [turn.id]
        assert list(ann.outbox.unheld(10)) == [name]


class TestClaim:
    def test_one_worker_holds_a_conversation(self, ann, bob):
        turn = begun(ann)
        assert claimed(bob) == parcels(turn)
        assert claimed(ann) is None
        assert claimed(bob) == parcels(turn), "again as often as it likes"

    def test_what_others_hold_is_left_out_beside_what_is_free(self, ann, bob):
        free, taken = begun(ann, "free"), begun(ann, "taken")
        claimed(bob, "taken")
        assert ann.outbox.claim(["taken", "free", "empty"]) == {"free": parcels(free), "empty": []}
        assert claimed(bob, "taken") == parcels(taken)

    def test_a_claim_of_nothing_is_nothing(self, ann):
        assert ann.outbox.claim([]) == {}

    def test_many_conversations_go_in_one_call(self, ann):
        turns = {f"c{n}": begun(ann, f"c{n}") for n in range(250)}
        assert ann.outbox.claim(list(turns)) == {name: parcels(turn) for name, turn in turns.items()}

    def test_who_has_no_lease_holds_nothing(self, store, ann):
        turn = begun(ann)
        new = store.open("new")
        with pytest.raises(StoreUnavailable):
            new.outbox.claim(["c"])
        store.outlive_lease()
        with pytest.raises(StoreUnavailable):
            ann.outbox.claim(["c"])
        new.renew()
        assert claimed(new) == parcels(turn)
        new.close()

    def test_a_window_of_turns_comes_at_once_and_the_rest_follows(self, ann):
        turns = [begun(ann) for _ in range(WINDOW + 3)]
        assert claimed(ann) == parcels(*turns[:WINDOW])
        ann.outbox.confirm([whole(turn) for turn in turns[:2]])
        assert claimed(ann) == parcels(*turns[2 : WINDOW + 2])
        ann.outbox.confirm([whole(turn) for turn in turns[2:WINDOW]])
        assert claimed(ann) == parcels(*turns[WINDOW:])

    def test_the_conversation_of_the_dead_can_be_claimed_with_its_cursors(self, store, ann, bob):
        first, second = begun(ann), begun(ann)
        claimed(ann)
        ann.outbox.confirm([Receipt(first.id, 2, False)])
        store.outlive_lease(bob)
        assert claimed(bob) == [Parcel(first.id, 2), Parcel(second.id, 0)]

    def test_the_conversation_of_the_living_cannot(self, store, ann, bob):
        begun(ann)
        claimed(ann)
        store.live_on(3 * LEASE, ann, bob)
        assert claimed(bob) is None

    def test_who_lost_the_lease_holds_nothing_that_another_has_claimed(self, store, ann, bob):
        turn = begun(ann)
        claimed(ann)
        store.outlive_lease(bob)
        claimed(bob)
        ann.renew()
        assert claimed(ann) is None
        assert list(ann.outbox.confirm([whole(turn)])) == [turn.id]

    def test_who_lost_the_lease_holds_again_what_nobody_has_claimed(self, store, ann, bob):
        turn = begun(ann)
        claimed(ann)
        store.outlive_lease(bob)
        ann.renew()
        assert claimed(bob) is None
        assert not ann.outbox.confirm([Receipt(turn.id, 2, False)])
        assert claimed(ann) == [Parcel(turn.id, 2)]

    def test_closing_gives_up_what_was_held(self, store, ann, bob):
        turns = {f"c{n}": begun(ann, f"c{n}") for n in range(3)}
        journal = store.open("gone")
        journal.renew()
        journal.outbox.claim([*turns, "empty"])
        journal.close()
        assert set(bob.outbox.unheld(10)) == set(turns)
        assert bob.outbox.claim(list(turns)) == {name: parcels(turn) for name, turn in turns.items()}


class TestRelease:
    def test_what_was_released_can_be_claimed_by_another(self, ann, bob):
        turn = begun(ann)
        claimed(ann)
        ann.outbox.release(["c"])
        assert list(bob.outbox.unheld(10)) == ["c"]
        assert claimed(bob) == parcels(turn)
        assert list(ann.outbox.confirm([whole(turn)])) == [turn.id]

    def test_nobody_releases_what_another_holds(self, ann, bob):
        begun(ann)
        claimed(ann)
        bob.outbox.release(["c", "nothing"])
        assert claimed(bob) is None

    def test_what_has_nothing_pending_waits_for_nobody(self, ann, bob):
        turn = begun(ann)
        claimed(ann)
        ann.outbox.confirm([whole(turn)])
        ann.outbox.release(["c"])
        ann.outbox.release(["c"])
        assert not bob.outbox.unheld(10)
        begun(bob)
        assert not wishes(ann)
        assert list(bob.outbox.unheld(10)) == ["c"]


class TestUnheld:
    def test_conversations_with_pending_turns_and_no_holder_are_found(self, ann, bob):
        for name in "abcd":
            begun(ann, name)
        bob.outbox.claim(["b", "e"])
        assert set(ann.outbox.unheld(10)) == {"a", "c", "d"}

    def test_a_limit_is_kept_and_what_is_claimed_makes_room(self, ann):
        names = {f"c{n}" for n in range(30)}
        for name in names:
            begun(ann, name)
        found = set()
        while some := ann.outbox.unheld(7):
            assert len(some) <= 7
            assert not found & set(some)
            found |= set(some)
            ann.outbox.claim(some)
        assert found == names

    def test_conversations_of_the_dead_are_found_among_those_of_the_living(self, store, ann, bob):
        for n in range(300):
            begun(ann, f"living-{n}")
            begun(ann, f"dead-{n}")
        ann.outbox.claim([f"living-{n}" for n in range(300)])
        bob.outbox.claim([f"dead-{n}" for n in range(300)])
        bob.outbox.claim([f"empty-{n}" for n in range(300)])
        store.outlive_lease(ann)
        found = set()
        for _ in range(6):
            some = set(ann.outbox.unheld(100))
            assert len(some) <= 100
            assert ann.outbox.claim(some).keys() == some
            found |= some
        assert found == {f"dead-{n}" for n in range(300)}
        assert not ann.outbox.unheld(100)

    def test_a_turn_that_begins_in_a_conversation_of_the_dead_makes_it_unheld(self, store, ann, bob):
        claimed(ann)
        store.outlive_lease(bob)
        assert not bob.outbox.unheld(10)
        begun(bob)
        assert list(bob.outbox.unheld(10)) == ["c"]

    def test_what_is_delivered_is_not_found(self, store, ann, bob):
        turn = begun(ann)
        claimed(ann)
        ann.outbox.confirm([whole(turn)])
        store.outlive_lease(bob)
        assert not bob.outbox.unheld(10)


class TestConfirm:
    def test_cursors_advance_and_never_go_back(self, ann, bob):
        turn = begun(ann)
        claimed(bob)
        for cursor, expected in ((2, 2), (2, 2), (1, 2), (5, 5), (0, 5)):
            assert not bob.outbox.confirm([Receipt(turn.id, cursor, False)])
            assert claimed(bob) == [Parcel(turn.id, expected)]
            assert ann.outbox.find(turn.id) == Delivery(turn.id, "c", "pending", expected, None)

    def test_a_whole_turn_leaves(self, ann, bob):
        first, second = ended(ann), begun(ann)
        claimed(bob)
        assert not bob.outbox.confirm([whole(first), Receipt(second.id, 1, False)])
        assert claimed(bob) == [Parcel(second.id, 1)]
        assert ann.outbox.find(first.id) == Delivery(first.id, "c", "delivered", 3, None)
        assert [delivery.turn_id for delivery in ann.outbox.undelivered(10)] == [second.id]

    def test_a_receipt_may_be_repeated(self, ann):
        turn = ended(ann)
        claimed(ann)
        for _ in range(2):
            assert not ann.outbox.confirm([whole(turn)])
            assert ann.outbox.find(turn.id) == Delivery(turn.id, "c", "delivered", 3, None)

    def test_a_late_receipt_brings_no_cursor_back(self, ann):
        turn = begun(ann)
        claimed(ann)
        ann.outbox.confirm([Receipt(turn.id, 9, False)])
        ann.outbox.confirm([whole(turn, 3)])
        assert ann.outbox.find(turn.id).cursor == 9

    def test_turns_that_are_not_in_the_outbox_are_passed_over(self, ann):
        plain, turn = ann.begin(entry(), None).entry, begun(ann)
        claimed(ann)
        assert not ann.outbox.confirm([])
        assert not ann.outbox.confirm([whole(plain), Receipt("nothing", 1, True), whole(turn)])
        assert ann.outbox.find(plain.id) is None
        assert ann.find("nothing") is None
        assert ann.outbox.find(turn.id).state == "delivered"

    def test_many_receipts_go_in_one_call(self, ann):
        turns = [begun(ann, f"c{n}") for n in range(250)]
        ann.outbox.claim([turn.conversation_id for turn in turns])
        assert not ann.outbox.confirm([whole(turn) for turn in turns])
        assert not ann.outbox.undelivered(10)

    def test_nothing_is_noted_of_what_another_holds(self, ann, bob):
        turn = begun(ann)
        claimed(bob)
        assert list(ann.outbox.confirm([Receipt(turn.id, 2, False), whole(turn)])) == [turn.id] * 2
        assert ann.outbox.find(turn.id) == Delivery(turn.id, "c", "pending", 0, None)

    def test_what_arrived_before_the_lease_ended_is_noted_after_it_as_well(self, store, ann, bob):
        turn = begun(ann)
        claimed(ann)
        store.outlive_lease(bob)
        assert not ann.outbox.confirm([Receipt(turn.id, 2, False)])
        assert list(bob.outbox.unheld(10)) == ["c"]
        assert not ann.outbox.confirm([Receipt(turn.id, 3, False)]), "given up, and taken by nobody"
        assert claimed(bob) == [Parcel(turn.id, 3)]

    def test_a_holder_that_comes_back_late_notes_nothing(self, store, ann, bob):
        turn, ours = begun(ann), begun(ann, "ours")
        claimed(ann)
        store.outlive_lease(bob)
        claimed(bob)
        ann.renew()
        claimed(ann, "ours")
        assert list(ann.outbox.confirm([whole(turn), whole(ours)])) == [turn.id], "another holds"
        assert ann.outbox.find(turn.id) == Delivery(turn.id, "c", "pending", 0, None)
        assert ann.outbox.find(ours.id).state == "delivered"


class TestPark:
    def test_what_is_parked_is_set_aside_with_its_reason(self, ann, bob):
        first, second = begun(ann), begun(ann)
        claimed(bob)
        bob.outbox.confirm([Receipt(first.id, 2, False)])
        assert list(bob.outbox.park("c", "refused")) == [first.id, second.id]
        assert ann.outbox.find(first.id) == Delivery(first.id, "c", "parked", 2, "refused")
        assert not ann.outbox.unheld(10)
        begun(ann)
        claimed(ann)
        assert list(bob.outbox.confirm([whole(first)])) == [first.id], "it was given up"

    def test_only_the_holder_parks(self, store, ann, bob):
        turn = begun(ann)
        assert not ann.outbox.park("c", "refused")
        claimed(ann)
        assert not bob.outbox.park("c", "refused")
        store.outlive_lease(bob)
        with pytest.raises(StoreUnavailable):
            ann.outbox.park("c", "refused")
        assert bob.outbox.find(turn.id).state == "pending"
        assert list(bob.outbox.unheld(10)) == ["c"]

    def test_a_conversation_without_turns_is_given_up(self, ann, bob):
        claimed(ann)
        assert not ann.outbox.park("c", "refused")
        begun(bob)
        assert not wishes(ann)

    def test_a_long_reason_is_cut(self, ann):
        turn = begun(ann)
        claimed(ann)
        ann.outbox.park("c", "é" * 2 * MAX_REASON)
        assert ann.outbox.find(turn.id).reason == "é" * MAX_REASON

    def test_what_was_delivered_is_not_parked(self, ann):
        first, second = begun(ann), begun(ann)
        claimed(ann)
        ann.outbox.confirm([whole(first)])
        assert list(ann.outbox.park("c", "refused")) == [second.id]
        assert ann.outbox.find(first.id) == Delivery(first.id, "c", "delivered", 3, None)

    def test_retry_makes_a_conversation_pending_again(self, ann, bob):
        turn, other = begun(ann), begun(ann, "other")
        ann.outbox.claim(["c", "other"])
        ann.outbox.confirm([Receipt(turn.id, 2, False)])
        ann.outbox.park("c", "refused")
        ann.outbox.park("other", "refused")
        assert list(bob.outbox.retry("c")) == [turn.id]
        assert not bob.outbox.retry("c")
        assert bob.outbox.find(turn.id) == Delivery(turn.id, "c", "pending", 2, None)
        assert bob.outbox.find(other.id).state == "parked"
        assert list(bob.outbox.unheld(10)) == ["c"]
        assert claimed(bob) == [Parcel(turn.id, 2)]

    def test_retry_of_what_is_not_parked_changes_nothing(self, ann, bob):
        turn = begun(ann)
        claimed(ann)
        assert not bob.outbox.retry("c")
        assert not bob.outbox.retry()
        assert not bob.outbox.retry("nothing")
        assert not bob.outbox.unheld(10)
        assert claimed(ann) == parcels(turn)

    def test_retry_of_all_reaches_every_conversation(self, ann):
        turns = {begun(ann, f"c{n % 250}").id for n in range(700)}
        names = {f"c{n}" for n in range(250)}
        ann.outbox.claim(names)
        for name in names:
            ann.outbox.park(name, "refused")
        begun(ann, "another")
        assert set(ann.outbox.retry()) == turns
        assert not ann.outbox.retry()
        assert set(ann.outbox.unheld(1000)) == names | {"another"}

    def test_a_later_turn_makes_the_conversation_unheld_and_a_claim_brings_all(self, ann, bob):
        first, second = begun(ann), begun(ann)
        claimed(ann)
        ann.outbox.park("c", "refused")
        third = begun(bob)
        assert [bob.outbox.find(turn.id).state for turn in (first, third)] == ["parked", "pending"]
        assert list(bob.outbox.unheld(10)) == ["c"]
        assert claimed(bob) == parcels(first, second, third)
        assert [bob.outbox.find(turn.id) for turn in (first, second, third)] == [
            Delivery(turn.id, "c", "pending", 0, None) for turn in (first, second, third)
        ]

    def test_all_can_be_parked_again(self, ann):
        first = begun(ann)
        claimed(ann)
        ann.outbox.park("c", "refused")
        second = begun(ann)
        claimed(ann)
        assert list(ann.outbox.park("c", "gone")) == [first.id, second.id]
        assert [ann.outbox.find(turn.id).reason for turn in (first, second)] == ["gone", "gone"]
        assert not ann.outbox.unheld(10)


class TestUndelivered:
    def test_the_oldest_come_first(self, ann):
        turns = [ended(ann, f"c{n % 2}") for n in range(5)]
        assert [delivery.turn_id for delivery in ann.outbox.undelivered(3)] == [turn.id for turn in turns[:3]]
        assert ann.outbox.undelivered(10)[3:] == [
            Delivery(turn.id, turn.conversation_id, "pending", 0, None) for turn in turns[3:]
        ]

    def test_it_tells_of_the_parked_and_of_those_that_run(self, ann):
        parked, running = begun(ann), begun(ann, "running")
        claimed(ann)
        ann.outbox.park("c", "refused")
        assert sorted(ann.outbox.undelivered(10)) == sorted(
            [Delivery(parked.id, "c", "parked", 0, "refused"), Delivery(running.id, "running", "pending", 0, None)]
        )


class TestRetention:
    def test_undelivered_turns_outlive_the_ordinary_time(self, store, ann, bob):
        pending, parked, running = ended(ann), ended(ann, "parked"), begun(ann, "running")
        plain = ann.begin(entry(), None).entry
        ann.append([batch(running, 1, 2), batch(plain, 1, 2, Done(3, "complete"))])
        claimed(ann, "parked")
        ann.outbox.park("parked", "refused")
        store.live_on(RETAIN_UNDELIVERED - RETAIN, ann, bob)
        ann.purge()
        assert not ann.outbox.expire()
        assert bob.find(plain.id) is None
        assert bob.find(pending.id).status == bob.find(parked.id).status == "complete"
        assert bob.read(pending.id, 0, 10) == [*tokens(1, 2), Done(3, "complete")]
        assert bob.turns_of("c", "alice", 10) == [bob.find(pending.id)]
        assert claimed(bob) == parcels(pending)
        assert claimed(bob, "parked") == parcels(parked)
        assert claimed(bob, "running") == parcels(running)

    def test_their_keys_lead_to_them_for_as_long(self, store, ann):
        turn = ann.begin(entry(mirrored=True), "key").entry
        ann.append([batch(turn, 1, 2, Done(3, "complete"))])
        store.live_on(2 * RETAIN, ann)
        ann.purge()
        assert ann.begin(entry(mirrored=True), "key").entry.id == turn.id
        claimed(ann)
        ann.outbox.confirm([whole(turn)])
        ann.purge()
        other = entry(mirrored=True)
        assert ann.begin(other, "key").entry == other

    def test_a_delivered_turn_is_kept_for_the_rest_of_its_time(self, store, ann):
        turn = ended(ann)
        store.live_on(RETAIN - 20, ann)
        claimed(ann)
        ann.outbox.confirm([whole(turn)])
        store.live_on(10, ann)
        ann.purge()
        assert ann.outbox.find(turn.id).state == "delivered"
        assert ann.read(turn.id, 0, 10) == [*tokens(1, 2), Done(3, "complete")]
        store.live_on(10 + RENEW_INTERVAL, ann)
        ann.purge()
        assert ann.find(turn.id) is None
        assert ann.outbox.find(turn.id) is None

    def test_one_that_is_delivered_late_goes_at_once(self, store, ann):
        turn = ended(ann)
        store.live_on(2 * RETAIN, ann)
        claimed(ann)
        ann.outbox.confirm([Receipt(turn.id, 1, False)])
        ann.purge()
        assert ann.find(turn.id)
        ann.outbox.confirm([whole(turn)])
        ann.purge()
        assert ann.find(turn.id) is None
        assert ann.read(turn.id, 0, 10) == []
        assert ann.outbox.find(turn.id) is None
        assert not ann.outbox.confirm([whole(turn)]), "a lost reply makes it come again"

    def test_one_that_is_delivered_before_its_end_is_kept_for_its_time(self, store, ann):
        turn = begun(ann)
        claimed(ann)
        ann.outbox.confirm([whole(turn)])
        store.live_on(2 * RETAIN, ann)
        ann.append([batch(turn, 1, 2, Done(3, "complete"))])
        ann.purge()
        assert ann.find(turn.id)
        store.live_on(RETAIN + RENEW_INTERVAL, ann)
        ann.purge()
        assert ann.find(turn.id) is None

    def test_in_the_end_undelivered_turns_are_forgotten_and_told(self, store, ann, bob):
        pending, parked, running, gone = ended(ann), ended(ann, "parked"), begun(ann, "running"), ended(ann, "gone")
        ann.outbox.claim(["parked", "gone"])
        ann.outbox.confirm([Receipt(parked.id, 1, False), whole(gone)])
        ann.outbox.park("parked", "refused")
        store.live_on(RETAIN_UNDELIVERED - 10, ann, bob)
        assert not ann.outbox.expire()
        store.live_on(10 + RENEW_INTERVAL, ann, bob)
        assert ann.find(pending.id), "until it is told"
        assert sorted(bob.outbox.expire()) == sorted(
            [Delivery(pending.id, "c", "pending", 0, None), Delivery(parked.id, "parked", "parked", 1, "refused")]
        )
        assert not ann.outbox.expire(), "once"
        ann.purge()
        for turn in (pending, parked):
            assert ann.find(turn.id) is None
            assert ann.outbox.find(turn.id) is None
            assert ann.read(turn.id, 0, 10) == []
        assert ann.turns_of("c", "alice", 10) == []
        assert list(ann.outbox.unheld(10)) == ["running"]
        assert [delivery.turn_id for delivery in ann.outbox.undelivered(10)] == [running.id]
        assert not ann.outbox.retry()
        assert claimed(ann) == claimed(ann, "parked") == []

    def test_what_is_parked_waits_for_nobody_when_the_turn_behind_it_is_gone(self, store, ann):
        parked = begun(ann)
        claimed(ann)
        ann.outbox.park("c", "refused")
        ended(ann)
        assert list(ann.outbox.unheld(10)) == ["c"]
        store.live_on(RETAIN_UNDELIVERED + RENEW_INTERVAL, ann)
        assert len(ann.outbox.expire()) == 1
        assert not ann.outbox.unheld(10)
        assert list(ann.outbox.retry()) == [parked.id]
        assert list(ann.outbox.unheld(10)) == ["c"]

    def test_a_receipt_for_what_has_expired_is_passed_over(self, store, ann):
        turn = ended(ann)
        claimed(ann)
        store.live_on(RETAIN_UNDELIVERED + RENEW_INTERVAL, ann)
        assert [delivery.turn_id for delivery in ann.outbox.expire()] == [turn.id]
        assert not ann.outbox.confirm([whole(turn)])
        assert ann.find(turn.id) is None

    def test_an_interrupted_turn_is_kept_until_it_is_delivered(self, store, ann, bob):
        turn = begun(ann)
        ann.append([batch(turn, 1, 2)])
        store.outlive_lease(bob)
        bob.interrupt_orphans()
        store.live_on(2 * RETAIN, bob)
        bob.purge()
        assert bob.read(turn.id, 0, 2) == tokens(1, 2)
        assert claimed(bob) == parcels(turn)
        bob.outbox.confirm([whole(turn)])
        bob.purge()
        assert bob.find(turn.id) is None

    def test_many_expire_in_the_end(self, store, ann):
        turns = {ended(ann, f"c{n % 7}").id for n in range(700)}
        store.live_on(RETAIN_UNDELIVERED + RENEW_INTERVAL, ann)
        told = []
        while some := ann.outbox.expire():
            told += [delivery.turn_id for delivery in some]
        assert len(told) == len(turns)
        assert set(told) == turns
        assert not ann.outbox.undelivered(10)


class TestMemory:
    """Bounded memory wins: what is delivered goes first, then the rest, and that is told."""

    def test_what_is_delivered_is_forgotten_first(self):
        journal = MemoryJournal("ann", RETAIN, RETAIN_UNDELIVERED, max_bytes=2000)
        journal.renew()
        oldest, delivered, newest = ended(journal), ended(journal), begun(journal)
        claimed(journal)
        journal.outbox.confirm([whole(delivered)])
        journal.append([batch(newest, 1, 11)])
        assert journal.find(delivered.id) is None
        assert journal.find(oldest.id)
        assert not journal.outbox.expire()
        assert claimed(journal) == parcels(oldest, newest)

    def test_then_what_is_not(self):
        journal = MemoryJournal("ann", RETAIN, RETAIN_UNDELIVERED, max_bytes=2000)
        journal.renew()
        oldest, delivered, newest = ended(journal), ended(journal), begun(journal)
        claimed(journal)
        journal.outbox.confirm([whole(delivered), Receipt(oldest.id, 1, False)])
        journal.append([batch(newest, 1, 30)])
        assert journal.find(delivered.id) is journal.find(oldest.id) is None
        assert journal.outbox.expire() == [Delivery(oldest.id, "c", "pending", 1, None)]
        assert not journal.outbox.expire()
        assert journal.find(newest.id), "it runs"
        assert claimed(journal) == parcels(newest)


class TestSqlite:
    @pytest.fixture
    def now(self):
        return [1_800_000_000.0]

    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "relay.db"

    @pytest.fixture
    def ann(self, path, now):
        journal = SqliteJournal(path, "ann", RETAIN, RETAIN_UNDELIVERED, lambda: now[0], lambda: now[0])
        journal.renew()
        yield journal
        journal.close()

    @pytest.fixture
    def bob(self, path, now):
        journal = SqliteJournal(path, "bob", RETAIN, RETAIN_UNDELIVERED, lambda: now[0], lambda: now[0])
        journal.renew()
        yield journal
        journal.close()

    @pytest.mark.parametrize("prepared", [True, False], ids=["by the master", "by a worker"])
    def test_a_file_of_the_first_version_is_brought_up_to_date(self, path, now, prepared):
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.executescript(f"PRAGMA journal_mode = WAL; {SCHEMA[0]}; PRAGMA user_version = 1")
            for name, status, end in (("old", "complete", now[0]), ("running", "running", None)):
                row = (name, f"key of {name}", now[0], end, status)
                connection.execute("INSERT INTO turns VALUES (?, 'c', 'alice', ?, '', 'ann', ?, ?, ?, 2, 10002)", row)
                connection.execute("INSERT INTO batches VALUES (?, 2, 1, ?)", (name, '["t1 ","t2 "]'))
            connection.execute("INSERT INTO workers VALUES ('ann', ?)", (now[0] + LEASE,))
        if prepared:
            prepare(path)
        ann = SqliteJournal(path, "ann", RETAIN, RETAIN_UNDELIVERED, lambda: now[0], lambda: now[0])
        assert ann.renew(), "who lives on notices nothing"
        old, running = ann.find("old"), ann.find("running")
        assert (old.status, old.ended, old.mirrored) == ("complete", now[0], False)
        assert ann.read("old", 0, 10) == ann.read("running", 0, 10) == tokens(1, 2)
        assert ann.outbox.find("old") is None
        assert ann.begin(entry(mirrored=True), "key of old").entry == old
        assert not ann.append([batch(running, 3, 3, Done(4, "complete"))])
        turn = begun(ann)
        assert claimed(ann) == parcels(turn)
        now[0] += RETAIN
        assert ann.purge() == 2
        assert ann.find("old") is ann.find("running") is None
        assert ann.find(turn.id) == turn
        ann.close()

    def test_who_could_not_renew_its_own_lease_takes_nothing_from_others(self, now, ann, bob):
        """A transaction that waited for a lock finds every lease over, those of the living too."""
        turn = begun(ann)
        claimed(ann)
        now[0] += 1.5
        bob.renew()
        now[0] += LEASE - 1.0
        assert claimed(bob) is None
        bob.renew()
        assert claimed(bob) == parcels(turn)

    def test_a_new_worker_takes_nothing_from_the_living_either(self, path, now, ann, bob):
        """It comes first when a lock is gone that was there for longer than a lease."""
        turn = begun(ann)
        claimed(ann)
        now[0] += LEASE + 0.1
        cid = SqliteJournal(path, "cid", RETAIN, RETAIN_UNDELIVERED, lambda: now[0], lambda: now[0])
        cid.renew()
        assert claimed(cid) is None
        assert not cid.interrupt_orphans()
        ann.renew()
        assert claimed(ann) == parcels(turn)
        cid.close()

    def test_a_holder_from_before_the_machine_was_restarted_holds_nothing(self, now, ann, bob):
        turn = begun(ann)
        claimed(ann)
        now[0] -= 3600
        bob.renew()
        assert list(bob.outbox.unheld(10)) == ["c"]
        with pytest.raises(StoreUnavailable):
            ann.outbox.claim(["c"])
        begun(bob)
        assert not wishes(ann)
        assert not claimed(bob), "ann is given the time to renew"
        for _ in range(2):
            now[0] += LEASE / 2 + 0.1
            bob.renew()
        assert next(parcel.turn_id for parcel in claimed(bob)) == turn.id

    def test_nothing_stays_of_what_is_delivered_or_expired(self, path, now, ann):
        delivered, parked = ended(ann), ended(ann, "parked")
        ended(ann, "expired")
        ann.outbox.claim(["c", "parked"])
        ann.outbox.confirm([whole(delivered)])
        ann.outbox.park("parked", "refused")
        ann.outbox.release(["c"])
        ended(ann, "parked")
        now[0] += RETAIN_UNDELIVERED
        assert len(ann.outbox.expire()) == 3
        assert ann.purge() == 1
        assert ann.find(parked.id) is None
        with closing(sqlite3.connect(path)) as connection:
            for table in ("turns", "batches", "wishes", "holders"):
                assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)  # noqa: S608

    def test_nothing_stays_of_what_arrived_before_it_was_given_up_and_was_noted_after_it(self, path, now, ann):
        turn = ended(ann)
        claimed(ann)
        ann.outbox.release(["c"])
        ann.outbox.confirm([whole(turn)])
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT count(*) FROM holders").fetchone() == (0,)

    def test_nothing_stays_of_workers_that_died_long_ago(self, path, now, ann, bob):
        claimed(ann)
        claimed(ann, "empty")
        begun(bob)
        now[0] += LEASE + DEAD_WORKER + RENEW_INTERVAL
        bob.renew()
        bob.purge()
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT id FROM workers").fetchall() == [("bob",)]
            assert connection.execute("SELECT * FROM holders").fetchall() == [("c", "")]
            assert connection.execute("SELECT * FROM wishes").fetchall() == []
        assert list(bob.outbox.unheld(10)) == ["c"]

    def test_closing_leaves_nothing_but_what_waits(self, path, now, bob):
        ann = SqliteJournal(path, "ann", RETAIN, RETAIN_UNDELIVERED, lambda: now[0], lambda: now[0])
        ann.renew()
        ann.outbox.claim(["c", "empty"])
        begun(bob)
        ann.close()
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("SELECT id FROM workers").fetchall() == [("bob",)]
            assert connection.execute("SELECT * FROM holders").fetchall() == [("c", "")]
            assert connection.execute("SELECT * FROM wishes").fetchall() == []


class TestRedis:
    @pytest.fixture
    def server(self, redis_server):
        redis_server.client.flushall()
        return redis_server

    @pytest.fixture
    def journal(self, server):
        journal = RedisJournal(server.url, "short", retain=0.2, retain_undelivered=0.4)
        journal.renew()
        return journal

    def test_nothing_stays_of_what_is_delivered_or_expired(self, server, journal):
        delivered, expired, parked = ended(journal), ended(journal, "expired"), ended(journal, "parked")
        journal.begin(entry("keyed", mirrored=True), "key")
        keyed = journal.turns_of("keyed", "alice", 1)[0]
        journal.append([batch(keyed, 1, 2, Done(3, "complete"))])
        journal.outbox.claim(["c", "parked", "empty", "keyed"])
        journal.outbox.confirm([whole(delivered), whole(keyed)])
        journal.outbox.park("parked", "refused")
        told = []
        until(lambda: told.extend(journal.outbox.expire()) or len(told) == 2, "the end of retention")
        assert {delivery.turn_id for delivery in told} == {expired.id, parked.id}
        until(lambda: journal.find(keyed.id) is journal.find(delivered.id) is None, "the end of retention")
        for name in ("c", "expired", "parked", "keyed"):
            assert journal.turns_of(name, "alice", 10) == []
        journal.close()
        assert server.client.dbsize() == 0

    def test_nothing_is_lost_before_it_was_told(self, server, journal):
        turn = ended(journal)
        lasting = {key.removeprefix("{relay}:") for key in server.client.scan_iter() if server.client.pttl(key) == -1}
        assert lasting == {f"turn:{turn.id}", f"events:{turn.id}", "queue:c", "outbox", "unheld", "workers"}
        journal.close()

    def test_a_worker_is_noted_for_what_it_holds_and_no_more(self, server):
        store = RedisStore(server)
        ann, bob = store.worker("ann"), store.worker("bob")
        begun(ann, "parked")
        ann.outbox.claim(["taken", "parked", "released", "kept"])
        ann.outbox.park("parked", "refused")
        ann.outbox.release(["released"])
        store.outlive_lease(bob)
        bob.outbox.claim(["taken"])
        ann.renew()
        assert server.client.smembers("{relay}:held:ann") == {"kept"}
        assert server.client.hgetall("{relay}:holders") == {"kept": "ann", "taken": "bob"}
        store.close()
        assert not server.client.exists("{relay}:held:ann", "{relay}:held:bob", "{relay}:holders", "{relay}:holding")

    def test_who_looks_for_the_unheld_cleans_up_after_the_dead(self, server):
        store = RedisStore(server)
        ann, bob = store.worker("ann"), store.worker("bob")
        begun(bob)
        ann.outbox.claim(["c", *(f"empty-{n}" for n in range(700))])
        store.outlive_lease(bob)
        for _ in range(2):
            bob.outbox.unheld(10)
        assert not server.client.exists("{relay}:holders", "{relay}:holding", "{relay}:held:ann")
        assert server.client.smembers("{relay}:unheld") == {"c"}
        store.close()
