"""What goes to the client, byte for byte, and as a client of the standard reads it."""

import json

from hypothesis import given
from hypothesis import strategies as st

from server import sse
from server.sse import Done, Extra, Failure, Retrying, Token


def test_a_token():
    assert sse.encode([Token(1, "Hel")]) == b'id: 1\ndata: {"token":"Hel"}\n\n'


def test_a_failure_is_sent_as_the_seed_sends_it_plus_a_code():
    assert sse.encode([Failure(9, "No.", "rate_limited")]) == b'id: 9\ndata: {"error":"No.","code":"rate_limited"}\n\n'


def test_done_is_an_event_of_its_own():
    expected = b'id: 10\nevent: done\ndata: {"status":"complete","finish_reason":"stop"}\n\n'
    assert sse.encode([Done(10, "complete", "stop")]) == expected


def test_done_holds_the_usage_where_the_gateway_gave_it():
    assert b'"usage":{"total_tokens":3}' in sse.encode([Done(2, "complete", "stop", {"total_tokens": 3})])


def test_what_comes_beside_the_text_is_an_id_alone_which_clients_remember_and_show_nothing_of():
    assert sse.encode([Extra(3, b'{"delta":{"refusal":"No."}}')]) == b"id: 3\n\n"


def test_a_status_has_no_id():
    expected = b'event: status\ndata: {"state":"retrying","in":2.0,"reason":"rate_limited"}\n\n'
    assert sse.encode([Retrying(2.04, "rate_limited")]) == expected


def test_several_events_are_one_piece():
    assert sse.encode([Token(1, "a"), Token(2, "b")]) == sse.encode([Token(1, "a")]) + sse.encode([Token(2, "b")])


def parse(stream):
    """The standard's parser (WHATWG HTML, 9.2.6), for streams that end after an event."""
    found = []
    for block in stream.decode().split("\n\n")[:-1]:
        fields = [line.partition(":") for line in block.split("\n") if not line.startswith(":")]
        found.append({name: value.removeprefix(" ") for name, _, value in fields})
    return found


texts = st.text(st.characters(exclude_categories=["Cs"]))
events = st.one_of(
    st.builds(Token, st.integers(1), texts),
    st.builds(Extra, st.integers(1), st.binary()),
    st.builds(Failure, st.integers(1), texts, texts),
    st.builds(Done, st.integers(1), texts, st.none() | texts, st.none()),
)


@given(st.lists(events, min_size=1))
def test_whatever_the_text_it_stays_inside_its_event(given_events):
    read = parse(sse.encode(given_events))
    assert [int(event["id"]) for event in read] == [event.id for event in given_events]
    for event, source in zip(read, given_events, strict=True):
        if isinstance(source, Extra):
            assert set(event) == {"id"}
            continue
        data = json.loads(event["data"])
        if isinstance(source, Token):
            assert data == {"token": source.text}
        elif isinstance(source, Failure):
            assert data == {"error": source.error, "code": source.code}
        else:
            assert event["event"] == "done"
            assert data["status"] == source.status
