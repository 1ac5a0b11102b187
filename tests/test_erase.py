"""A conversation is erased: the journal's contract, held by each engine, and real servers."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from server.access.keys import make_key
from server.journal.outbox import Parcel
from server.journal.sqlite import SqliteJournal
from server.journal.sqlite_file import PURGE_LIMIT
from server.sse import Done, Token

from .conftest import until
from .provider import Provider
from .stores import RETAIN, RedisStore, SqliteStore, batch, entry
from .visitor import SSE, Visitor, path_of

ANN, BOB = make_key("ann"), make_key("bob")
MANY = PURGE_LIMIT + 20  # turns, more than one step of any engine erases


def begun(journal, key=None, **fields):
    return journal.begin(entry(**{"mirrored": True} | fields), key).entry


def ended(journal, key=None, **fields):
    turn = begun(journal, key, **fields)
    journal.append([batch(turn, 1, 2, Done(3, "complete"))])
    return turn


class TestErase:
    def test_nothing_is_left_of_what_has_ended(self, ann, bob):
        turns = [ended(ann), ended(bob, mirrored=False)]
        assert not bob.erase("c", "alice")
        for journal in (ann, bob):
            assert [journal.find(turn.id) for turn in turns] == [None, None]
            assert [journal.read(turn.id, 0, 10) for turn in turns] == [[], []]
            assert journal.turns_of("c", "alice", 10) == []
            assert journal.outbox.undelivered(10) == []
            assert not journal.outbox.unheld(10)
            assert journal.outbox.find(turns[0].id) is None

    def test_what_runs_stays_and_is_named(self, ann, bob):
        running, over = begun(ann), ended(ann)
        assert list(bob.erase("c", "alice")) == [running.id]
        assert bob.find(over.id) is None
        assert bob.find(running.id) == running
        assert [delivery.turn_id for delivery in bob.outbox.undelivered(10)] == [running.id]
        ann.append([batch(running, 1, 1, Done(2, "cancelled"))])
        assert not bob.erase("c", "alice")
        assert bob.find(running.id) is None

    def test_what_is_another_callers_or_of_another_conversation_stays(self, ann):
        turns = [ended(ann, caller="bob"), ended(ann, conversation="d"), ended(ann, conversation=None)]
        ended(ann)
        assert not ann.erase("c", "alice")
        assert [ann.find(turn.id).id for turn in turns] == [turn.id for turn in turns]
        assert {delivery.turn_id for delivery in ann.outbox.undelivered(10)} == {turn.id for turn in turns[:2]}
        assert set(ann.outbox.unheld(10)) == {"c", "d"}
        assert [parcel.turn_id for parcel in ann.outbox.claim(["c"])["c"]] == [turns[0].id]

    def test_a_key_is_free_again(self, ann):
        first = ended(ann, "key")
        ann.erase("c", "alice")
        assert ann.begin(entry(), "key").entry.id != first.id

    def test_a_key_that_began_another_turn_since_is_kept(self, store, ann):
        ended(ann, "key", mirrored=False)
        store.live_on(RETAIN + 1, ann)
        ann.purge()
        second = begun(ann, "key", conversation="d")
        ended(ann)
        ann.erase("c", "alice")
        assert ann.begin(entry(), "key").entry.id == second.id

    def test_where_there_is_nothing_nothing_happens(self, ann):
        assert not ann.erase("nothing", "alice")
        ended(ann)
        assert not ann.erase("c", "nobody")
        assert ann.turns_of("c", "alice", 10)

    def test_it_may_be_repeated(self, ann, bob):
        ended(ann)
        for journal in (ann, bob, ann):
            assert not journal.erase("c", "alice")

    def test_what_was_delivered_or_is_parked_goes_as_well(self, ann):
        first, second = ended(ann), ended(ann)
        ann.outbox.claim(["c"])
        ann.outbox.park("c", "no communication")
        assert not ann.erase("c", "alice")
        assert ann.find(first.id) is ann.find(second.id) is None
        assert ann.outbox.undelivered(10) == []
        assert not ann.outbox.retry()

    def test_what_another_caller_has_parked_stays_parked(self, ann):
        mine, other = ended(ann), ended(ann, caller="bob")
        ann.outbox.claim(["c"])
        ann.outbox.park("c", "no communication")
        assert not ann.erase("c", "alice")
        assert not ann.outbox.unheld(10)
        assert list(ann.outbox.retry()) == [other.id]
        assert ann.find(mine.id) is None
        assert set(ann.outbox.unheld(10)) == {"c"}

    @pytest.mark.parametrize("place", ["here", "elsewhere"])
    def test_the_holder_is_told_and_gets_what_is_left(self, ann, bob, place):
        ended(ann)
        left = ended(ann, caller="bob")
        ann.outbox.claim(["c"])
        (ann if place == "here" else bob).erase("c", "alice")
        assert list(ann.news({}, 1).wishes) == [("c", "deliver")]
        assert ann.outbox.claim(["c"]) == {"c": [Parcel(left.id, 0)]}

    def test_nobody_is_told_of_what_was_not_in_the_outbox(self, ann):
        ended(ann, mirrored=False)
        begun(ann, caller="bob")
        ann.outbox.claim(["c"])
        ann.erase("c", "alice")
        assert not ann.news({}, 0).wishes

    def test_many_turns_go_in_one_call(self, ann):
        turns = [ended(ann, began=float(n)) for n in range(MANY)]
        left = ended(ann, caller="bob", began=0.5)
        assert not ann.erase("c", "alice")
        assert not any(ann.find(turn.id) for turn in turns)
        assert ann.turns_of("c", "bob", 10) == [ann.find(left.id)]

    def test_late_events_and_receipts_of_an_erased_turn_are_dropped(self, ann):
        turn = ended(ann)
        ann.outbox.claim(["c"])
        ann.erase("c", "alice")
        assert not ann.append([batch(turn, 1, 2, Done(3, "complete"))])
        assert ann.read(turn.id, 0, 10) == []
        assert ann.outbox.claim(["c"]) == {"c": []}

    def test_names_may_hold_any_character(self, ann):
        turn = ended(ann, conversation="a:b/ü*", caller="x:y")
        assert not ann.erase("a:b/ü*", "x")
        assert ann.find(turn.id)
        ann.erase("a:b/ü*", "x:y")
        assert ann.find(turn.id) is None


def test_in_redis_nothing_is_left_but_who_holds_the_conversation(redis_server):
    store = RedisStore(redis_server)
    ann = store.worker("ann")
    before = set(redis_server.client.keys())
    turn = ended(ann, "key")
    ended(ann, caller="bob", conversation="other")
    ann.erase("c", "alice")
    ann.erase("other", "bob")
    assert set(redis_server.client.keys()) - before == {"{relay}:workers"}
    assert ann.find(turn.id) is None
    store.close()


def test_in_redis_what_outlived_the_conversations_list_is_erased(redis_server):
    """Text that could not be delivered for days."""
    store = RedisStore(redis_server)
    ann = store.worker("ann")
    turn = ended(ann)
    redis_server.client.delete("{relay}:conversation:c")
    assert not ann.erase("c", "alice")
    assert ann.find(turn.id) is None
    assert ann.outbox.undelivered(10) == []
    store.close()


def test_in_sqlite_the_file_holds_nothing_of_it():
    store = SqliteStore()
    ann = store.worker("ann")
    turn = begun(ann)
    words = [Token(n, f"secret-word-{n} " * 200) for n in range(1, 40)]
    ann.append([batch(turn, 1, 0)._replace(events=[*words, Done(40, "complete")])])
    files = list(store._folder.iterdir())
    assert any(b"secret-word" in file.read_bytes() for file in files)
    ann.erase("c", "alice")
    for file in store._folder.iterdir():
        assert b"secret-word" not in file.read_bytes(), file
        assert turn.id.encode() not in file.read_bytes(), file
    store.close()


# Real servers.


@pytest.fixture
def pair(start_relay, shared_store):
    """Two servers that share a store."""
    keys = {"ACCESS": "keys", "RELAY_API_KEYS": f"{ANN.entry},{BOB.entry}", "DISCONNECT_GRACE": "-1"}
    return [start_relay(STORE_URL=shared_store, **keys) for _ in range(2)]


def erase(visitor, conversation):
    return visitor.delete(f"/conversations/{conversation}")


def test_what_has_ended_is_gone_everywhere(pair, sandbox, prompt, conversation):
    here, there = (Visitor(relay, ANN.key) for relay in pair)
    sandbox.script(prompt, ["one ", "two"])
    stream = here.begin(prompt, conversation)
    assert '"status":"complete"' in here.get(stream["url"], SSE).text
    answer = erase(there, conversation)
    assert (answer.status_code, answer.content) == (204, b"")
    for visitor in (here, there):
        assert visitor.get(path_of(stream)).status_code == 404
        assert visitor.get(stream["url"], SSE).status_code == 404, "the ticket leads nowhere"
        assert visitor.list(conversation).json() == {"streams": []}
    assert erase(here, conversation).status_code == 204, "also where there is nothing"


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_what_runs_is_cancelled_first_wherever_it_runs(pair, sandbox, prompt, conversation, place):
    here, there = (Visitor(relay, ANN.key) for relay in pair)
    sandbox.script(prompt, ["one ", "two ", "three"], gate=True)
    streams = [here.begin(prompt, conversation) for _ in range(3)]
    readers = [there.get(stream["url"], SSE, stream=True) for stream in streams]
    began = time.monotonic()
    assert erase(here if place == "here" else there, conversation).status_code == 204
    assert time.monotonic() - began < 5
    for reader, stream in zip(readers, streams, strict=True):
        text = b"".join(reader.iter_content(None)).decode()
        assert "three" not in text, "the stream has ended before the answer"
        for visitor in (here, there):
            assert visitor.get(path_of(stream), SSE).status_code == 404
    assert until(lambda: requests.get(f"{pair[0].url}/healthz", timeout=5).json()["turns"] == 0)


def test_the_turns_of_a_worker_that_was_killed_are_erased_within_the_request(pair, sandbox, prompt, conversation):
    here, there = (Visitor(relay, ANN.key) for relay in pair)
    sandbox.script(prompt, ["one ", "two"], gate=True)
    stream = here.begin(prompt, conversation)
    (worker,) = pair[0].workers
    pair[0].process.process.kill()
    os.kill(worker, signal.SIGKILL)
    assert erase(there, conversation).status_code == 204
    assert there.get(path_of(stream)).status_code == 404


def test_who_erases_what_does_not_end_is_told_to_come_back(start_relay, tmp_path, conversation):
    relay = start_relay(STORE_URL=f"sqlite:///{tmp_path}/shared.db")
    other = SqliteJournal(tmp_path / "shared.db", "hears nothing", RETAIN, RETAIN)
    other.renew()
    over, running = (
        ended(other, caller="", conversation=conversation),
        begun(other, caller="", conversation=conversation),
    )
    with ThreadPoolExecutor() as pool:
        request = pool.submit(erase, Visitor(relay), conversation)
        while not request.done():
            assert other.renew()
            time.sleep(0.3)
    answer = request.result()
    assert (answer.status_code, answer.json()["code"]) == (503, "conversation_busy")
    assert int(answer.headers["Retry-After"]) > 0
    assert other.find(over.id) is None
    other.append([batch(running, 1, 1, Done(2, "complete"))])
    assert erase(Visitor(relay), conversation).status_code == 204
    assert other.find(running.id) is None
    other.close()


def test_each_erases_what_is_its_own(pair, sandbox, prompt, conversation):
    ann, bob = Visitor(pair[0], ANN.key), Visitor(pair[1], BOB.key)
    sandbox.script(prompt, ["one"])
    mine, other = ann.begin(prompt, conversation), bob.begin(prompt, conversation)
    until(lambda: bob.get(path_of(other)).json()["status"] == "complete", "the end")
    assert erase(ann, conversation).status_code == 204
    assert ann.get(path_of(mine)).status_code == 404
    assert bob.get(path_of(other)).json()["text"] == "one"
    assert [stream["id"] for stream in bob.list(conversation).json()["streams"]] == [other["id"]]


def test_nobody_erases_without_a_key_or_with_a_token_for_another_conversation(start_relay):
    provider = Provider()
    provider.add("k-1")
    try:
        relay = start_relay(**provider.settings)
        assert erase(Visitor(relay), "shop-1").status_code == 401
        visitor = Visitor(relay, provider.token(conversations=["shop-*"]))
        assert erase(visitor, "shop-1").status_code == 204
        refused = erase(visitor, "bank-1")
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    finally:
        provider.close()


def test_the_transcript_gets_no_more_of_it_and_that_is_no_error(pair, sandbox, prompt, conversation):
    """One server runs the turn, the other may hold the conversation: each is asked."""
    here, there = (Visitor(relay, ANN.key) for relay in pair)
    sandbox.script(prompt, [f"word{n} " for n in range(600)], interval_ms=10)
    here.begin(f"{prompt} first", conversation)
    there.begin(f"{prompt} second", conversation)
    until(lambda: "word5 " in sandbox.text_of(conversation), "some text in the transcript")
    assert erase(there, conversation).status_code == 204
    time.sleep(0.5)  # what the holder had taken already
    before = sandbox.text_of(conversation)
    time.sleep(1)
    assert sandbox.text_of(conversation) == before
    assert "word599" not in before
    for relay in pair:
        assert not [line for line in relay.log if line["level"] == "ERROR"]
    sandbox.script(f"{prompt} third", ["a later answer"])
    here.begin(f"{prompt} third", conversation)
    until(lambda: "a later answer" in sandbox.text_of(conversation), "the conversation goes on")


def test_while_text_cannot_be_delivered_it_is_erased_and_never_sent(pair, sandbox, prompt, conversation):
    here, there = (Visitor(relay, ANN.key) for relay in pair)
    sandbox.fault("transcript", "refused_503", calls=1000)
    sandbox.script(prompt, ["never to be read"])
    stream = here.begin(prompt, conversation)
    until(lambda: here.get(path_of(stream)).json()["status"] == "complete", "the end")
    assert erase(there, conversation).status_code == 204
    dropped = "no more of the turn is wanted"
    until(lambda: any(dropped in line["message"] for relay in pair for line in relay.log), "its holder knows")
    sandbox.forget_faults()
    sandbox.script(f"{prompt} later", ["a later answer"])
    there.begin(f"{prompt} later", conversation)
    until(lambda: "a later answer" in sandbox.text_of(conversation), "the conversation goes on")
    assert sandbox.text_of(conversation) == "a later answer"


def test_with_open_access_a_conversation_is_everyones(relay, sandbox, prompt, conversation):
    sandbox.script(prompt, ["one"])
    stream = relay.begin(prompt, f"{conversation}/with a slash")
    relay.follow(stream).finish()
    assert erase(Visitor(relay), f"{conversation}/with%20a%20slash").status_code == 204
    assert Visitor(relay).get(f"/streams/{stream}").status_code == 404
    assert Visitor(relay).list(f"{conversation}/with a slash").json() == {"streams": []}


def test_a_store_that_is_out_of_reach_is_told(start_relay, start_redis, conversation):
    server = start_redis()
    relay = start_relay(STORE_URL=server.url)
    server.stop()
    answer = erase(Visitor(relay), conversation)
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert int(answer.headers["Retry-After"]) > 0
