"""Fuzzing of what reads bytes from outside: examples are changed at random, and their readers must keep their promises.

    python -m tests.fuzz chunks 600        # target and seconds; a third word is the seed to repeat a run with

An input that ends in a new way joins the examples. One that breaks a promise is made shorter and printed.
"""

import base64
import binascii
import random
import re
import sys
import time
from itertools import pairwise

import orjson
from flask import Flask

from server.access.caller import Caller
from server.access.guard import Guard
from server.access.issuer import pick, read_key_set
from server.access.jwt import Tokens
from server.access.keys import Keyring, make_key
from server.access.tickets import Tickets
from server.chunks import MAX_EXTRA, MAX_FINISH_REASON, MAX_FORM, MAX_LINE, MAX_USAGE, Broken, ChunkReader
from server.completion_request import read_completion
from server.errors import BadCursor, BadRequest, InvalidToken
from server.prompt import MAX_CONVERSATION_ID, MAX_MODEL, MAX_PROMPT_CHARS, read_prompt
from server.routes.streams import MAX_CURSOR_DIGITS, read_cursor

from .provider import AUDIENCE, NAME, Provider

MAX_EXAMPLES = 500
MAX_INPUT = 64 * 1024  # bytes; only `swell` goes beyond
MAX_SHORTER = 2000  # tries to make an input shorter
VALUES = [b"null", b"true", b"NaN", b"-0", b"1e999", b"9" * 400, b"0.1", b"7", b'""', b'"x"', b"{}", b"[]", b"[7]"]
VALUE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9.]+|null|true|false|\{\}|\[\]')
WORDS = [
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"\n", b"\r", b"\r\n\r\n", b"\0", b".", b"=", b"&", b"%", b" "),
    *VALUES,
    *(b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", "\u2028👋\u0663".encode()),
    *(rb"\ud83d", rb"\udc4b", rb"\u0000", rb"\uFFFF"),
    *(b"data:", b"data: [DONE]\n", b": x\n", b"event: x\n"),
    *(b'"error"', b'"choices"', b'"delta"', b'"content"', b'"usage"', b'"finish_reason"', b'"code"', b'"role"'),
]


# How an input is changed


def flip(chance, data, _):
    place = chance.randrange(len(data) + 1)
    return data[:place] + bytes([chance.randrange(256)]) + data[place + 1 :]


def insert(chance, data, _):
    place = chance.randrange(len(data) + 1)
    return data[:place] + chance.choice(WORDS) + data[place:]


def replace(chance, data, _):
    a, b = stretch(chance, data)
    return data[:a] + chance.choice(WORDS) + data[b:]


def remove(chance, data, _):
    a, b = stretch(chance, data)
    return data[:a] + data[b:]


def repeat(chance, data, _):
    a, b = stretch(chance, data)
    return data[:b] + data[a:b] * chance.choice([1, 2, 10, 2000]) + data[b:]


def nest(chance, data, _):
    a, b = stretch(chance, data)
    depth = chance.choice([10, 300, 1100, 5000])
    before, after = chance.choice([(b"[", b"]"), (b'{"a":', b"}")])
    return data[:a] + before * depth + data[a:b] + after * depth + data[b:]


def splice(chance, data, other):
    return data[: chance.randrange(len(data) + 1)] + other[chance.randrange(len(other) + 1) :]


def swap(chance, data, other):
    """One value of some JSON becomes another, so that it stays JSON."""
    olds, news = list(VALUE.finditer(data)), VALUE.findall(other) + VALUES
    if not olds:
        return data
    old = chance.choice(olds)
    return data[: old.start()] + chance.choice(news) + data[old.end() :]


CHANGES = [*(flip, insert, replace, remove, splice) * 2, *[swap] * 4, repeat, nest]


def stretch(chance, data):
    return sorted(min(len(data), int(chance.random() ** 2 * len(data) + chance.randrange(2))) for _ in range(2))


def change(chance, examples):
    data = chance.choice(examples)
    for _ in range(chance.choice([1, 1, 2, 3, 8])):
        data = chance.choice(CHANGES)(chance, data, chance.choice(examples))[:MAX_INPUT]
    return data


# What is promised. Each `check` returns in which way the input ended.


class Chunks:
    """server/chunks.py: the same deltas wherever the bytes are cut, in bounded memory, each fit to be sent on."""

    def __init__(self):
        def line(content, **more):
            return b"data: " + orjson.dumps({"choices": [{"delta": {"content": content}, **more}]}) + b"\n\n"

        end = line("", finish_reason="stop") + b"data: [DONE]\n\n"
        self.examples = [
            line("Hel") + line("lo") + end,
            b'{"choices":[{"message":{"content":"Hello"},"finish_reason":"stop"}]}\n',
            rb'data: {"choices":[{"delta":{"content":"a\ud83d"}}]}' + b"\n" + line("b") + end,
            line("a") + b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n' + end,
            b'data: {"choices":[{"delta":{"tool_calls":[{"index":0,"id":"x","function":{"arguments":"{"}}]}}]}\n\n'
            + end,
            b'{"choices":[{"message":{"content":null,"tool_calls":[{"id":"x"}]},"logprobs":{"content":[7]}}]}\n',
            line("a") + b'data: {"error":{"code":429,"type":"x","message":"y"}}\n\n',
            line("a") + b'data: {"usage":{"x":"' + b"x" * (MAX_USAGE - 12) + b'"}}\n\n' + end,
            b": comment\nevent: message\nid: 7\nretry: 1\n" + line("a").replace(b"\n", b"\r\n") + b"data: [DONE]",
        ]

    def check(self, chance, data):
        if chance.random() < 0.01:
            data = swell(chance, data)
        whole, cut = read_chunks([data]), read_chunks(pieces(chance, data))
        assert whole == cut, "the same wherever it is cut"
        return whole[1:]


