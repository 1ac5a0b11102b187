"""What only the Redis engine can meet: a server that is gone, full, read-only, restarted, or has lost something."""

import signal
import socket
import time
from contextlib import contextmanager

import pytest
import redis

from server.errors import StoreUnavailable
from server.journal import AHEAD, LEASE, RENEW_INTERVAL, closing
from server.journal.outbox import Delivery, Parcel, Receipt
from server.journal.redis import RedisJournal
from server.sse import Done

from .conftest import until
from .stores import RETAIN, RETAIN_UNDELIVERED, STRETCH, RedisServer, RedisStore, batch, entry, tokens


@pytest.fixture
def server():
    server = RedisServer("--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.remove()


@pytest.fixture
def store(server):
    store = RedisStore(server)
    yield store
    store.close()


def calls(journal, turn):
    """Each call of the protocol that needs the store."""
    return [
        lambda: journal.begin(entry(), None),
        lambda: journal.begin(entry(), "key"),
        lambda: journal.append([batch(turn, 1, 2)]),
        lambda: journal.read(turn.id, 0, 10),
        lambda: journal.find(turn.id),
        lambda: journal.turns_of("c", "alice", 10),
        lambda: journal.news({turn.id: 0}, 1),
        journal.wake,
        lambda: journal.ask([turn.id], "cancel"),
        journal.renew,
        journal.interrupt_orphans,
        lambda: journal.outbox.claim(["c"]),
        lambda: journal.outbox.release(["c"]),
        lambda: journal.outbox.unheld(10),
        lambda: journal.outbox.confirm([Receipt(turn.id, 1, False)]),
        lambda: journal.outbox.park("c", "refused"),
        journal.outbox.retry,
        lambda: journal.outbox.find(turn.id),
        lambda: journal.outbox.undelivered(10),
        journal.outbox.expire,
    ]


def test_a_server_that_is_gone_is_told_by_every_call_and_forgotten_when_it_is_back(server, ann):
    turn = ann.begin(entry(), None).entry
    ann.append([batch(turn, 1, 2)])
    server.stop()
    for call in calls(ann, turn):
        began = time.monotonic()
        with pytest.raises(StoreUnavailable) as raised:
            call()
        assert raised.value.detail == "ConnectionError"
        assert time.monotonic() - began < 1, "nobody waits for a server that refuses"
    server.start()
    assert not ann.append([batch(turn, 1, 4)])
    assert ann.read(turn.id, 0, 10) == tokens(1, 4)
    for call in calls(ann, turn):
        call()


def test_who_waits_for_news_hears_that_the_server_is_gone(server, store, ann):
    waiting = store.later(ann.news, {}, 30)
    store.pause(0.1)
    server.stop()
    with pytest.raises(StoreUnavailable):
        waiting.get(3)
    server.start()
    turn = ann.begin(entry(), None).entry
    ann.append([batch(turn, 1, 2)])
    assert ann.news({turn.id: 0}, 1).events == {turn.id: tokens(1, 2)}


def test_a_server_that_lost_everything_drops_what_it_does_not_know(server, ann):
    turn = ann.begin(entry(), None).entry
    ann.append([batch(turn, 1, 2)])
    server.client.flushall()
    server.client.script_flush()
    assert not ann.append([batch(turn, 3, 4)])
    assert ann.find(turn.id) is None
    assert not ann.renew()
    again = ann.begin(entry(), "key").entry
    assert not ann.append([batch(again, 1, 1)])


def test_a_turn_of_which_the_server_lost_the_middle_ends_interrupted(server, ann, bob):
    """A failover to a replica that lagged behind: nobody may be led over the hole."""
    turn = ann.begin(entry(), "key").entry
    ann.append([batch(turn, 1, 4)])
    ann.append([batch(turn, 5, 8)])
    server.client.xdel(f"{{relay}}:events:{turn.id}", "8-0")
    server.client.hset(f"{{relay}}:turn:{turn.id}", mapping={"last_id": 4, "reach": 4 + AHEAD})
    assert list(ann.append([batch(turn, 9, 12)])) == [turn.id]
    assert bob.read(turn.id, 0, 100) == [*tokens(1, 4), *closing(12 + AHEAD)]
    assert list(ann.append([batch(turn, 13, 14, Done(15, "complete"))])) == [turn.id]
    assert bob.find(turn.id).status == "interrupted"
    assert not bob.ask([turn.id], "cancel")


def test_a_full_server_refuses_and_loses_nothing(server, ann, bob):
    turn = ann.begin(entry(), None).entry
    ann.append([batch(turn, 1, 2)])
    server.client.config_set("maxmemory", 1)
    for call in (
        lambda: ann.begin(entry(), "key"),
        lambda: ann.append([batch(turn, 3, 4)]),
        lambda: bob.ask([turn.id], "cancel"),
    ):
        with pytest.raises(StoreUnavailable) as raised:
            call()
        assert raised.value.detail == "OutOfMemoryError"
    assert ann.read(turn.id, 0, 10) == tokens(1, 2), "what is there can be read"
    server.client.config_set("maxmemory", 0)
    assert ann.find(turn.id) == turn._replace(last_id=2, reach=2 + AHEAD)
    assert ann.turns_of("c", "alice", 10) == [ann.find(turn.id)]
    assert not ann.append([batch(turn, 3, 4)])


def test_a_full_server_still_takes_what_makes_room(server, store, ann, bob):
    turn = ann.begin(entry(mirrored=True), None).entry
    more = ann.begin(entry("more", mirrored=True), None).entry
    ann.append([batch(turn, 1, 2, Done(3, "complete")), batch(more, 1, 2, Done(3, "complete"))])
    bob.outbox.claim(["c"])
    server.client.config_set("maxmemory", 1)
    for call in (
        lambda: ann.begin(entry(mirrored=True), None),
        lambda: ann.outbox.claim(["more"]),
        lambda: bob.outbox.confirm([Receipt(turn.id, 2, False)]),
        lambda: bob.outbox.park("c", "refused"),
    ):
        with pytest.raises(StoreUnavailable):
            call()
    assert not bob.news({}, 0).wishes
    assert list(bob.outbox.unheld(10)) == ["more"]
    assert [delivery.cursor for delivery in bob.outbox.undelivered(10)] == [0, 0]
    assert not bob.outbox.confirm([Receipt(turn.id, 3, True)])
    assert bob.outbox.find(turn.id) == Delivery(turn.id, "c", "delivered", 3, None)
    store.forward(RETAIN_UNDELIVERED + RENEW_INTERVAL)
    assert ann.outbox.expire() == [Delivery(more.id, "more", "pending", 0, None)]
    assert not server.client.exists(f"{{relay}}:turn:{more.id}", f"{{relay}}:events:{more.id}")
    server.client.config_set("maxmemory", 0)


def test_a_primary_that_became_a_replica_is_left(server, ann):
    turn = ann.begin(entry(), None).entry
    server.client.replicaof("127.0.0.1", 1)
    with pytest.raises(StoreUnavailable) as raised:
        ann.append([batch(turn, 1, 2)])
    assert raised.value.detail == "ReadOnlyError"
    before = {client["id"] for client in server.client.client_list()}
    server.client.replicaof("NO", "ONE")
    assert not ann.append([batch(turn, 1, 2)])
    assert {client["id"] for client in server.client.client_list()} - before, "by a new connection, that finds the new"


def test_a_server_that_hangs_is_given_up(server, ann):
    ann.renew()
    began = time.monotonic()
    server.process.send_signal(signal.SIGSTOP)
    with pytest.raises(StoreUnavailable) as raised:
        ann.renew()
    assert raised.value.detail == "TimeoutError"
    assert time.monotonic() - began < LEASE
    server.process.send_signal(signal.SIGCONT)


@contextmanager
def replies_lost(journal):
    """Redis does what it is asked, and nobody hears of it."""

    def call(*arguments):
        real(*arguments)
        raise StoreUnavailable

    real, journal._client.call = journal._client.call, call
    with pytest.raises(StoreUnavailable):
        yield
    journal._client.call = real


def test_a_beginning_whose_reply_was_lost_is_undone(server, ann, bob):
    """Nobody would ever write that turn, and its key would lead to it."""
    ann.begin(entry(conversation="before"), None)
    lost = entry(mirrored=True)
    with replies_lost(ann):
        ann.begin(lost, "key")
    assert ann.find(lost.id).running
    assert ann.renew()
    assert ann.find(lost.id).status == "interrupted", "for whoever has been led to it meanwhile"
    assert ann.turns_of("c", "alice", 10) == []
    assert ann.outbox.find(lost.id) is None
    assert not ann.outbox.undelivered(10)
    assert not ann.outbox.unheld(10)
    assert ann.outbox.claim(["c"]) == {"c": []}
    assert 0 < server.client.pttl(f"{{relay}}:turn:{lost.id}") <= RETAIN * STRETCH * 1000
    turn = entry()
    assert bob.begin(turn, "key").entry == turn


def test_what_waited_before_a_beginning_that_is_undone_still_waits(ann):
    earlier = ann.begin(entry(mirrored=True), None).entry
    with replies_lost(ann):
        ann.begin(entry(mirrored=True), None)
    assert len(ann.outbox.undelivered(10)) == 2
    ann.renew()
    assert list(ann.outbox.unheld(10)) == ["c"]
    assert ann.outbox.claim(["c"]) == {"c": [Parcel(earlier.id, 0)]}


def test_a_beginning_that_redis_comes_to_too_late_is_none(server, ann, bob):
    """Its caller was told to ask again, and is led by the key to no turn that nobody writes."""
    server.process.send_signal(signal.SIGSTOP)
    late, again = entry(mirrored=True), entry(mirrored=True)
    with pytest.raises(StoreUnavailable):
        ann.begin(late, "key")
    server.process.send_signal(signal.SIGCONT)
    assert bob.begin(again, "key").entry == again
    assert ann.renew()
    assert bob.find(again.id).running
    assert bob.find(late.id) is None


def test_a_beginning_that_is_repeated_is_one_turn(ann):
    turn = entry(mirrored=True)
    ann.begin(turn, "key")
    assert ann.begin(turn, "key").entry == ann.begin(turn, None).entry == turn
    assert ann.outbox.claim(["c"]) == {"c": [Parcel(turn.id, 0)]}
    ann.append([batch(turn, 1, 1)])
    assert ann.begin(turn, None).entry == turn._replace(last_id=1, reach=1 + AHEAD)


def test_leases_end_in_real_time(server):
    ann, bob = RedisJournal(server.url, "ann", RETAIN, RETAIN), RedisJournal(server.url, "bob", RETAIN, RETAIN)
    turn = bob.begin(entry(), None).entry
    ann.renew()
    bob.renew()
    began = time.monotonic()
    while not (ended := ann.interrupt_orphans()):
        ann.renew()
        time.sleep(0.05)
    assert ended == [turn.id]
    assert LEASE - 0.1 < time.monotonic() - began < LEASE + RENEW_INTERVAL
    assert not bob.renew()
    ann.close()
    bob.close()


def test_what_was_asked_before_redis_hung_ends_nothing_of_the_living(server):
    """Redis does it when it goes on, and finds that no lease holds."""
    ann, bob = RedisJournal(server.url, "ann", RETAIN, RETAIN), RedisJournal(server.url, "bob", RETAIN, RETAIN)
    turn = bob.begin(entry(mirrored=True), None).entry
    ann.renew()
    bob.renew()
    bob.outbox.claim(["c"])
    server.client.set("{relay}:worker:ann", 0, keepttl=True)  # unbroken for very long
    server.process.send_signal(signal.SIGSTOP)
    hung = time.monotonic()
    for ask in (ann.interrupt_orphans, lambda: ann.outbox.unheld(10), lambda: ann.outbox.claim(["c"])):
        with pytest.raises(StoreUnavailable):
            ask()
    time.sleep(max(0.0, hung + LEASE + RENEW_INTERVAL - time.monotonic()))
    server.process.send_signal(signal.SIGCONT)
    assert not ann.renew()
    assert not ann.interrupt_orphans()
    assert not ann.outbox.unheld(10)
    assert not ann.outbox.claim(["c"])
    assert not bob.renew()
    assert bob.find(turn.id).running
    assert bob.outbox.claim(["c"]) == {"c": [Parcel(turn.id, 0)]}
    ann.close()
    bob.close()


def test_a_lease_that_was_taken_anew_is_told_although_the_reply_was_lost(server, ann):
    server.client.delete("{relay}:worker:ann")
    with replies_lost(ann):
        ann.renew()
    assert not ann.renew()
    assert ann.renew()


def test_turns_are_forgotten_in_real_time_and_leave_nothing_behind(server):
    journal = RedisJournal(server.url, "short", retain=0.3, retain_undelivered=0)
    journal.renew()
    turn = journal.begin(entry(), "key").entry
    journal.append([batch(turn, 1, 2, Done(3, "complete"))])
    assert journal.find(turn.id)
    until(lambda: journal.find(turn.id) is None, "the end of retention")
    assert journal.turns_of("c", "alice", 10) == []
    journal.close()
    assert server.client.keys() == []


def test_a_cluster_takes_all_scripts():
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = "--port", str(one.getsockname()[1]), "--cluster-port", str(other.getsockname()[1])
    server = RedisServer("--cluster-enabled", "yes", "--bind", "127.0.0.1", *ports)
    try:
        server.client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        until(lambda: "ok" in server.client.execute_command("CLUSTER INFO").values())
        store = RedisStore(server)
        ann, bob = store.worker("ann"), store.worker("bob")
        turn = ann.begin(entry(mirrored=True), "key").entry
        assert bob.begin(entry(), "key").entry == turn
        assert not ann.append([batch(turn, 1, 2)])
        assert list(bob.ask([turn.id], "cancel")) == [turn.id]
        assert list(ann.news({turn.id: 1}, 1)) == [{turn.id: tokens(2, 2)}, [(turn.id, "cancel")]]
        store.outlive_lease(bob)
        assert list(bob.interrupt_orphans()) == [turn.id]
        assert [found.status for found in bob.turns_of("c", "alice", 10)] == ["interrupted"]
        assert list(bob.outbox.unheld(10)) == ["c"]
        assert bob.outbox.claim(["c"]) == {"c": [Parcel(turn.id, 0)]}
        assert list(bob.outbox.park("c", "refused")) == list(bob.outbox.retry()) == [turn.id]
        bob.outbox.claim(["c"])
        bob.outbox.release(["c"])
        bob.outbox.claim(["c"])
        assert not bob.outbox.confirm([Receipt(turn.id, 2, False)])
        assert bob.outbox.find(turn.id) == Delivery(turn.id, "c", "pending", 2, None)
        store.live_on(RETAIN_UNDELIVERED + RENEW_INTERVAL, bob)
        assert bob.outbox.undelivered(10) == bob.outbox.expire() == [Delivery(turn.id, "c", "pending", 2, None)]
        store.close()
    finally:
        server.remove()


def test_all_keys_lie_in_one_slot_and_none_that_stays_for_ever_belongs_to_an_ended_turn(server, ann, bob):
    other = ann.begin(entry("other", mirrored=True), None).entry
    bob.outbox.claim(["other"])
    bob.outbox.park("other", "refused")
    bob.outbox.retry("other")
    bob.outbox.claim(["other"])
    turn = ann.begin(entry(), "key").entry
    bob.ask([turn.id], "watch")
    running = set(server.client.keys())
    bob.outbox.confirm([Receipt(other.id, 3, True)])
    bob.outbox.release(["other"])
    bob.close()
    ann.append([batch(turn, 1, 2, Done(3, "complete")), batch(other, 1, 2, Done(3, "complete"))])
    keys = set(server.client.keys())
    assert {redis.cluster.key_slot(key.encode()) for key in keys | running} == {redis.cluster.key_slot(b"{relay}")}
    assert {key for key in keys if server.client.pttl(key) < 0} == {"{relay}:workers"}
    assert server.client.pttl(f"{{relay}}:turn:{turn.id}") <= RETAIN * STRETCH * 1000


def test_user_password_and_database_of_the_url_are_honoured(server, ann):
    server.client.acl_setuser("relay", enabled=True, passwords=["+hunter2"], keys=["{relay}:*"], categories=["+@all"])
    journal = RedisJournal(
        server.url.replace("unix://", "unix://relay@") + "?password=hunter2&db=3", "own", RETAIN, RETAIN
    )
    turn = entry()
    assert journal.begin(turn, None).entry == turn
    assert ann.find(turn.id) is None, "it is in another database"
    journal.close()
    for wrong in ("?password=wrong", "?db=99"):
        journal = RedisJournal(server.url.replace("unix://", "unix://relay@") + wrong, "own", RETAIN, RETAIN)
        with pytest.raises(StoreUnavailable) as raised:
            journal.renew()
        assert raised.value.detail in {"AuthenticationError", "ResponseError"}


def test_who_finds_all_connections_busy_waits(server, store, ann):
    server.client.config_set("maxclients", 40)
    turn = ann.begin(entry(), None).entry
    ann.append([batch(turn, 1, 2)])
    readers = [store.later(ann.read, turn.id, 0, 10) for _ in range(100)]
    assert all(reader.get(10) == tokens(1, 2) for reader in readers)


def test_what_another_hand_deleted_stops_nobody(server, store, ann, bob):
    gone, turn = (ann.begin(entry(mirrored=True), None).entry for _ in range(2))
    server.client.delete(f"{{relay}}:turn:{gone.id}")
    assert [delivery.turn_id for delivery in bob.outbox.undelivered(10)] == [turn.id]
    assert bob.outbox.claim(["c"]) == {"c": [Parcel(turn.id, 0)]}
    assert not bob.outbox.confirm([Receipt(gone.id, 1, True)])
    assert server.client.zrange("{relay}:outbox", 0, -1) == [turn.id]
    store.outlive_lease(bob)
    assert list(bob.interrupt_orphans()) == [turn.id]
    assert server.client.smembers("{relay}:workers") == set()
    assert bob.turns_of("c", "alice", 10) == [bob.find(turn.id)]
    assert server.client.zrange("{relay}:conversation:5:alice:c", 0, -1) == [turn.id], (
        "the list was cleaned as it was read"
    )
