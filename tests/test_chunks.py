"""The gateway's wire, in all the shapes that are seen in the wild."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import chunks
from server.chunks import MAX_EXTRA, MAX_FINISH_REASON, MAX_LINE, Beside, Broken, ChunkReader
from server.errors import AnswerCut, AnswerFailed, AnswerMalformed, RateLimited


def chunk(content=..., finish_reason=None, **delta):
    if content is not ...:
        delta["content"] = content
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def line(value):
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
FINISH = line(chunk(finish_reason="stop"))
HELLO = ["Hel", "lo", Beside(finish_reason="stop")]


def read(*pieces):
    reader = ChunkReader()
    deltas = [delta for piece in pieces for delta in reader.feed(piece)]
    return deltas + reader.end()


def extra(**choice):
    return Beside(choice=json.dumps(choice, separators=(",", ":"), ensure_ascii=False).encode())


CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
LOGPROBS = {"content": [{"token": "Hel", "logprob": -0.5}]}
BESIDE = {
    "reasoning": (chunk(reasoning_content="hm"), [extra(delta={"reasoning_content": "hm"})]),
    "a tool call": (chunk(tool_calls=[CALL]), [extra(delta={"tool_calls": [CALL]})]),
    "a refusal": (chunk(None, refusal="No."), [extra(delta={"refusal": "No."})]),
    "text and reasoning": (chunk("a", reasoning="hm"), [extra(delta={"reasoning": "hm"}), "a"]),
    "the role and a tool call": (
        chunk(None, role="assistant", tool_calls=[CALL]),
        [extra(delta={"tool_calls": [CALL]})],
    ),
    "log probabilities": (
        {"choices": [{"delta": {"content": "Hel"}, "logprobs": LOGPROBS}]},
        [extra(logprobs=LOGPROBS), "Hel"],
    ),
    "a tool call with the end": (
        {"choices": [{"delta": {"tool_calls": [CALL]}, "finish_reason": "tool_calls"}]},
        [extra(delta={"tool_calls": [CALL]}), Beside(finish_reason="tool_calls")],
    ),
    "a whole message's tool calls": (
        {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}, {"id": "y"}]}}]},
        [extra(delta={"tool_calls": [{"index": 0, "id": "x"}, {"index": 1, "id": "y"}]})],
    ),
}


@pytest.mark.parametrize(("value", "deltas"), BESIDE.values(), ids=BESIDE)
def test_what_comes_beside_the_text_keeps_its_place(value, deltas):
    assert read(line(chunk("before")), line(value), line(chunk("after")), DONE) == [
        "before",
        *deltas,
        "after",
    ]


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        (rb'{"reasoning":"a\ud83d"}', {"reasoning": "a\ufffd"}),
        (b'{"x":123456789012345678901234567890}', {"x": 1.2345678901234568e29}),
    ],
)
def test_beside_the_text_what_our_json_cannot_hold_is_mended(raw, kept):
    assert read(b'data: {"choices":[{"delta":' + raw + b"}]}\n", FINISH)[0] == extra(delta=kept)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"x":' + b"[" * 400 + b"7" + b"]" * 400 + b"}",
        b'{"x":"' + b"x" * MAX_EXTRA + b'"}',
        b'{"tool_calls":7}',
        b'{"tool_calls":[7]}',
    ],
    ids=["deep", "long", "calls that are a number", "a call that is a number"],
)
def test_beside_the_text_what_cannot_be_kept_breaks_the_answer(raw):
    with pytest.raises(Broken) as broken:
        ChunkReader().feed(line(chunk("Hel")) + b'data: {"choices":[{"message":' + raw + b"}]}\n")
    assert broken.value.deltas == ["Hel"]
    assert type(broken.value.reason) is AnswerMalformed


USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
STREAMS = {
    "the plain shape": line(chunk("Hel")) + line(chunk("lo")) + FINISH + DONE,
    "a first chunk with the role alone": line(chunk("", role="assistant"))
    + line(chunk("Hel"))
    + line(chunk("lo"))
    + FINISH,
    "content null": line(chunk(None, role="assistant")) + line(chunk("Hel")) + line(chunk("lo")) + FINISH,
    "Azure's filter chunk first": line({"choices": [], "prompt_filter_results": []})
    + line(chunk("Hel"))
    + line(chunk("lo"))
    + FINISH,
    "CRLF": (line(chunk("Hel")) + line(chunk("lo")) + FINISH + DONE).replace(b"\n", b"\r\n"),
    "no space after data:": (line(chunk("Hel")) + line(chunk("lo")) + FINISH + DONE).replace(b"data: ", b"data:"),
    "bare NDJSON": b"".join(
        json.dumps(c).encode() + b"\n" for c in [chunk("Hel"), chunk("lo"), chunk(finish_reason="stop")]
    ),
    "comments": b": OPENROUTER PROCESSING\n\n" + line(chunk("Hel")) + b": x\n\n" + line(chunk("lo")) + FINISH + DONE,
    "event and id lines": b"event: message\nid: 7\n" + line(chunk("Hel")) + line(chunk("lo")) + FINISH + DONE,
    "no [DONE]": line(chunk("Hel")) + line(chunk("lo")) + FINISH,
    "a last line without its end": line(chunk("Hel")) + line(chunk("lo")) + FINISH.rstrip(),
    "fields that say nothing": line(chunk("", role="assistant", refusal=None, tool_calls=[]))
    + line(chunk("Hel", reasoning_content=None))
    + line(chunk("lo", role="assistant", reasoning_content=""))
    + FINISH,
    "text after [DONE]": line(chunk("Hel")) + line(chunk("lo")) + FINISH + DONE + line(chunk("never")),
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_each_shape_gives_the_same_answer(stream):
    assert read(stream) == HELLO


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_one_byte_at_a_time_gives_the_same_answer(stream):
    assert read(*(stream[i : i + 1] for i in range(len(stream)))) == HELLO


def test_usage_comes_in_a_chunk_without_choices():
    assert read(FINISH, line({"choices": [], "usage": USAGE}), DONE)[-1] == Beside(usage=USAGE)


def test_an_answer_sent_whole_is_read_as_one_token():
    whole = {"choices": [{"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]}
    assert read(json.dumps(whole).encode()) == ["Hello", Beside(finish_reason="stop")]


def test_a_surrogate_pair_cut_between_two_chunks_is_joined():
    halves = [
        b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n',
        b'data: {"choices":[{"delta":{"content":"\\udc4bb"}}]}\n',
    ]
    assert read(*halves, FINISH) == ["a", "👋b", Beside(finish_reason="stop")]


def test_half_a_surrogate_pair_alone_becomes_a_replacement_character():
    assert read(b'data: {"choices":[{"delta":{"content":"a\\ud83db"}}]}\n', FINISH)[0] == "a\ufffdb"


@pytest.mark.parametrize(
    "rest", [FINISH, DONE, b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}'], ids=["finish", "done", "cut"]
)
def test_half_a_surrogate_pair_at_the_end_of_the_answer_is_not_dropped(rest):
    deltas = read(b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n', rest)
    assert deltas[:2] == ["a", "\ufffd"]


@pytest.mark.parametrize(
    ("reason", "read_as"),
    [
        ('"content_filter"', "content_filter"),
        ('"st\\ud83dop"', "st\ufffdop"),
        ('"\\ud83d\\udc4b"', "👋"),
        (f'"{"x" * 5000}"', "x" * MAX_FINISH_REASON),
        ("true", "unknown"),
        ('{"type": "stop"}', "unknown"),
        ("[" * 900 + "]" * 900, "unknown"),
    ],
)
def test_any_finish_reason_becomes_one_that_can_be_sent_on(reason, read_as):
    stream = b'data: {"choices":[{"delta":{},"finish_reason":' + reason.encode() + b"}]}\n"
    assert read(stream) == [Beside(finish_reason=read_as)]


@pytest.mark.parametrize(
    "usage",
    [
        '{"total_tokens": 123456789012345678901234567890, "x": "\\ud83d"}',
        '{"a": ' + "[" * 300 + "]" * 300 + "}",
        '{"\\ud83d": 1}',
        '{"a": "' + "x" * 20_000 + '"}',
        "7",
        '["total_tokens"]',
    ],
)
def test_usage_that_cannot_be_sent_on_is_left_out(usage):
    stream = b'data: {"choices":[{"delta":{"content":"Hel"}}],"usage":' + usage.encode() + b"}\n"
    assert read(stream, FINISH) == ["Hel", Beside(finish_reason="stop")]


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        (b'data: {"choices": [{"delta": {"cont\n\n', AnswerMalformed),
        (b"data: [1, 2]\n\n", AnswerMalformed),
        (b'data: {"choices": [7]}\n\n', AnswerMalformed),
        (b'data: {"choices": [{"delta": {"content": 7}}]}\n\n', AnswerMalformed),
        (b"<html>\n", AnswerMalformed),
        (b"data: \xff\xfe\n", AnswerMalformed),
        (b"data: " + b"[" * 100_000 + b"\n", AnswerMalformed),
        (b'data: {"error": {"code": ' + b"[" * 1000 + b"]" * 1000 + b"}}\n", AnswerMalformed),
        (line({"error": {"code": 502, "message": "x"}}), AnswerFailed),
        (line({"error": "overloaded"}), AnswerFailed),
        (line({"error": {"code": 429, "message": "x"}}), RateLimited),
    ],
)
def test_what_is_no_chunk_breaks_the_answer_after_what_came_before(stream, reason):
    reader = ChunkReader()
    with pytest.raises(Broken) as broken:
        reader.feed(line(chunk("Hel")) + stream + line(chunk("lo")))
    assert broken.value.deltas == ["Hel"]
    assert type(broken.value.reason) is reason


def test_the_gateways_own_message_is_not_repeated():
    with pytest.raises(Broken) as broken:
        ChunkReader().feed(line({"error": {"code": 400, "message": "the prompt was: my secret"}}))
    assert "secret" not in str(broken.value.reason) + broken.value.reason.detail


def test_a_body_that_ends_in_the_middle_is_an_answer_cut():
    reader = ChunkReader()
    reader.feed(line(chunk("Hel")))
    with pytest.raises(Broken) as broken:
        reader.end()
    assert type(broken.value.reason) is AnswerCut


def test_a_line_without_end_is_not_held_for_ever():
    reader = ChunkReader()
    with pytest.raises(Broken) as broken:
        for _ in range(MAX_LINE // 65536 + 2):
            reader.feed(b"x" * 65536)
    assert type(broken.value.reason) is AnswerMalformed


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_that_is_too_long_breaks_the_answer_after_what_came_before_with_and_without_its_end(end):
    with pytest.raises(Broken) as broken:
        ChunkReader().feed(line(chunk("Hel")) + b": " + b"x" * MAX_LINE + end)
    assert broken.value.deltas == ["Hel"]
    assert type(broken.value.reason) is AnswerMalformed


@given(
    texts=st.lists(st.text(min_size=1), max_size=20),
    cuts=st.lists(st.integers(0, 4000), max_size=30),
    ascii=st.booleans(),
)
def test_any_text_cut_anywhere_arrives_whole(texts, cuts, ascii):
    stream = (
        b"".join(b"data: " + json.dumps(chunk(t), ensure_ascii=ascii).encode() + b"\n\n" for t in texts) + FINISH + DONE
    )
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    deltas = read(*(stream[a:b] for a, b in pairwise(edges)))
    assert [delta for delta in deltas if type(delta) is str] == texts


said = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(st.lists(st.tuples(said, said | st.none()) | st.tuples(st.none(), said), max_size=20), st.integers(1, 300))
def test_text_and_what_comes_beside_it_keep_their_order_wherever_they_are_cut(pairs, size):
    chunks = [chunk(text, **({} if beside is None else {"reasoning_content": beside})) for text, beside in pairs]
    stream = b"".join(map(line, chunks)) + FINISH + DONE
    expected = []
    for text, beside in pairs:
        expected += [] if beside is None else [{"delta": {"reasoning_content": beside}}]
        expected += [] if text is None else [text]
    deltas = read(*(stream[begin : begin + size] for begin in range(0, len(stream), size)))
    assert [delta if type(delta) is str else json.loads(delta.choice) for delta in deltas[:-1]] == expected


AWKWARD = ["assistant", "content", "delta", "stop", "c", "{", '"', "\\", "a", "a?", "\u00e9", "\n", "null"]
MORE = [{}, {"role": "assistant"}, {"role": "a"}, {"reasoning": "a"}, {"refusal": None}]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(AWKWARD) | st.none(), st.sampled_from(MORE), st.sampled_from(["c", "a"]), st.booleans()
        ),
        max_size=12,
    )
)
def test_a_form_that_was_learned_reads_no_line_otherwise(lines):
    stream = b"".join(
        b"data: " + json.dumps(chunk(text, **more) | {"id": name}, ensure_ascii=is_ascii).encode() + b"\n\n"
        for text, more, name, is_ascii in lines
    )
    assert ChunkReader().feed(stream) == ChunkReader(lessons=0).feed(stream)


@pytest.mark.parametrize(
    "odd",
    [
        b'data: {"id":"\\u0061","choices":[{"delta":{"content":"a"}}]}',  # the same string, spelled otherwise
        b'data: {"id":"a","choices":[{"delta":{"content":"\\u0061"}}]}',
        b'data: {"choices":[{"delta":{"content":"x","content":"a"}}]}',
        b'data: {"choices":[{"delta":{"content":"a","content":"x"}}]}',
        b'data: {"choices":[{"delta":{"a":"a","content":"a"}}]}',
    ],
)
def test_only_the_text_itself_is_taken_for_the_text(odd):
    lines = [odd, odd.replace(b'"a"', b'"b"'), odd.replace(b'"a"', b"7"), odd.replace(b'"a"', b'"c","d":"e"')]
    for line in lines:
        stream = odd + b"\n" + line + b"\n"
        assert outcome(ChunkReader(), stream) == outcome(ChunkReader(lessons=0), stream)


def outcome(reader, stream):
    try:
        return reader.feed(stream)
    except Broken as broken:
        return broken.deltas, broken.reason.code


def test_the_form_of_a_line_is_learned_once_and_no_more_often_than_is_bounded(monkeypatch):
    parsed = []
    loads = chunks.orjson.loads
    monkeypatch.setattr(chunks.orjson, "loads", lambda data: parsed.append(len(data)) or loads(data))
    reader = ChunkReader()
    reader.feed(line(chunk("first")))
    parsed.clear()
    assert reader.feed(line(chunk("second"))) == ["second"]
    assert parsed == [len('"second"')]
    parsed.clear()
    for number in range(100):
        reader.feed(line(chunk("text") | {"created": number}))
    assert len(parsed) <= 100 + 2 * chunks.LESSONS


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_any_bytes_give_deltas_or_a_clear_reason(pieces):
    reader = ChunkReader()
    try:
        for piece in pieces:
            reader.feed(piece)
        reader.end()
    except Broken as broken:
        assert broken.reason.sentence
