"""Streams that can be left and taken up again: begin, follow, look at, list, cancel; here and on another worker.

Two workers are two gunicorns with one store: which of them answers is then the test's choice.
"""

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
import requests

from .conftest import until

TOKENS = [f"t{i} " for i in range(12)]
TEXT = "".join(TOKENS)


@pytest.fixture
def pair(shared_store, start_relay):
    """Two workers with one store."""
    shared = {"STORE_URL": shared_store, "DISCONNECT_GRACE": "5", "GATEWAY_IDLE_TIMEOUT": "30"}
    return start_relay(**shared), start_relay(**shared)


def test_a_stream_is_begun_and_followed(relay, sandbox, prompt):
    sandbox.script(prompt, TOKENS, interval_ms=5)
    result = relay.follow(relay.begin(prompt)).finish()
    assert result.tokens == TOKENS
    assert result.done["status"] == "complete"
    assert [event["id"] for event in result.events] == [str(n) for n in range(1, 14)]


def test_any_number_may_follow_from_any_position(relay, sandbox, prompt):
    sandbox.script(prompt, TOKENS, interval_ms=20)
    stream = relay.begin(prompt)
    with ThreadPoolExecutor(30) as pool:
        results = list(pool.map(lambda n: relay.follow(stream, n % 10).finish(), range(30)))
    for n, result in enumerate(results):
        assert result.tokens == TOKENS[n % 10 :]


@pytest.mark.parametrize("other", [False, True], ids=["the same worker", "another worker"])
def test_a_client_cut_at_each_event_gets_every_token_once(pair, sandbox, prompt, other):
    here, there = pair
    sandbox.script(prompt, TOKENS, gate=True)

    def cut_and_resume(position):
        question = f"{prompt} {position}"
        sandbox.script(question, TOKENS, gate=True)
        stream = here.begin(question)
        seen, cursor = [], 0
        first = here.follow(stream)
        sandbox.receipt(question, position)  # one token more than what is read before the cut
        while cursor < position:
            event = first.next_event()
            seen.append(event["data"]["token"])
            cursor = int(event["id"])
        first.close()
        sandbox.receipt(question, len(TOKENS))
        rest = (there if other else here).follow(stream, cursor).finish()
        assert seen + rest.tokens == TOKENS
        assert rest.done["status"] == "complete"

    with ThreadPoolExecutor(13) as pool:
        list(pool.map(cut_and_resume, range(len(TOKENS) + 1)))


def test_a_stream_that_has_ended_is_read_again_from_anywhere(pair, sandbox, prompt):
    here, _ = pair
    sandbox.script(prompt, TOKENS)
    stream = here.begin(prompt)
    here.follow(stream).finish()
    for relay in pair:
        for cursor in (None, 0, 1, 11, 12):
            assert relay.follow(stream, cursor).finish().tokens == TOKENS[cursor or 0 :]


def test_after_the_end_was_delivered_there_is_no_content(pair, sandbox, prompt):
    here, _ = pair
    sandbox.script(prompt, TOKENS)
    stream = here.begin(prompt)
    last = here.follow(stream).finish().events[-1]["id"]
    for relay in pair:
        until(lambda r=relay: r.follow(stream, last).response.status_code == 204, "204")


def test_after_in_the_address_does_what_the_header_does(relay, sandbox, prompt):
    sandbox.script(prompt, ["a", "b", "c"])
    stream = relay.begin(prompt)
    relay.follow(stream).finish()
    answer = requests.get(f"{relay.url}/streams/{stream}?after=2", timeout=10)
    assert answer.text.startswith('retry: 1000\nid: 2\n\nid: 3\ndata: {"token":"c"}\n\n')


@pytest.mark.parametrize("cursor", ["-1", "x", "1.5", "٣", "9" * 30, "20000", "1e3"])
def test_a_bad_cursor_is_refused(pair, sandbox, prompt, cursor):
    here, _ = pair
    sandbox.script(prompt, ["a", "b"], gate=True)
    stream = here.begin(prompt)
    for relay in pair:
        answer = requests.get(f"{relay.url}/streams/{stream}", params={"after": cursor}, timeout=10)
        assert answer.status_code == 400
        assert answer.json()["code"] == "bad_cursor"


def test_a_cursor_ahead_of_the_store_waits(pair, sandbox, prompt):
    """The client has seen from the writer's memory what the store does not hold yet."""
    here, there = pair
    sandbox.script(prompt, TOKENS, gate=True)
    stream = here.begin(prompt)
    ahead = there.follow(stream, 5)
    sandbox.receipt(prompt, len(TOKENS))
    assert ahead.finish().tokens == TOKENS[5:]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_unknown_stream_is_not_found(relay, method):
    answer = requests.request(method, f"{relay.url}/streams/{uuid.uuid4().hex}", timeout=10)
    assert answer.status_code == 404
    assert answer.json()["code"] == "stream_not_found"


