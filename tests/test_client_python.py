"""The Python client: its pure parts by table and by Hypothesis, and what goes over its wire."""

import json
from itertools import pairwise

import httpx_sse
import pytest
from hypothesis import given
from hypothesis import strategies as st
from relay_client import Done, Failure, Other, Relay, RelayError, Retrying, Token
from relay_client.calls import Calls
from relay_client.course import Course, refusal, seconds_of
from relay_client.sse import MAX_BLOCK, Block, Decoder

from .relay_clients import Asyncio, Node, Python
from .script_server import ScriptServer

BLOCKS = {
    "an event": (b"id: 1\nevent: done\ndata: {}\n\n", [Block("done", "{}", "1")]),
    "no space": (b"data:x\n\n", [Block(data="x")]),
    "one space is no part of it": (b"data:  x\n\n", [Block(data=" x")]),
    "several lines": (b"data: a\ndata: b\n\n", [Block(data="a\nb")]),
    "CR LF": (b"data: a\r\n\r\n", [Block(data="a")]),
    "CR, of which the last may be half of a CR LF": (b"data: a\r\r:", [Block(data="a")]),
    "a byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [Block(data="a")]),
    "other line ends of Unicode": ("data: a\u2028b\u0085\n\n".encode(), [Block(data="a\u2028b\u0085")]),
    "a ping": (b": ping\n\n", [Block()]),
    "an id alone": (b"id: 7\n\n", [Block(id="7")]),
    "a pause alone": (b"retry: 50\n\n", [Block(retry=50)]),
    "no pause": (b"retry: soon\n\n", [Block()]),
    "a field without a colon": (b"data\n\n", [Block(data="")]),
    "an unknown field": (b"colour: red\ndata: a\n\n", [Block(data="a")]),
    "what is not whole": (b"data: a\n\ndata: b\n", [Block(data="a")]),
}


@pytest.mark.parametrize(("data", "blocks"), BLOCKS.values(), ids=BLOCKS)
def test_blocks_are_read_as_the_standard_says(data, blocks):
    assert Decoder().feed(data) == blocks


FIELDS = st.sampled_from(["data", "id", "event", "retry", "", "other"])
VALUES = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=5)
LINES = st.builds("{}:{}{}".format, FIELDS, st.sampled_from(["", " "]), VALUES) | st.just("")
STREAMS = st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r\n", "\r"]))).map(
    lambda lines: "".join(line + end for line, end in lines).encode()
)


@given(STREAMS, st.lists(st.integers(0, 200)))
def test_wherever_the_bytes_are_cut_the_blocks_are_the_same(stream, cuts):
    whole = Decoder().feed(stream)
    decoder = Decoder()
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert [b for i, j in pairwise(places) for b in decoder.feed(stream[i:j])] == whole


@given(STREAMS)
def test_events_are_those_of_httpx_sse(stream):
    stream += b"\n"  # a CR at the end waits for its LF
    theirs, lines = httpx_sse._decoders.SSEDecoder(), httpx_sse._decoders.SSELineDecoder()
    text = stream.decode("utf-8-sig")
    found = [theirs.decode(line) for line in [*lines.decode(text), *lines.flush()]] if text else []
    ours = [(block.event, block.data) for block in Decoder().feed(stream) if block.data]
    assert ours == [(event.event, event.data) for event in found if event is not None and event.data]


