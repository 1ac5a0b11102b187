"""Every door and every rule, tried from outside: where someone who reads for security begins.

Rules that are tried elsewhere, in the words of their tests:

who gets in        test_access: without_a_key, a_wrong_key, a_key_under_another_scheme, who_is_not_let_in
tokens             test_tokens: claims_that_are_wrong (expired, not valid yet, wrong audience), claims_that_are_missing,
                   without_a_signature (alg=none), signed_with_the_public_key (HMAC), that_was_changed, nonsense,
                   a_key_signs_with_its_own_algorithm, a_key_that_comes_along_in_the_token, which conversations
whose stream       test_access: another_callers_stream, another_callers_ended_stream, a_list_holds_the_callers_own
tickets            test_access: for_its_stream_alone, tampered_with, the_old_one_ends, another_secret_key
pages, names       test_browser: CORS, simple requests, headers of every answer, cookies, DNS rebinding
behind a proxy     test_nginx: what it lets through, Host, X-Forwarded-For
slow and many      test_overload: a_body_that_does_not_come, clients that do not read;
                   test_clients: more_turns_than_allowed
what leaks         test_secrets; test_access: no_key_and_no_ticket; test_tokens: tokens_are_in_no_log_line
events             test_sse: what no text of a model can do to a stream
the start          test_access: does_not_start_without_a_word_on_access; test_settings: what cannot be right
"""

import contextlib
import json
import time
import uuid

import pytest
import requests

from server.access.keys import make_key

from .conftest import PATIENCE, RelayServer, until
from .visitor import JSON, SSE, Visitor, path_of, refusal, ticket_of
from .wire import HOST, LAST, connect, get, headers, post, read_all, speak, statuses

ANN, BOB = make_key("ann"), make_key("bob")
KEEPALIVE = 5  # seconds, as in gunicorn.conf.py
IDLE = 1000  # connections


@pytest.fixture(scope="module")
def shared_guarded_relay(shared_sandbox):
    keys = f"{ANN.entry},{BOB.entry}"
    relay = RelayServer(shared_sandbox.url, ACCESS="keys", RELAY_API_KEYS=keys, DISCONNECT_GRACE="60")
    yield relay
    relay.stop()


@pytest.fixture
def guarded(shared_guarded_relay, sandbox):
    return shared_guarded_relay


def body_of(prompt, conversation="c-hardening", **fields):
    return json.dumps({"conversationId": conversation, "prompt": prompt} | fields).encode()


# Replays belong to their stream's owner


@pytest.mark.parametrize("cursor", ["0", "1", "2", "99999999999"])
def test_a_cursor_on_anothers_stream_tells_nothing_of_it(guarded, sandbox, prompt, cursor):
    """GHSA-84j6-jc92-77jm: whoever knew an id was replayed another's events."""
    sandbox.script(prompt, ["a", "b"])
    ann, bob = Visitor(guarded, ANN.key), Visitor(guarded, BOB.key)
    stream, own = ann.begin(prompt), bob.begin(prompt)
    until(lambda: ann.get(path_of(stream)).json()["status"] == "complete", "it ends")
    unknown = path_of({"id": uuid.uuid4().hex})
    bob.headers["Last-Event-ID"] = cursor
    ticket = f"ticket={ticket_of(own)}"
    nobody = Visitor(guarded)
    nobody.headers["Last-Event-ID"] = cursor
    for visitor, query in [
        (bob, "?"),
        (bob, f"?{ticket}"),
        (nobody, f"?{ticket}"),
        (nobody, f"?{ticket}&after={cursor}"),
    ]:
        answer = visitor.get(path_of(stream) + query, SSE)
        assert answer.status_code == 404
        assert refusal(answer) == refusal(visitor.get(unknown + query, SSE))


# Bytes in fields: nothing that comes in begins a header, an event or a log line of its own

FIELDS = [
    "Idempotency-Key",
    "Last-Event-ID",
    "Origin",
    "Host",
    "Authorization",
    "Accept",
    "X-Request-Id",
    "Traceparent",
]
CONTROLS = {"CR": b"a\rInjected: 1", "LF": b"a\nInjected: 1", "NUL": b"a\0b", "DEL": b"a\x7fb", "ESC": b"a\x1b[2Jb"}


@pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
@pytest.mark.parametrize("field", FIELDS)
def test_a_control_character_in_a_header_is_refused(relay, field, control):
    answer = speak(relay.url, b"GET /healthz HTTP/1.1\r\n" + HOST + field.encode() + b": " + control + b"\r\n" + LAST)
    assert statuses(answer) == [400]
    assert "injected" not in dict(headers(answer))