def test_a_stream_is_forgotten_after_its_retention(start_relay, sandbox, prompt):
    relay = start_relay(RETAIN_SECONDS="0")
    sandbox.script(prompt, ["a"])
    stream = relay.begin(prompt)
    relay.follow(stream).finish()
    until(lambda: requests.get(f"{relay.url}/streams/{stream}", timeout=10).status_code == 404, "the stream is gone")


def test_the_state_is_told_while_it_runs_and_after(pair, sandbox, prompt, conversation):
    here, _ = pair
    sandbox.script(prompt, ["Hel", "lo"], gate=True)
    stream = here.begin(prompt, conversation)
    for relay in pair:
        until(lambda r=relay: r.state(stream)["text"] == "Hel", "the text so far")
        assert relay.state(stream)["status"] == "running"
    sandbox.receipt(prompt, 2)
    for relay in pair:
        state = until(lambda r=relay: (s := r.state(stream))["status"] != "running" and s, "the end")
        assert state["status"] == "complete"
        assert state["text"] == "Hello"
        assert state["conversationId"] == conversation
        assert state["last_event_id"] == 3
        assert state["finish_reason"] == "stop"
        assert state["usage"]["total_tokens"] > 0
        assert "error" not in state


def test_the_state_of_a_failed_stream_says_why(lasting_relay, sandbox, prompt):
    sandbox.script(prompt, TOKENS)
    sandbox.fault("gateway", "no_finish", prompt=prompt)
    stream = lasting_relay.begin(prompt)
    lasting_relay.follow(stream).finish()
    state = lasting_relay.state(stream)
    assert (state["status"], state["code"], state["text"]) == ("failed", "answer_cut", "t0 t1 t2 ")


def test_the_state_tells_how_far_the_transcript_has_it(pair, sandbox, prompt):
    here, _ = pair
    sandbox.script(prompt, ["Hel", "lo"], gate=True)
    stream = here.begin(prompt)
    for relay in pair:
        state = until(
            lambda r=relay: (s := r.state(stream)["transcript"])["cursor"] >= 1 and s, "the first token is there"
        )
        assert state["state"] == "pending"
        assert "reason" not in state
    sandbox.receipt(prompt, 2)
    for relay in pair:
        state = until(
            lambda r=relay: (s := r.state(stream)["transcript"])["state"] == "delivered" and s, "all is there"
        )
        assert state["cursor"] >= 2


def test_the_state_tells_that_there_is_no_transcript(start_relay, sandbox, prompt):
    relay = start_relay(TRANSCRIPT="off")
    sandbox.script(prompt, ["a"])
    stream = relay.begin(prompt)
    relay.follow(stream).finish()
    assert relay.state(stream)["transcript"] is None


@pytest.mark.parametrize("slashes", ["{}/b", "{}//b", "/{}", "//{}", "{}/"])
def test_a_conversation_with_slashes_in_its_id_is_listed(relay, prompt, conversation, slashes):
    plain = relay.begin(prompt, conversation)
    slashed = relay.begin(prompt, slashes.format(conversation))
    for conversation_id, stream_id in ((conversation, plain), (slashes.format(conversation), slashed)):
        url = f"{relay.url}/conversations/{quote(conversation_id, safe='')}/streams"
        answer = requests.get(url, timeout=10, allow_redirects=False)
        assert [stream["id"] for stream in answer.json()["streams"]] == [stream_id]


def test_the_streams_of_a_conversation_are_listed_oldest_first(pair, sandbox, prompt, conversation):
    here, there = pair
    sandbox.script(prompt, ["a"], gate=True)
    streams = [relay.begin(prompt, conversation) for relay in (here, there, here)]
    there.begin(prompt, f"{conversation}-other")
    for relay in pair:
        listed = requests.get(f"{relay.url}/conversations/{conversation}/streams", timeout=10).json()["streams"]
        assert [stream["id"] for stream in listed] == streams
        assert all(stream["url"] == f"/streams/{stream['id']}" for stream in listed)


@pytest.mark.parametrize("other", [False, True], ids=["the same worker", "another worker"])
def test_a_stream_is_cancelled_from_anywhere(pair, sandbox, prompt, other):
    here, there = pair
    sandbox.script(prompt, ["a", "b"], gate=True)
    stream = here.begin(prompt)
    followers = [relay.follow(stream) for relay in pair]
    for follower in followers:
        assert follower.next_token() == "a"
    abandoned = sandbox.calls()["gateway"]["abandoned"]
    began = time.monotonic()
    answer = requests.delete(f"{(there if other else here).url}/streams/{stream}", timeout=10)
    assert answer.status_code == 204
    for follower in followers:
        assert follower.finish().done["status"] == "cancelled"
    assert time.monotonic() - began < 2
    until(lambda: sandbox.calls()["gateway"]["abandoned"] == abandoned + 1, "the gateway's connection is closed")
    assert requests.delete(f"{there.url}/streams/{stream}", timeout=10).status_code == 204, "again does nothing"


