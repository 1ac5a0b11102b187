"""A turn's events as OpenAI's chunks, and as one answer: the official client's own adding up is the judge."""

import json
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from server.completion_answer import Chunks, Head, Whole
from server.errors import AnswerCancelled, AnswerCut, InternalError
from server.sse import PING, Done, Extra, Failure, Retrying, Token
from server.stream import Stream

HEAD = Head("turn-1", 1_800_000_000, "m")
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
FIELDS = {"id": "chatcmpl-turn-1", "created": 1_800_000_000, "model": "m"}


def extra(number, **choice):
    return Extra(number, json.dumps(choice).encode())


def call(**fields):
    return {"delta": {"tool_calls": [fields]}}


def chunks_of(body):
    """The JSON of each `data:` line; [DONE] as it is."""
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n\n")]
    assert lines.pop() == ""
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def stream(*events, include_usage=False):
    return chunks_of(Chunks(HEAD, include_usage).encode(events))


def whole(*events):
    answer = Whole(HEAD)
    answer.add(events)
    return answer.finish()


def choice(reason=None, **delta):
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]


def test_the_role_comes_first_and_the_finish_reason_and_done_last():
    found = stream(Token(1, "Hel"), Token(2, 'l"o\n'), Done(3, "complete", "length", USAGE))
    assert [chunk if chunk == "[DONE]" else chunk["choices"] for chunk in found] == [
        choice(role="assistant", content=""),
        choice(content="Hel"),
        choice(content='l"o\n'),
        choice("length"),
        "[DONE]",
    ]
    for chunk in found[:-1]:
        assert chunk == {"object": "chat.completion.chunk", **FIELDS, "choices": chunk["choices"]}


def test_the_usage_has_a_chunk_of_its_own_and_is_null_in_all_others_where_it_is_asked_for():
    *found, usage, done = stream(
        Token(1, "a"), extra(2, delta={"x": 1}), Done(3, "complete", "stop", USAGE), include_usage=True
    )
    assert (usage["choices"], usage["usage"], done) == ([], USAGE, "[DONE]")
    assert [chunk["usage"] for chunk in found] == [None] * 4


def test_the_role_is_said_once_and_not_for_a_retry_that_waits():
    chunks = Chunks(HEAD, False)
    assert chunks.encode([Retrying(1.0, "rate_limited")]) == b""
    assert chunks_of(chunks.encode([Token(1, "a")]))[0]["choices"] == choice(role="assistant", content="")
    assert len(chunks_of(chunks.encode([Token(2, "b")]))) == 1


def test_while_nothing_comes_there_are_pings_which_are_comments():
    batches = [[], [Retrying(1.0, "rate_limited")], [Token(1, "a")]]
    stream = Stream(SimpleNamespace(dismissed=False), None, Chunks(HEAD, False).encode, batches=batches)
    opening, ping, also, piece, farewell = stream
    assert (opening, farewell) == (b"", b"")
    assert (ping, also) == (PING, PING)
    assert PING.startswith(b":")
    assert chunks_of(piece)


@pytest.mark.parametrize(
    ("closing", "code"),
    [
        ([Failure(2, "No.", "answer_cut"), Done(3, "failed")], "answer_cut"),
        ([Failure(2, "No.", "interrupted"), Done(3, "interrupted")], "interrupted"),
        ([Done(2, "cancelled")], "answer_cancelled"),
    ],
)
def test_an_answer_that_breaks_off_ends_with_an_error_and_not_with_done(closing, code):
    *_, last = stream(Token(1, "a"), *closing)
    assert last["error"]["code"] == code
    assert set(last["error"]) == {"message", "type", "param", "code"}


def test_a_whole_answer():
    assert whole(Token(1, "Hel"), Token(2, "lo"), Done(3, "complete", None, USAGE)) == {
        "object": "chat.completion",
        **FIELDS,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE,
    }


def test_tool_calls_are_put_together_whoever_repeats_what_of_them():
    answer = whole(
        extra(1, **call(index=0, id="call_1", type="function", function={"name": "weather", "arguments": ""})),
        extra(2, **call(index=0, id="call_1", type="function", function={"arguments": '{"city":'})),
        extra(3, **call(index=1, id="call_2", type="function", function={"name": "time", "arguments": "{}"})),
        extra(4, **call(index=0, function={"arguments": '"Bern"}'})),
        Done(5, "complete", "tool_calls"),
    )
    message = answer["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}},
        {"id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]


@pytest.mark.parametrize(
    ("events", "error"),
    [
        ([Token(1, "a"), Failure(2, "Cut.", "answer_cut"), Done(3, "failed")], AnswerCut),
        ([Failure(1, "?", "no_such_code"), Done(2, "failed")], InternalError),
        ([Done(1, "cancelled")], AnswerCancelled),
    ],
)
def test_an_answer_that_is_not_whole_is_an_error(events, error):
    with pytest.raises(error):
        whole(*events)


@pytest.mark.parametrize("calls", [7, "x", [7], {"a": 1}, [{"index": 10**30}], [[]]])
def test_tool_calls_that_are_none_break_nothing(calls):
    events = [Extra(1, json.dumps({"delta": {"tool_calls": calls}}).encode()), Done(2, "complete", "stop")]
    assert "tool_calls" in whole(*events)["choices"][0]["message"]
    assert stream(*events)[-1] == "[DONE]"


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
deltas = st.one_of(
    st.builds(lambda text: {"delta": {"reasoning_content": text}}, texts),
    st.builds(lambda text: {"delta": {"refusal": text}}, texts),
    st.builds(lambda text: {"logprobs": {"content": [{"token": text, "logprob": -0.5, "top_logprobs": []}]}}, texts),
    st.builds(lambda index, text: call(index=index, function={"arguments": text}), st.integers(0, 1), texts),
)
CALLS = [call(index=n, id=f"call_{n}", type="function", function={"name": "f", "arguments": ""}) for n in (0, 1)]


@given(st.lists(texts | deltas, max_size=12), st.lists(st.integers(0, 20)))
def test_the_official_client_adds_the_chunks_up_to_the_same_as_the_whole_answer(parts, cuts):
    parts = [*CALLS, *parts]
    events = [Token(n, part) if isinstance(part, str) else extra(n, **part) for n, part in enumerate(parts, 1)]
    events.append(Done(len(events) + 1, "complete", "tool_calls", USAGE))
    chunks, state = Chunks(HEAD, include_usage=True), ChatCompletionStreamState()
    edges = sorted({0, len(events), *(cut for cut in cuts if cut < len(events))})
    body = b"".join(chunks.encode(events[a:b]) for a, b in pairwise(edges))
    for chunk in chunks_of(body)[:-1]:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    ours = ChatCompletion.model_validate(whole(*events)).model_dump(exclude_none=True)
    theirs = ChatCompletion.model_validate(state.current_completion_snapshot.model_dump()).model_dump(exclude_none=True)
    for answer in (ours, theirs):
        message = answer["choices"][0]["message"]
        message["content"] = message.get("content") or ""
        for one in message["tool_calls"]:
            one.pop("index", None)
            one["function"].pop("parsed_arguments", None)
    assert ours["choices"] == theirs["choices"]
    assert ours["usage"] == theirs["usage"]