PLACES = [
    b"/streams/a%0d%0aInjected:%201",
    b"/conversations/a%0d%0aInjected:%201/streams",
    b"/streams/unknown?after=%0d%0aInjected:%201",
    b"/streams/unknown?ticket=%0d%0aInjected:%201",
    b"/page/a%0d%0aInjected:%201",
    b"/a%0d%0aInjected:%201",
    b"/%00",
    b"/streams/%00%ff%fe",
    b"/conversations/%ed%a0%80/streams",
]


@pytest.mark.parametrize("accept", [SSE, JSON])
@pytest.mark.parametrize("place", PLACES)
def test_escaped_line_ends_in_an_address_reach_no_header_and_no_log_line(relay, place, accept):
    answer = speak(relay.url, get(place, b"Accept: " + accept.encode()))
    assert statuses(answer)[0] in {200, 400, 404}
    assert b"njected" not in answer
    assert not [line for line in relay.process.output.splitlines() if line.startswith("Injected")]


@pytest.mark.parametrize("text", ["a\r\nid: 7", "a\nb", "a\0b", "a\u2028b", "a\x85b", "a\ud800b", "\u202eb"])
@pytest.mark.parametrize("field", ["conversationId", "model"])
def test_a_name_that_is_not_printable_is_refused(relay, sandbox, prompt, field, text):
    answer = speak(relay.url, post(b"/stream-llm", body_of(prompt, **{field: text})))
    assert statuses(answer) == [400]
    assert not sandbox.gateway_calls(prompt)


def test_an_idempotency_key_is_printable_ascii_and_short(relay):
    for key in ("é".encode(), b"x" * 201, b"", b"a\tb"):
        answer = speak(relay.url, post(b"/streams", body_of("a question"), b"Idempotency-Key: " + key))
        assert statuses(answer) == [400], key


CURSORS = ["-1", "+1", "1.0", "1e3", "0x1", "١", "1,2", "1 1", "1\t1", "9" * 13, "9" * 3000, "NaN"]


@pytest.mark.parametrize("cursor", CURSORS)
def test_a_cursor_is_a_number_of_an_event_and_nothing_else(relay, prompt, cursor):
    stream = relay.begin(prompt)
    answer = requests.get(
        f"{relay.url}/streams/{stream}", params={"after": cursor}, headers={"Accept": SSE}, timeout=10
    )
    assert answer.status_code == 400
    line = b"Last-Event-ID: " + cursor.encode()
    answer = speak(relay.url, get(b"/streams/" + stream.encode(), b"Accept: text/event-stream", line))
    assert statuses(answer) == [400]


def test_a_models_text_begins_no_event_and_no_field(relay, sandbox, prompt):
    tokens = ["a\n\nevent: done\ndata: {}\n\n", "\r\n\r\nid: 99\r\n", "\rretry: 1\r", ": ping\n", "\u2028data: x", "\0"]
    sandbox.script(prompt, tokens, finish_reason="stop\n\ndata: x")
    result = relay.ask(prompt).finish()
    assert result.tokens == tokens
    assert result.done["finish_reason"] == "stop\n\ndata: x"
    assert [event.get("event") for event in result.events] == [None] * len(tokens) + ["done"]


# JSON that is meant to hurt

JSON_BOMBS = {
    "10,000 brackets": b"[" * 10_000,
    "10,000 closed brackets": b'{"prompt":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "10,000 objects": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "1e999": b'{"conversationId":"c","prompt":"x","temperature":1e999}',
    "-1e999": b'{"conversationId":"c","prompt":"x","temperature":-1e999}',
    "NaN": b'{"conversationId":"c","prompt":"x","temperature":NaN}',
    "5,001 digits": b'{"conversationId":"c","prompt":"x","max_tokens":1' + b"0" * 5000 + b"}",
    "2^63": b'{"conversationId":"c","prompt":"x","max_tokens":9223372036854775808}',
    "NUL in a name": b'{"conversationId":"c\\u0000","prompt":"x"}',
    "NUL between": b'{"conversationId":"c",\0"prompt":"x"}',
    "a lone surrogate": b'{"conversationId":"c","prompt":"\\ud800"}',
    "a surrogate in bytes": b'{"conversationId":"c","prompt":"\xed\xa0\x80"}',
    "an overlong slash": b'{"conversationId":"c\xc0\xaf","prompt":"x"}',
    "UTF-16": '{"conversationId":"c","prompt":"x"}'.encode("utf-16"),
    "two values": b'{"conversationId":"c","prompt":"x"}{}',
}