def test_a_block_that_does_not_end_is_not_kept_for_ever():
    decoder = Decoder()
    with pytest.raises(ValueError, match="longer than"):
        for _ in range(MAX_BLOCK // 1000 + 2):
            decoder.feed(b"data: " + b"x" * 1000 + b"\n")


def block(data, id_=None, event="message"):
    return Block(event, json.dumps(data), id_)


EVENTS = {
    "a token": (block({"token": "a"}, "1"), Token(1, "a")),
    "a failure": (block({"error": "It failed.", "code": "x"}, "1"), Failure(1, "It failed.", "x")),
    "the end": (block({"status": "complete"}, "1", "done"), Done(1, "complete", None, None)),
    "a retry": (block({"state": "retrying", "in": 2, "reason": "r"}, None, "status"), Retrying(2, "r")),
    "one of another time": (block({"a": 1}, None, "new"), Other("new", {"a": 1})),
    "a strange one": (block([1]), Other("message", {"data": [1]})),
    "none": (Block(), None),
}


@pytest.mark.parametrize(("block", "event"), EVENTS.values(), ids=EVENTS)
def test_each_event_has_its_class(block, event):
    assert Course(place="/streams/x").take(block) == event


def test_what_came_before_is_not_handed_out_again_and_an_id_alone_moves_the_cursor():
    course = Course(place="/streams/x", after=2)
    assert course.take(block({"token": "b"}, "2")) is None
    assert course.take(block({"token": "c"}, "3")) == Token(3, "c")
    assert course.take(Block(id="7")) is None
    assert course.following["Last-Event-ID"] == "7"
    assert course.take(Block(id="5")) is None
    assert course.following["Last-Event-ID"] == "7"


def test_a_ticket_changes_the_address_and_nothing_else():
    course = Course(place="/streams/x?ticket=1", after=2)
    assert course.take(block({"url": "/streams/x?ticket=2"}, None, "ticket")) is None
    assert (course.place, course.after) == ("/streams/x?ticket=2", 2)


@given(st.floats(0, 1))
def test_pauses_double_up_to_a_bound_above_what_the_server_asks_for(chance):
    course = Course(place="/streams/x", tries=100, jitter=lambda: chance)
    course.take(Block(retry=200))
    pauses = [course.lose(RelayError("lost")).seconds for _ in range(12)]
    assert pauses == pytest.approx([0.2 + chance * min(30, 0.5 * 2**tried) for tried in range(12)])
    busy = course.lose(RelayError("busy", "too_many_turns", 503, retry_after=7))
    assert busy.seconds == pytest.approx(7 + chance * 30)


def test_an_event_starts_the_count_of_tries_anew_and_without_one_it_ends():
    course = Course(place="/streams/x", tries=3)
    for id_ in ("1", "2"):
        for _ in range(2):
            course.lose(RelayError("lost"))
        course.take(block({"token": "a"}, id_))
    for _ in range(2):
        course.lose(RelayError("lost"))
    with pytest.raises(RelayError, match="the last"):
        course.lose(RelayError("the last"))


FOR_GOOD = [RelayError("gone", "stream_not_found", 404), RelayError("later", "rate_limited", 429, retry_after=61)]


@pytest.mark.parametrize("error", FOR_GOOD)
def test_what_does_not_pass_is_raised_at_once(error):
    with pytest.raises(RelayError) as raised:
        Course(place="/streams/x").lose(error)
    assert raised.value is error


def test_refusals_are_read_in_the_relays_words_or_told_by_their_status():
    ours = refusal(429, b'{"error": "Too many.", "code": "too_many_requests"}', "3")
    assert (str(ours), ours.code, ours.status, ours.retry_after) == ("Too many.", "too_many_requests", 429, 3.0)
    for body in (b"<html>", b"[]", b"\xff", b'{"error": {"message": "x"}}'):
        proxys = refusal(502, body, None)
        assert (proxys.code, proxys.status, proxys.retry_after) == ("refused", 502, None)


def test_retry_after_is_seconds_or_a_date():
    assert seconds_of("12") == 12
    assert seconds_of("Thu, 01 Jan 1970 00:00:00 GMT") == 0
    assert seconds_of("soon") is None
    assert seconds_of("-1") is None


def test_the_key_goes_to_the_relay_alone():
    calls = Calls("https://relay.example/relay", "secret")
    assert calls.streams == "https://relay.example/relay/streams"
    assert calls.address("a b") == "https://relay.example/relay/streams/a%20b"
    assert calls.address("/relay/streams/x?ticket=1") == "https://relay.example/relay/streams/x?ticket=1"
    assert calls.headers(calls.address("x")) == {"Authorization": "Bearer secret"}
    for other in ("https://evil.example/streams/x", "http://relay.example/x", "https://relay.example:8443/x"):
        assert calls.headers(calls.address(other)) == {}


def test_the_text_alone_can_be_had_and_a_failure_is_raised(relay, sandbox, prompt):
    sandbox.script(prompt, ["one ", "two ", "three ", "four "])
    sandbox.fault("gateway", "cut", prompt=prompt)
    with Relay(relay.url) as client, client.ask(prompt, conversation_id="c") as answer:
        tokens = answer.tokens()
        assert [next(tokens) for _ in range(3)] == ["one ", "two ", "three "]
        with pytest.raises(RelayError) as raised:
            next(tokens)
    assert raised.value.code == "answer_cut"
    with Relay(relay.url) as client, client.follow(answer.url, after=2) as again:
        assert next(event for event in again if isinstance(event, Token)) == Token(3, "three ")


BREAKS = b'retry: 20\n\nid: 3\ndata: {"token":"c"}\n\nid: 7\n\nid: 8\ndata: {"tok'  # and breaks off
REST = b': ping\n\nid: 8\ndata: {"token":"d"}\n\nid: 9\nevent: done\ndata: {"status":"complete"}\n\n'


@pytest.fixture(params=[Node, Python, Asyncio], ids=["Node", "Python", "asyncio"])
def client(request, tmp_path):
    client = request.param(tmp_path)
    yield client
    client.close()


def test_over_the_wire_an_id_alone_moves_the_cursor_and_a_retry_alone_sets_the_pause(client):
    with ScriptServer(BREAKS, (503, {"Retry-After": "0"}), REST) as server:
        client.start(base=f"{server.url}/", options={"key": "secret"}, url="/streams/x")
        assert client.until_end() == {"type": "end"}
    assert [asked["Last-Event-ID"] for asked in server.asked] == ["0", "7", "7"]
    assert {asked["Authorization"] for asked in server.asked} == {"Bearer secret"}
    assert [(event["id"], event["token"]) for event in client.of("token")] == [(3, "c"), (8, "d")]
    assert [lost["in"] < 1.1 for lost in client.of("lost")] == [True, True], (
        "20 ms, and half a second of jitter at most"
    )


def test_the_clients_give_up_after_so_many_tries_and_keep_the_question_the_same(client):
    with ScriptServer((503, {}), (503, {}), (503, {})) as server:
        client.start(base=f"{server.url}/", options={"tries": 2}, question={"prompt": "Hello", "conversationId": "c"})
        assert client.until_end() == {"type": "thrown", "name": "RelayError", "code": "refused"}
    first, second = (asked["Idempotency-Key"] for asked in server.asked)
    assert first == second


def test_a_key_goes_to_no_other_origin(client):
    with ScriptServer(REST) as server:
        client.start(base="https://relay.example/", options={"key": "secret"}, url=f"{server.url}/streams/x")
        assert client.until_end() == {"type": "end"}
    assert "Authorization" not in server.asked[0]