def read_chunks(pieces):
    """The deltas as they are sent on, why it broke, and whether [DONE] came: whether forms are learned or not."""
    told = read_with(ChunkReader(), pieces)
    assert told == read_with(ChunkReader(lessons=0), pieces)
    return told


def read_with(reader, pieces):
    deltas, reason = [], None
    try:
        for piece in pieces:
            deltas += reader.feed(piece)
            assert (
                sum(len(held) for held in vars(reader).values() if isinstance(held, bytes | str)) <= MAX_LINE + MAX_FORM
            )
        deltas += reader.end()
    except Broken as broken:
        deltas += broken.deltas
        reason = broken.reason.code
        assert len(broken.reason.detail) < 200
    told = []
    for delta in deltas:
        if isinstance(delta, str):
            told.append(orjson.dumps(delta))
            continue
        finish_reason, usage, choice = delta
        told.append(orjson.dumps([finish_reason, usage, orjson.Fragment(choice or b"null")]))
        assert not choice or orjson.dumps(orjson.loads(choice)) == choice
        assert len(choice) <= MAX_EXTRA
        assert len(finish_reason or "") <= MAX_FINISH_REASON
        assert len(orjson.dumps(usage)) <= MAX_USAGE
    return told, reason, reader.done


def pieces(chance, data):
    count = chance.choice([1, 2, 5, 50])
    edges = sorted(chance.randrange(len(data) + 1) for _ in range(count))
    return [data[a:b] for a, b in pairwise([0, *edges, len(data)])]


def swell(chance, data):
    """A line of about the greatest length, or of twice that."""
    place = chance.randrange(len(data) + 1)
    length = chance.choice([MAX_LINE - len(data), 2 * MAX_LINE]) + chance.randrange(len(data) + 100)
    return data[:place] + b"a" * length + data[place:]


class Cursors:
    """`Last-Event-ID` and `?after=`: a number of at most 12 digits, or BadCursor. The header goes first."""

    examples = (b"17\n", b"\nafter=17", b"17\nafter=18&ticket=x", b"\n", b"999999999999\nafter=%31")

    def __init__(self):
        self._app = Flask(__name__)

    def check(self, chance, data):
        header, _, query = data.decode("latin-1").partition("\n")
        query = query.encode("ascii", "ignore").decode()  # gunicorn lets nothing else through
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/",
            "SERVER_NAME": "x",
            "SERVER_PORT": "80",
            "wsgi.url_scheme": "http",
            "HTTP_LAST_EVENT_ID": header,
            "QUERY_STRING": query,
        }
        with self._app.request_context(environ):
            try:
                cursor = read_cursor()
            except BadCursor:
                assert not re.fullmatch("[0-9]{1,12}", header)
                return "bad"
        assert 0 <= cursor < 10**MAX_CURSOR_DIGITS
        assert not header or cursor == int(header)
        return len(str(cursor))


class TicketTexts:
    """A ticket is good as it was made, and in no other form."""

    def __init__(self):
        tickets = Tickets(lambda: b"a secret that is long enough", 100, lambda: 1_800_000_000.0)
        older = Tickets(lambda: b"a secret that is long enough", 100, lambda: 1_700_000_000.0)
        self._tickets = tickets
        self._good = tickets.make("stream")
        self.examples = [one.encode() for one in (self._good, older.make("stream"), tickets.make("other"), "1.x")]

    def check(self, chance, data):
        text = data.decode(errors="replace")
        fits = self._tickets.fits(text, "stream")
        assert fits == (text == self._good)
        return fits


class Authorizations:
    """The header `Authorization`: one of the two callers that it can be, or InvalidToken."""

    def __init__(self):
        provider = Provider()
        for algorithm in ("RS256", "ES256", "EdDSA"):
            provider.add(algorithm, algorithm)
        self._keys = read_key_set(provider.key_set())
        key = make_key("shop")
        tickets = Tickets(lambda: b"", 1)
        keyring = Keyring({key.entry.partition(":")[2]: "shop"})
        self._guard = Guard(keyring, Tokens(self, NAME, AUDIENCE), tickets)
        secrets = [key.key, *(provider.token(key_id, exp=2**40) for key_id in provider.keys)]
        secrets += [provider.token("ES256", without=["exp"]), provider.token("ES256", headers={"kid": "x"})]
        secrets += [provider.token("ES256", **claims) for claims in ({"sub": ""}, {"conversations": 7})]
        self.examples = [f"Bearer {secret}".encode() for secret in secrets]
        provider.close()

    def find(self, key_id, algorithm):
        """As Issuer."""
        return pick(self._keys, key_id, algorithm)

    def close(self):
        """As Issuer."""

    def check(self, chance, data):
        header = data.decode("latin-1")
        for text in (header, encoded(chance, header)):
            try:
                caller = self._guard.identify(text)
            except InvalidToken:
                caller = None
            assert caller in (None, Caller("key:shop"), Caller("jwt:ann"))
        return caller