def test_a_repeated_post_with_one_key_begins_one_turn(pair, sandbox, prompt):
    sandbox.script(prompt, TOKENS)
    with ThreadPoolExecutor(20) as pool:
        streams = set(pool.map(lambda n: pair[n % 2].begin(prompt, "c-key", key="k-1"), range(20)))
    assert len(streams) == 1
    assert pair[1].follow(streams.pop()).finish().tokens == TOKENS
    assert sandbox.gateway_calls(prompt) == 1


def test_the_seeds_route_knows_the_key_too(pair, sandbox, prompt):
    sandbox.script(prompt, TOKENS)
    body = {"conversationId": "c-key", "prompt": prompt}
    answers = [
        requests.post(f"{relay.url}/stream-llm", json=body, headers={"Idempotency-Key": "k-3"}, timeout=20)
        for relay in (*pair, *pair)
    ]
    assert {answer.headers["X-Stream-Id"] for answer in answers} == {answers[0].headers["X-Stream-Id"]}
    assert {answer.content for answer in answers} == {answers[0].content}
    assert sandbox.gateway_calls(prompt) == 1


def test_the_same_key_with_another_body_is_refused(pair, sandbox, prompt):
    here, there = pair
    sandbox.script(prompt, ["a"])
    here.begin(prompt, "c-key", key="k-2")
    body = {"conversationId": "c-key", "prompt": f"{prompt} other"}
    answer = requests.post(f"{there.url}/streams", json=body, headers={"Idempotency-Key": "k-2"}, timeout=10)
    assert answer.status_code == 422
    assert answer.json()["code"] == "idempotency_key_used_otherwise"
    assert sandbox.gateway_calls(f"{prompt} other") == 0


@pytest.mark.parametrize("key", ["", "x" * 201, "caf\xe9"])
def test_a_bad_key_is_refused(relay, prompt, key):
    body = {"conversationId": "c-key", "prompt": prompt}
    answer = requests.post(f"{relay.url}/streams", json=body, headers={"Idempotency-Key": key}, timeout=10)
    assert answer.status_code == 400


def arrivals(relay, stream):
    """When each event came."""
    return {event["id"]: time.monotonic() for event in relay.follow(stream) if "id" in event}


def test_what_one_worker_appends_another_sees_within_a_tenth_of_a_second(pair, sandbox, prompt):
    here, _ = pair
    # About the pace of the flushes, so that tokens come while one is under way.
    sandbox.script(prompt, [f"t{i} " for i in range(100)], interval_ms=50)
    stream = here.begin(prompt)
    with ThreadPoolExecutor(2) as pool:
        near, far = pool.map(lambda relay: arrivals(relay, stream), pair)
    assert near.keys() == far.keys()
    delays = sorted(far[number] - near[number] for number in list(near)[10:])
    assert delays[len(delays) // 2] < 0.1
    # A machine under load may be late now and then.
    assert delays[int(len(delays) * 0.9)] < 0.15


def test_a_follower_on_another_worker_keeps_the_turn_alive(pair, sandbox, prompt):
    here, there = pair
    sandbox.script(prompt, ["a ", "b "], gate=True)
    stream = here.begin(prompt)
    far = there.follow(stream)
    assert far.next_token() == "a "
    grace = time.monotonic() + 7  # longer than DISCONNECT_GRACE
    until(lambda: time.monotonic() > grace, "the grace is over")
    sandbox.receipt(prompt, 2)
    assert far.finish().text == "b "


def test_a_stream_without_any_follower_is_cancelled_after_the_grace(pair, sandbox, prompt):
    here, there = pair
    sandbox.script(prompt, ["a ", "b "], gate=True)
    stream = here.begin(prompt)
    far = there.follow(stream)
    assert far.next_token() == "a "
    far.close()
    until(lambda: there.state(stream)["status"] == "cancelled", "cancelled")


def test_a_stream_of_100000_tokens_is_whole_on_another_worker(pair, sandbox, prompt):
    here, _ = pair
    sandbox.script(prompt, [f"{n} " for n in range(100_000)])
    sandbox.fault("gateway", "glued", prompt=prompt)
    stream = here.begin(prompt)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda relay: relay.follow(stream).finish(), pair))
    for result in results:
        assert result.text == "".join(f"{n} " for n in range(100_000))