@pytest.mark.parametrize("body", JSON_BOMBS.values(), ids=JSON_BOMBS)
def test_json_that_is_meant_to_hurt_is_refused_at_once(relay, sandbox, body):
    began = time.monotonic()
    assert statuses(speak(relay.url, post(b"/stream-llm", body))) == [400]
    assert time.monotonic() - began < 1
    assert sandbox.calls()["gateway"]["calls"] == 0


def test_a_nul_in_a_prompt_is_text_like_any_other(relay, sandbox):
    prompt = f"a\0b {uuid.uuid4().hex}"
    sandbox.script(prompt, ["fine"])
    assert relay.ask(prompt).finish().text == "fine"


# HTTP framing: where one request ends and the next begins is never in doubt (RFC 9112, 6.3 and 11.2)

SMUGGLED = b"GET /metrics HTTP/1.1\r\n" + HOST + LAST
HEAD = b"POST /streams HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n"
AMBIGUOUS = {
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "the same length twice": HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    "a list of lengths": HEAD + b"Content-Length: 2, 2\r\n\r\n{}",
    "a length with a sign": HEAD + b"Content-Length: +2\r\n\r\n{}",
    "a length below zero": HEAD + b"Content-Length: -1\r\n\r\n{}",
    "a length in hex": HEAD + b"Content-Length: 0x2\r\n\r\n{}",
    "a length with an underscore": HEAD + b"Content-Length: 1_0\r\n\r\n{}",
    "a length in other digits": HEAD + "Content-Length: ²\r\n\r\n{}".encode("latin-1"),
    "a length of 5,000 digits": HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
    "length and chunks": HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": CHUNKED + b"Content-Length: 4\r\n\r\n0\r\n\r\n",
    "chunks twice": CHUNKED + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks, then identity": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "an unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a coding that is no end": HEAD + b"Transfer-Encoding: gzip\r\n\r\n{}",
    "a tab in the coding": HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded header": HEAD + b"X-A: b\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded first header": b"POST /streams HTTP/1.1\r\n X: a\r\n" + HOST + LAST,
    "a header without a name": HEAD + b": chunked\r\n\r\n",
    "a header without a colon": HEAD + b"Transfer-Encoding\r\n\r\n",
    "line ends without CR": HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 2\n\n{}",
    "one line end without CR": HEAD + b"X-A: b\nContent-Length: 2\r\n\r\n{}",
    "two hosts": HEAD + HOST + b"Content-Length: 2\r\n\r\n{}",
    "chunks in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0") + b"\r\n0\r\n\r\n",
    "HTTP/0.9": b"GET /healthz\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.10": b"GET /healthz HTTP/1.10\r\n" + HOST + b"\r\n",
    "two spaces": b"GET  /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method in lower case": b"get /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "a control character in the address": b"GET /health\x01z HTTP/1.1\r\n" + HOST + b"\r\n",
    "a raw byte in the address": b"GET /health\xe9z HTTP/1.1\r\n" + HOST + b"\r\n",
    "an authority for an address": b"GET localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.mark.parametrize("data", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_can_be_read_in_two_ways_is_refused_and_ends_the_connection(relay, data):
    answer = speak(relay.url, data + SMUGGLED)
    assert statuses(answer) == [400], "one answer, and what comes behind is not looked at"
    assert b'"code":"bad_request"' in answer
    assert b"relay_" not in answer, "no metrics"


BAD_CHUNKS = {
    "no size": b"\r\n{}\r\n0\r\n\r\n",
    "no hex": b"zz\r\n{}\r\n0\r\n\r\n",
    "a prefix": b"0x2\r\n{}\r\n0\r\n\r\n",
    "a sign": b"+2\r\n{}\r\n0\r\n\r\n",
    "below zero": b"-2\r\n{}\r\n0\r\n\r\n",
    "an underscore": b"0_2\r\n{}\r\n0\r\n\r\n",
    "a space before": b" 2\r\n{}\r\n0\r\n\r\n",
    "a space behind": b"2 \r\n{}\r\n0\r\n\r\n",
    "a bad extension": b"2;a=\r\r\n{}\r\n0\r\n\r\n",
    "too small": b"1\r\n{}\r\n0\r\n\r\n",
    "no line end behind": b"2\r\n{}0\r\n\r\n",
    "LF alone": b"2\n{}\n0\n\n",
    "an endless size": b"0" * 20_000,
    "an endless trailer": b"2\r\n{}\r\n0\r\n" + b"X: y\r\n" * 200_000,
    "a forbidden trailer": b"2\r\n{}\r\n0\r\nContent-Length: 4\r\n\r\n",
    "a folded trailer": b"2\r\n{}\r\n0\r\nX: y\r\n z\r\n\r\n",
}


