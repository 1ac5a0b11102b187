"""What a request may hold, and what it is told otherwise."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import BadRequest
from server.prompt import MAX_PROMPT_CHARS, Message, Prompt, read_prompt


def read(**fields):
    return read_prompt(json.dumps(fields).encode())


def test_a_prompt_is_one_message_of_the_user():
    assert read(prompt="Hello") == Prompt((Message("user", "Hello"),))


def test_messages_are_taken_in_order_with_the_options():
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    found = read(messages=messages, conversationId="c-1", temperature=0, max_tokens=5, model="m")
    assert found == Prompt((Message("user", "a"), Message("assistant", "b"), Message("user", "c")), "c-1", 0, 5, "m")


def test_a_whole_number_may_be_written_with_a_point():
    found = read(prompt="Hello", max_tokens=5.0)
    assert found.max_tokens == 5
    assert isinstance(found.max_tokens, int)


def test_fields_that_are_not_known_are_let_pass():
    assert read(prompt="Hello", somethingElse=1).messages


USER = [{"role": "user", "content": "Hello"}]
BAD = {
    "not JSON": (b"{", "invalid_json", "JSON"),
    "bad UTF-8": (b'{"prompt": "\xff"}', "invalid_json", "UTF-8"),
    "empty": (b"", "invalid_json", "JSON"),
    "a list": (b"[]", "bad_request", "object"),
    "null": (b"null", "bad_request", "object"),
    "no prompt": ({}, "bad_request", "`prompt`"),
    "an empty prompt": ({"prompt": ""}, "bad_request", "`prompt`"),
    "a blank prompt": ({"prompt": " \n"}, "bad_request", "`prompt`"),
    "a prompt that is a number": ({"prompt": 7}, "bad_request", "`prompt`"),
    "both": ({"prompt": "a", "messages": USER}, "bad_request", "not both"),
    "messages that are a text": ({"messages": "a"}, "bad_request", "`messages`"),
    "no messages": ({"messages": []}, "bad_request", "`messages`"),
    "a message that is a text": ({"messages": ["a"]}, "bad_request", "`messages[0]`"),
    "an unknown role": ({"messages": [{"role": "wizard", "content": "a"}]}, "bad_request", "`messages[0].role`"),
    "a role that is a list": ({"messages": [{"role": [], "content": "a"}]}, "bad_request", "`messages[0].role`"),
    "a message without content": ({"messages": [*USER, {"role": "user"}]}, "bad_request", "`messages[1].content`"),
    "the system alone": ({"messages": [{"role": "system", "content": "a"}]}, "bad_request", "user"),
    "a long prompt": ({"prompt": "x" * (MAX_PROMPT_CHARS + 1)}, "prompt_too_long", "Shorten"),
    "many messages": ({"messages": USER * 501}, "prompt_too_long", "501"),
    "a conversation that is a number": ({"prompt": "a", "conversationId": 7}, "bad_request", "`conversationId`"),
    "an empty conversation": ({"prompt": "a", "conversationId": ""}, "bad_request", "`conversationId`"),
    "a long conversation": ({"prompt": "a", "conversationId": "x" * 201}, "bad_request", "`conversationId`"),
    "a line end in the conversation": ({"prompt": "a", "conversationId": "a\nb"}, "bad_request", "`conversationId`"),
    "a hot temperature": ({"prompt": "a", "temperature": 2.1}, "bad_request", "`temperature`"),
    "a true temperature": ({"prompt": "a", "temperature": True}, "bad_request", "`temperature`"),
    "no tokens": ({"prompt": "a", "max_tokens": 0}, "bad_request", "`max_tokens`"),
    "half a token": ({"prompt": "a", "max_tokens": 0.5}, "bad_request", "`max_tokens`"),
    "a model that is a number": ({"prompt": "a", "model": 1}, "bad_request", "`model`"),
}


@pytest.mark.parametrize(("body", "code", "told"), BAD.values(), ids=BAD)
def test_bad_input_is_told_what_to_fix(body, code, told):
    with pytest.raises(BadRequest) as refusal:
        read_prompt(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert refusal.value.code == code
    assert told in refusal.value.sentence


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["prompt", "messages", "conversationId", "temperature", "max_tokens", "model", "x"])


@given(st.dictionaries(names, json_values) | json_values)
def test_any_json_is_a_prompt_or_a_clear_refusal(value):
    try:
        assert read_prompt(json.dumps(value).encode()).messages
    except BadRequest as refusal:
        assert refusal.status in (400, 413)