def encoded(chance, header):
    """The header with one part of its token changed below its base64: it reaches the readers of JSON."""
    parts = header.partition(" ")[2].split(".")
    place = chance.randrange(len(parts))
    try:
        inside = base64.urlsafe_b64decode(parts[place].encode("ascii", "ignore") + b"===")
    except binascii.Error:
        return header
    changed = change(chance, [inside])
    parts[place] = base64.urlsafe_b64encode(changed).rstrip(b"=").decode()
    return "Bearer " + ".".join(parts)


class Prompts:
    """Bodies of questions: a Prompt within its limits, or BadRequest."""

    examples = (
        b'{"conversationId": "c-1", "prompt": "Hello", "temperature": 0.7, "max_tokens": 5, "model": "m"}',
        b'{"messages": [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hello"}]}',
    )

    def check(self, chance, data):
        try:
            prompt = read_prompt(data)
        except BadRequest as error:
            assert len(error.sentence) < 300
            return error.code
        orjson.dumps([(message.role, message.content) for message in prompt.messages])
        assert sum(len(message.content) for message in prompt.messages) <= MAX_PROMPT_CHARS
        assert 1 <= len(prompt.conversation_id or "-") <= MAX_CONVERSATION_ID
        assert 1 <= len(prompt.model or "-") <= MAX_MODEL
        assert 0 <= (prompt.temperature or 0) <= 2
        return [value is None for value in (prompt.conversation_id, prompt.temperature, prompt.max_tokens)]


class Completions:
    """Bodies of OpenAI's clients: a question that can be passed on, or BadRequest."""

    examples = (
        b'{"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": true, "n": 1, "seed": 7}',
        b'{"messages": [{"role": "developer", "content": [{"type": "text", "text": "Be kind"}]}, {"role": "user", '
        b'"content": "Hi"}], "stream_options": {"include_usage": true}, "metadata": {"conversation_id": "c"}}',
        b'{"messages": [{"role": "assistant", "content": null, "tool_calls": [{"id": "x"}]}, {"role": "tool", '
        b'"tool_call_id": "x", "content": "21"}], "tools": [{"type": "function"}], "max_tokens": 5}',
    )

    def check(self, chance, data):
        try:
            asked = read_completion(data)
        except BadRequest as error:
            assert len(error.sentence) < 300
            return error.code
        prompt = asked.prompt
        assert len(orjson.dumps([prompt.messages, dict(prompt.more)])) <= 3 * len(data) + 100
        assert not {"stream", "n", "messages", "model"} & set(prompt.more)
        assert 1 <= len(prompt.conversation_id or "-") <= MAX_CONVERSATION_ID
        assert 1 <= len(asked.model or "-") <= MAX_MODEL
        return [asked.stream, asked.include_usage, prompt.conversation_id is None]


TARGETS = {
    "chunks": Chunks,
    "cursors": Cursors,
    "tickets": TicketTexts,
    "authorizations": Authorizations,
    "prompts": Prompts,
    "completions": Completions,
}


def fuzz(name, seconds, seed):
    """Returns how many inputs were tried. Raises AssertionError with the input that broke a promise."""
    target, chance = TARGETS[name](), random.Random(seed)
    examples, endings, count = list(target.examples), set(), 0
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline or count < len(target.examples):
        data = target.examples[count] if count < len(target.examples) else change(chance, examples)
        state = chance.getstate()
        try:
            ending = repr(target.check(chance, data))
        except Exception as error:
            data = shorter(target, data, state, type(error))
            chance.setstate(state)
            broken = AssertionError(f"{name}, seed {seed}, input {count}: {error!r}\n{data!r}")
            raise broken from error
        count += 1
        if ending not in endings and len(examples) < MAX_EXAMPLES:
            endings.add(ending)
            examples.append(data)
    return count


def shorter(target, data, state, kind):
    """A shorter input that breaks the same way."""
    size, tries = len(data) // 2, 0
    while size and tries < MAX_SHORTER:
        place = 0
        while place < len(data) and tries < MAX_SHORTER:
            without = data[:place] + data[place + size :]
            tries += 1
            if breaks(target, without, state, kind):
                data = without
            else:
                place += size
        size //= 2
    return data


def breaks(target, data, state, kind):
    chance = random.Random()
    chance.setstate(state)
    try:
        target.check(chance, data)
    except kind:
        return True
    except Exception:  # noqa: BLE001 - another one
        return False
    return False


if __name__ == "__main__":
    target, seconds, seed, *_ = [*sys.argv[1:], random.randrange(2**32)]
    print(f"{fuzz(target, float(seconds), int(seed))} inputs, seed {seed}")