@pytest.mark.parametrize("chunks", BAD_CHUNKS.values(), ids=BAD_CHUNKS)
def test_chunks_that_are_none_are_refused_and_end_the_connection(relay, chunks):
    answer = speak(relay.url, CHUNKED + b"\r\n" + chunks + SMUGGLED)
    assert statuses(answer) == [400]
    assert b"relay_" not in answer
    assert "request broke" not in relay.process.output, "that is no failure of ours"


def test_good_chunks_are_read_and_the_request_behind_them_as_well(relay, sandbox, prompt):
    body = body_of(prompt)
    chunks = (
        b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in (body[:1], body[1:9], body[9:])) + b"0\r\n\r\n"
    )
    answer = speak(relay.url, CHUNKED + b"\r\n" + chunks + SMUGGLED)
    assert statuses(answer) == [201, 200]
    until(lambda: sandbox.gateway_calls(prompt) == 1, "it is asked once")


def test_pipelined_requests_are_answered_in_order(relay):
    """Behind a stream: test_clients, a_pipelined_request_is_no_hang_up."""
    first, second = (HEAD + b"Content-Length: 2\r\n\r\n{}", b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n")
    assert statuses(speak(relay.url, first + second + get(b"/nowhere"))) == [400, 200, 404]


def test_what_lies_behind_a_body_of_wrong_length_is_not_repeated_anywhere(relay, prompt):
    """It is read as the next request, and can be the end of a prompt."""
    answer = speak(relay.url, HEAD + b"Content-Length: 2\r\n\r\n{}" + prompt.encode() + b"\r\n\r\n")
    assert statuses(answer) == [400, 400]
    assert prompt.encode() not in answer
    assert prompt not in relay.process.output


def test_a_body_that_no_one_reads_is_not_taken_for_a_request(guarded):
    """Refused for its key before its body was looked at: what is left of the body is passed over."""
    answer = speak(guarded.url, HEAD + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED + get(b"/healthz"))
    assert statuses(answer) == [401, 200]
    assert b"relay_" not in answer


# What a request cannot change


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"])
def test_no_header_changes_the_method(relay, sandbox, prompt, name):
    sandbox.script(prompt, ["a", "b"], gate=True)
    stream = relay.begin(prompt)
    requests.get(f"{relay.url}/streams/{stream}?_method=DELETE", headers={"Accept": JSON, name: "DELETE"}, timeout=10)
    answer = requests.post(f"{relay.url}/streams/{stream}", headers={name: "DELETE"}, data="_method=DELETE", timeout=10)
    assert answer.status_code == 405
    assert relay.state(stream)["status"] == "running"


def test_no_header_changes_the_path(relay):
    for name in (b"SCRIPT_NAME", b"PATH_INFO", b"X-Original-URL", b"X-Rewrite-URL", b"X-Forwarded-Prefix"):
        answer = speak(relay.url, get(b"/healthz", name + b": /metrics"))
        assert statuses(answer) == [200], name
        assert b'"status":"ok"' in answer


def test_a_header_with_an_underscore_is_none(relay, sandbox, prompt):
    """`Idempotency_Key` and `Idempotency-Key` would become one."""
    for _ in range(2):
        assert statuses(speak(relay.url, post(b"/streams", body_of(prompt), b"Idempotency_Key: a"))) == [201]
    until(lambda: sandbox.gateway_calls(prompt) == 2, "two turns")
    assert statuses(speak(relay.url, post(b"/streams", b"{}", b"Content_Type: text/plain"))) == [400]


def test_no_one_says_from_where_a_request_came(relay):
    forged = [b"X-Forwarded-For: 203.0.113.9", b"X-Real-IP: 203.0.113.9", b"Forwarded: for=203.0.113.9"]
    path = f"/{uuid.uuid4().hex}"
    assert statuses(speak(relay.url, get(path.encode(), *forged))) == [404]
    until(lambda: f'127.0.0.1 \\"GET {path}\\" 404' in relay.process.output, "the access log")
    assert "203.0.113.9" not in relay.process.output


OUTSIDE = [
    b"/page/../settings.py",
    b"/page/..%2fsettings.py",
    b"/page/..%2f..%2f.env",
    b"/page/%2e%2e/settings.py",
    b"/page/%2e%2e%2fsettings.py",
    b"/page/..%5csettings.py",
    b"/page/..\\settings.py",
    b"/page//etc/passwd",
    b"/page/%2fetc%2fpasswd",
    b"/page/./page.js",
    b"/page/page.js%00.txt",
    b"/page/page.js/",
    b"/page/PAGE.JS",
    b"/page/index.html",
    b"/page/",
    b"/../server/settings.py",
    b"//etc/passwd",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_the_page_has_its_own_files_and_no_other(relay, path):
    answer = speak(relay.url, get(path))
    assert statuses(answer)[0] in {400, 404}
    assert b"import" not in answer
    assert b"root:" not in answer


# Too large, too slow, too many


def test_an_address_that_is_too_long_is_refused(relay):
    answer = speak(relay.url, get(b"/" + b"a" * 5000))
    assert statuses(answer) == [414]
    assert b'"code":"address_too_long"' in answer
    assert b"aaaa" not in answer


def test_the_longest_conversation_id_still_fits_into_an_address(relay, prompt):
    conversation = "\U0001f600" * 200
    stream = relay.begin(prompt, conversation)
    (listed,) = Visitor(relay).list(conversation).json()["streams"]
    assert listed["id"] == stream


def test_headers_that_are_too_large_or_too_many_are_refused(relay):
    for lines in ([b"Authorization: Bearer " + b"a" * 8200], [b"X-%d: a" % n for n in range(70)]):
        answer = speak(relay.url, get(b"/healthz", *lines))
        assert statuses(answer) == [431]
        assert b'"code":"headers_too_large"' in answer
    assert statuses(speak(relay.url, get(b"/healthz", b"Authorization: Bearer " + b"a" * 8000))) == [200]


def test_a_head_that_never_ends_is_cut_off_by_its_size(relay):
    with connect(relay.url) as client, contextlib.suppress(ConnectionError):
        for _ in range(200):
            client.sendall(b"GET /healthz HTTP/1.1\r\n" + HOST + b"X-A: " + b"a" * 8000 + b"\r\n")
            client.sendall((b"X-A: " + b"a" * 8000 + b"\r\n") * 20)
        assert statuses(read_all(client)) in ([431], [400])


def test_idle_connections_and_slow_heads_hold_no_one_up_and_end_soon(start_relay):
    relay = start_relay(LOG_LEVEL="INFO")
    begun = b"GET /healthz HTTP/1.1\r\n" + HOST + b"X-Slow: "
    with contextlib.ExitStack() as clients:
        idle = [clients.enter_context(connect(relay.url, patience=PATIENCE)) for _ in range(IDLE)]
        for client in idle[::2]:
            client.sendall(begun)
        asked = time.monotonic()
        assert requests.get(f"{relay.url}/healthz", timeout=KEEPALIVE).ok
        assert time.monotonic() - asked < KEEPALIVE / 2, "someone new does not wait until they have ended"
        assert [client.recv(1) for client in idle] == [b""] * IDLE


def test_a_head_that_comes_byte_by_byte_gets_no_longer_for_it(relay):
    with connect(relay.url) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\n" + HOST + b"X-Slow: ")
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < 3 * KEEPALIVE:
                client.sendall(b"a")
                time.sleep(0.1)
        assert time.monotonic() - began < 2 * KEEPALIVE


def test_a_connection_that_is_kept_for_more_ends_soon_without(relay):
    with connect(relay.url) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n")
        answer = b""
        while not answer.endswith(b"}\n"):
            answer += client.recv(65536)
        assert statuses(answer) == [200]
        began = time.monotonic()
        assert client.recv(65536) == b""
        assert KEEPALIVE / 2 < time.monotonic() - began < 2 * KEEPALIVE


def test_who_comes_when_all_places_are_taken_waits_until_the_idle_ones_end(start_relay):
    relay = start_relay(MAX_TURNS="1")
    with contextlib.ExitStack() as clients:
        for _ in range(2 * 1 + 100):
            clients.enter_context(connect(relay.url))
        assert requests.get(f"{relay.url}/healthz", timeout=KEEPALIVE + 5).ok
