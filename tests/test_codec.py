"""Batches of events as the stores keep them, and back."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.journal.codec import pack, unpack
from server.sse import Done, Extra, Failure, Token

texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, json_values, max_size=4)
events = st.one_of(
    st.builds(Token, st.just(0), texts),
    st.builds(Extra, st.just(0), objects.map(orjson.dumps)),
    st.builds(Failure, st.just(0), texts, texts),
    st.builds(Done, st.just(0), texts, st.none() | texts, st.none() | objects),
)


@given(st.integers(1, 10**12), st.lists(events, min_size=1, max_size=20), st.integers(0, 25))
def test_any_events_come_back_as_they_were_behind_any_cursor(first, found, taken):
    batch = [event._replace(id=first + n) for n, event in enumerate(found)]
    assert unpack(first, pack(batch), first - 1 + taken) == batch[taken:]


@given(st.lists(events, min_size=1, max_size=5))
def test_what_comes_beside_the_text_is_never_taken_for_another_kind_of_event(found):
    """The gateway chooses its names: `error`, `status`, whatever."""
    assert [type(event) for event in unpack(1, pack(found))] == [type(event) for event in found]


@pytest.mark.parametrize("name", ["error", "code", "status", "finish_reason", "usage", "choice"])
def test_names_of_our_own_inside_it_change_nothing(name):
    extra = Extra(1, orjson.dumps({name: "x", "code": "y"}))
    assert unpack(1, pack([extra])) == [extra]


def test_an_event_of_a_later_release_says_nothing_and_keeps_its_id():
    later = orjson.dumps(["a", {"audio": "x"}, {"error": 7}, "b"])
    nothing = b"{}"
    assert unpack(1, later) == [Token(1, "a"), Extra(2, nothing), Extra(3, nothing), Token(4, "b")]


@pytest.mark.parametrize("broken", [b"[7]", b"[null]", b"[[]]"])
def test_what_no_release_writes_is_no_event(broken):
    with pytest.raises(ValueError, match="no event"):
        unpack(1, broken)
