"""What OpenAI's clients may ask, what of it goes on to the gateway, and what they are told otherwise."""

import contextlib
import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.completion_request import read_completion
from server.errors import BadRequest
from server.gateway import Gateway
from server.prompt import MAX_MESSAGES, MAX_PROMPT_CHARS, MAX_TOKENS, Message, Prompt
from server.settings import Settings

USER = {"role": "user", "content": "Hello"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


def read(messages=(USER,), **fields):
    return read_completion(json.dumps({"messages": messages, **fields}).encode())


@pytest.fixture(scope="module")
def gateway():
    with contextlib.closing(make_gateway()) as gateway:
        yield gateway


def make_gateway(**more):
    settings = Settings(
        _env_file=None,
        access="open",
        gateway_api_key="a-key",
        transcript="off",
        gateway_model="own",
        gateway_system_prompt="Be kind.",
        **more,
    )
    return Gateway(settings, None, 1)


def sent(gateway, **fields):
    return json.loads(gateway.body(read(**fields).prompt))


def test_what_the_gateway_understands_goes_on_to_it_as_it_came(gateway):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": {"url": "x"}}],
        },
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": ""},
    ]
    fields = {
        "model": "m",
        "tools": [TOOL],
        "tool_choice": "auto",
        "response_format": {"type": "json_object"},
        "seed": 7,
        "stop": ["\n"],
        "max_completion_tokens": 50,
        "temperature": 0,
        "max_tokens": 5,
        "logprobs": True,
        "reasoning_effort": "low",
        "metadata": {"tenant": "acme"},
        "something_new": [1, None],
    }
    system = {"role": "system", "content": "Be kind."}
    assert sent(gateway, messages=messages, stream=True, **fields) == {
        **fields,
        "messages": [system, *messages],
        "stream": True,
    }


def test_what_is_ours_to_answer_does_not(gateway):
    ours = {"n": 1, "stream": True, "stream_options": None, "metadata": {"conversation_id": "c-1"}, "model": "default"}
    assert set(sent(gateway, **ours)) == {"messages", "stream", "model"}
    assert sent(gateway, **ours)["model"] == "own", "the default model is the gateway's own"


def test_the_gateway_gets_no_temperature_that_no_one_has_chosen(gateway, monkeypatch):
    assert "temperature" not in sent(gateway)
    monkeypatch.setenv("GATEWAY_TEMPERATURE", "0.7")
    with contextlib.closing(make_gateway()) as chosen:
        assert sent(chosen)["temperature"] == 0.7
        assert sent(chosen, temperature=1)["temperature"] == 1
    own = json.loads(gateway.body(Prompt((Message("user", "Hello"),))))
    assert own["temperature"] == 0.7, "our own wire has a default"


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"stream": True}, False),
        ({"stream": True, "stream_options": {"include_usage": False}}, False),
        ({"stream": True, "stream_options": {"include_usage": True}}, True),
        ({"stream": False}, True),
        ({}, True),
    ],
)
def test_the_gateway_is_asked_for_the_usage_where_it_is_to_be_told(gateway, fields, asked):
    assert sent(gateway, **fields).get("stream_options") == ({"include_usage": True} if asked else None)


def test_the_conversation_is_in_the_metadata():
    asked = read(metadata={"conversation_id": "c-1", "tenant": "acme"})
    assert asked.prompt.conversation_id == "c-1"
    assert asked.prompt.more["metadata"] == {"tenant": "acme"}


def test_a_body_without_options_is_a_question():
    assert read().prompt == Prompt((USER,), more={"stream_options": {"include_usage": True}}, as_asked=True)


LONG = "x" * (MAX_PROMPT_CHARS // 2 + 1)
BAD = {
    "not JSON": (b"{", "invalid_json", "JSON"),
    "a list": (b"[]", "bad_request", "object"),
    "no messages": ({}, "bad_request", "`messages`"),
    "empty messages": ({"messages": []}, "bad_request", "`messages`"),
    "many messages": ({"messages": [USER] * (MAX_MESSAGES + 1)}, "prompt_too_long", str(MAX_MESSAGES)),
    "a message that is a text": ({"messages": ["a"]}, "bad_request", "`messages[0]`"),
    "an unknown role": ({"messages": [USER, {"role": "wizard"}]}, "bad_request", "`messages[1].role`"),
    "a role that is a list": ({"messages": [{"role": []}]}, "bad_request", "`messages[0].role`"),
    "no content": ({"messages": [{"role": "user"}]}, "bad_request", "`messages[0].content`"),
    "content that is a number": (
        {"messages": [{"role": "tool", "content": 7}]},
        "bad_request",
        "`messages[0].content`",
    ),
    "a part that is a text": ({"messages": [{"role": "user", "content": ["a"]}]}, "bad_request", "parts"),
    "a part without type": ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "bad_request", "parts"),
    "instructions alone": ({"messages": [{"role": "developer", "content": "a"}]}, "bad_request", "user"),
    "long in all": ({"messages": [{"role": "user", "content": LONG}] * 2}, "prompt_too_long", "Shorten"),
    "long in parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": LONG}] * 2}]},
        "prompt_too_long",
        "Shorten",
    ),
    "two answers": ({"messages": [USER], "n": 2}, "bad_request", "`n`"),
    "a true n": ({"messages": [USER], "n": True}, "bad_request", "`n`"),
    "a stream that is a text": ({"messages": [USER], "stream": "yes"}, "bad_request", "`stream`"),
    "stream options that are a list": ({"messages": [USER], "stream_options": []}, "bad_request", "`stream_options`"),
    "usage that is a number": (
        {"messages": [USER], "stream_options": {"include_usage": 1}},
        "bad_request",
        "`stream_options.include_usage`",
    ),
    "metadata that is a text": ({"messages": [USER], "metadata": "a"}, "bad_request", "`metadata`"),
    "an empty conversation": (
        {"messages": [USER], "metadata": {"conversation_id": ""}},
        "bad_request",
        "`metadata.conversation_id`",
    ),
    "a hot temperature": ({"messages": [USER], "temperature": 3}, "bad_request", "`temperature`"),
    "many tokens": ({"messages": [USER], "max_tokens": MAX_TOKENS + 1}, "bad_request", "`max_tokens`"),
    "a model that is a number": ({"messages": [USER], "model": 1}, "bad_request", "`model`"),
    "nested deeply": (
        b'{"messages":[{"role":"user","content":"a"}],"x":' + b"[" * 300 + b"]" * 300 + b"}",
        "bad_request",
        "nested",
    ),
}


@pytest.mark.parametrize(("body", "code", "told"), BAD.values(), ids=BAD)
def test_bad_input_is_told_what_to_fix(body, code, told):
    with pytest.raises(BadRequest) as refusal:
        read_completion(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert refusal.value.code == code
    assert told in refusal.value.sentence


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
roles = st.sampled_from(["system", "user", "assistant", "tool", "wizard"])
messages = st.lists(st.fixed_dictionaries({"role": roles | json_values}, optional={"content": json_values}), max_size=3)
names = st.sampled_from(["stream", "stream_options", "metadata", "n", "model", "temperature", "tools"])


@given(messages | json_values, st.dictionaries(names, json_values))
def test_any_json_is_a_question_that_can_be_passed_on_or_a_clear_refusal(messages, fields):
    body = json.dumps({"messages": messages, **fields}).encode()
    try:
        asked = read_completion(body)
    except BadRequest as refusal:
        assert refusal.status in (400, 413)
    else:
        assert orjson.loads(orjson.dumps(asked.prompt.messages)) == messages
        assert set(asked.prompt.more) <= {*fields, "stream_options"}
