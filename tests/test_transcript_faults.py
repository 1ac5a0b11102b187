"""Each way in which the transcript's link can fail: the client notices nothing, and no text is missing."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from server.transcript.handshake import Answer, is_accepted, read_answer, request

from .conftest import ROOT, until

TOKENS = [f"t{i} " for i in range(30)]
TEXT = "".join(TOKENS)


def holds_all_in_order(messages, tokens):
    """Whether all tokens are there in order; after a loss, a part may have been sent again."""
    position = 0
    for token in "".join(message["text"] for message in messages).split():
        number = int(token[1:])
        if number > position:
            return False
        position = max(position, number + 1)
    return position == len(tokens)


def lines(relay, conversation, message):
    return [e for e in relay.log if e.get("conversation") == conversation and message in e["message"]]


def links_lost(relay, conversation):
    return lines(relay, conversation, "link lost")


def settle(relay, stream):
    """Waits for the end of it: a link that is yet to come would meet the fault of the next test."""
    until(lambda: relay.state(stream)["transcript"]["state"] == "delivered", "delivered", patience=40)


def incomplete(relay, conversation):
    return lines(relay, conversation, "transcript incomplete")


@pytest.mark.parametrize(
    ("fault", "order"),
    [
        ("refused_401", {}),
        ("refused_403", {"calls": 2}),
        ("refused_503", {"retry_after": 1}),
        ("closed_at_once", {"calls": 2}),
        ("closed_after", {"after": 1}),
        ("gone", {"after": 1, "calls": 3}),
        ("no_pongs", {}),
        ("mute", {"after": 1}),
        ("huge_frame", {"after": 1}),
    ],
)
def test_a_lost_link_is_opened_again_and_no_text_is_missing(relay, sandbox, prompt, conversation, fault, order):
    sandbox.script(prompt, TOKENS, interval_ms=10)
    sandbox.fault("transcript", fault, **order)
    result = relay.ask(prompt, conversation).finish()
    assert result.text == TEXT
    assert result.done["status"] == "complete"
    # A dead link is noticed by the pong that does not come, after 20 s.
    (first, *_) = until(lambda: links_lost(relay, conversation), "the log line", patience=40)
    assert first["detail"]
    settle(relay, result.id)
    assert holds_all_in_order(sandbox.conversation(conversation)["messages"], TOKENS)


def test_text_that_waits_behind_a_busy_link_leaves_as_one_message(relay, sandbox, prompt, conversation):
    sandbox.script(prompt, ["x" * 200] * 3000)
    sandbox.fault("transcript", "slow_reader", seconds=0.05)
    result = relay.ask(prompt, conversation).finish()
    assert result.done["status"] == "complete"
    until(lambda: sandbox.text_of(conversation) == result.text, "the transcript", patience=60)
    assert len(sandbox.conversation(conversation)["messages"]) < 300


def test_a_mute_link_does_not_delay_the_client(relay, sandbox, prompt, conversation):
    sandbox.script(prompt, TOKENS, interval_ms=5)
    sandbox.fault("transcript", "mute")
    result = relay.ask(prompt, conversation).finish()
    assert result.text == TEXT
    settle(relay, result.id)


def test_a_token_longer_than_a_message_may_be_is_sent_in_pieces(relay, sandbox, prompt, conversation):
    long = "abcdefgh" * 5000
    sandbox.script(prompt, ["a", long, "b"])
    relay.ask(prompt, conversation).finish()
    until(lambda: sandbox.text_of(conversation) == f"a{long}b", "the transcript")


def test_a_platform_that_refuses_every_login_does_not_stop_the_answer(start_relay, sandbox, prompt, conversation):
    relay = start_relay(GATEWAY_API_KEY="any", OAUTH_CLIENT_SECRET="wrong-wrong-wrong")
    result = relay.ask(prompt, conversation).finish()
    assert result.error["code"] == "gateway_unauthorized"
    until(lambda: any("link lost" in e["message"] for e in relay.log), "the log line")


@pytest.mark.parametrize(
    ("fault", "detail"),
    [
        ("slow_handshake", "handshake not done within 10 s"),
        ("huge_frame", "the platform sent more than 16384 bytes at once"),
        ("endless_message", "the platform sent more than 16384 bytes at once"),
    ],
)
def test_what_the_platform_sends_is_bounded_in_size_and_time(relay, sandbox, prompt, conversation, fault, detail):
    sandbox.script(prompt, TOKENS, interval_ms=10)
    sandbox.fault("transcript", fault)
    result = relay.ask(prompt, conversation).finish()
    (lost, *_) = until(lambda: links_lost(relay, conversation), "the log line")
    settle(relay, result.id)
    assert lost["detail"] == detail


@pytest.mark.parametrize("fault", ["cookie", "odd_cookie"])
def test_a_cookie_is_neither_kept_nor_a_reason_to_fail(relay, sandbox, prompt, conversation, fault):
    sandbox.script(prompt, TOKENS)
    sandbox.fault("transcript", fault)
    for name in (conversation, f"{conversation}-other"):
        relay.ask(prompt, name).finish()
        until(lambda c=name: sandbox.text_of(c) == TEXT, "the transcript")
        assert not links_lost(relay, name)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (1012, "closed by the platform: 1012 service restart"),
        (1013, "closed by the platform: 1013 try again later"),
        (1008, "closed by the platform: 1008 policy violation"),
        (4321, "closed by the platform: 4321"),
    ],
)
def test_the_log_says_in_words_why_the_platform_closed(relay, sandbox, prompt, conversation, code, words):
    sandbox.script(prompt, TOKENS, interval_ms=10)
    sandbox.fault("transcript", "closed_after", after=1, code=code)
    result = relay.ask(prompt, conversation).finish()
    (lost, *_) = until(lambda: links_lost(relay, conversation), "the log line")
    settle(relay, result.id)
    assert lost["detail"] == words


def test_a_turn_that_is_not_delivered_outlives_its_retention(start_relay, sandbox, prompt, conversation):
    relay = start_relay(RETAIN_SECONDS="0")
    long, short = f"{prompt} long", f"{prompt} short"
    sandbox.script(long, ["word "] * 5000)  # more than a turn holds in memory once it has ended
    sandbox.script(short, TOKENS)
    sandbox.fault("transcript", "refused_503", retry_after=12)  # until after a purge
    relay.ask(long, conversation).finish()
    relay.ask(short, conversation).finish()
    until(lambda: sandbox.text_of(conversation) == "word " * 5000 + TEXT, "the transcript", patience=40)
    assert not incomplete(relay, conversation)


def test_text_that_nobody_could_deliver_in_time_is_forgotten_with_a_word(start_relay, sandbox, prompt, conversation):
    relay = start_relay(RETAIN_SECONDS="0", TRANSCRIPT_RETAIN_SECONDS="1")
    sandbox.script(prompt, TOKENS)
    sandbox.fault("transcript", "refused_503", calls=100, retry_after=60)
    turn = relay.ask(prompt, conversation).finish().id
    (line,) = until(lambda: incomplete(relay, conversation), "the log line", patience=40)
    assert line["turn"] == turn
    assert line["level"] == "ERROR"


def test_a_journal_that_fails_costs_no_text(sandbox, conversation):
    command = [sys.executable, "-m", "tests.failing_journal", sandbox.url, conversation]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert sandbox.text_of(conversation) == "".join(f"t{number} " for number in range(3000))
    assert "secret" not in ended.stderr


def test_more_conversations_than_may_be_open_all_have_their_turn(start_relay, sandbox, prompt, conversation):
    relay = start_relay(MAX_TURNS="2")
    sandbox.script(prompt, TOKENS)
    sandbox.fault("transcript", "refused_503", calls=6, retry_after=1)
    names = [f"{conversation}-{number}" for number in range(8)]
    for name in names:
        relay.ask(prompt, name).finish()
    for name in names:
        until(lambda n=name: sandbox.text_of(n) == TEXT, "the transcript", patience=40)
    until(lambda: requests.get(f"{relay.url}/healthz", timeout=10).json()["links"] <= 2, "few are open")


def test_a_worker_that_stops_says_goodbye_to_its_links(start_sandbox, start_relay, prompt):
    sandbox = start_sandbox()
    relay = start_relay(GENESYS_BASE_URL=sandbox.url)
    sandbox.script(prompt, TOKENS)
    for number in range(3):
        relay.ask(prompt, f"c-{number}").finish()
        until(lambda n=number: sandbox.text_of(f"c-{n}") == TEXT, "the transcript")
    until(lambda: len([e for e in relay.log if e["message"] == "turn ended"]) == 3, "the turns are over")
    relay.process.process.send_signal(signal.SIGTERM)
    assert relay.process.process.wait(20) == 0
    assert sandbox.calls()["transcript"]["closes"] == {"1001": 3}


def test_what_a_stopping_worker_could_not_send_is_named(start_relay, sandbox, prompt, conversation):
    relay = start_relay(GUNICORN_CMD_ARGS="--graceful-timeout 4")
    sandbox.script(prompt, TOKENS)
    sandbox.fault("transcript", "mute")
    result = relay.ask(prompt, conversation).finish()
    begin = time.monotonic()
    relay.process.process.send_signal(signal.SIGTERM)
    assert relay.process.process.wait(20) == 0
    assert time.monotonic() - begin < 10
    (line,) = lines(relay, conversation, "left to the next worker")
    assert line["turns"] == result.id


@contextmanager
def connect_proxy():
    """A proxy that knows CONNECT alone (RFC 9110, 9.3.6); yields its address and the heads that it was sent."""
    heads = []

    def serve(client):
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        heads.append(head.decode())
        host, port = head.split()[1].decode().split(":")
        with client, socket.create_connection((host, port)) as upstream:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            other = {client: upstream, upstream: client}
            while True:
                for end in select.select([client, upstream], [], [])[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    other[end].sendall(data)

    def accept():
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", heads
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_the_link_goes_through_the_proxy_that_the_environment_names(
    start_relay, sandbox, prompt, conversation, variable
):
    sandbox.script(prompt, TOKENS)
    port = urlsplit(sandbox.url).port
    with connect_proxy() as (address, heads):
        relay = start_relay(
            **{variable: f"user:pass%20word@{address}", "NO_PROXY": "127.0.0.1"},
            GENESYS_TRANSCRIPT_URL=f"ws://localhost:{port}/v2/conversations/websockets",
        )
        relay.ask(prompt, conversation).finish()
        until(lambda: sandbox.text_of(conversation) == TEXT, "the transcript")
    (head,) = heads
    assert head.startswith(f"CONNECT localhost:{port} ")
    assert "Proxy-Authorization: Basic dXNlcjpwYXNzIHdvcmQ=" in head


def test_no_proxy_holds_for_the_link_as_requests_reads_it(start_relay, sandbox, prompt, conversation):
    sandbox.script(prompt, TOKENS)
    place = f"localhost:{urlsplit(sandbox.url).port}"
    relay = start_relay(GENESYS_BASE_URL=f"http://{place}", HTTP_PROXY="http://127.0.0.1:9", NO_PROXY=place)
    relay.ask(prompt, conversation).finish()
    until(lambda: sandbox.text_of(conversation) == TEXT, "the transcript")
    assert not links_lost(relay, conversation)


KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # that of RFC 6455, 1.3
OPENED = {
    "upgrade": "websocket",
    "connection": "keep-alive, Upgrade",
    "sec-websocket-accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
}


def test_the_handshake_asks_with_the_token_in_the_query_alone():
    head = request("wss://h:8443/v2/ws?a=b", "to/ken", KEY).decode()
    assert head.startswith("GET /v2/ws?a=b&access_token=to%2Fken HTTP/1.1\r\nHost: h:8443\r\n")
    assert head.endswith("\r\n\r\n")
    assert "Authorization" not in head


def test_the_answer_is_read_whatever_the_case_of_its_names():
    answer = read_answer(b"HTTP/1.1 101 Switching Protocols\r\nUPGRADE:  WebSocket \r\nX: a: b")
    assert answer == Answer(101, {"upgrade": "WebSocket", "x": "a: b"})


@pytest.mark.parametrize("head", [b"", b"SSH-2.0-OpenSSH_9.6", b"HTTP/1.1 abc", b"HTTP/1.1"])
def test_what_is_not_http_is_no_answer(head):
    with pytest.raises(ValueError, match=r"not HTTP|invalid literal"):
        read_answer(head)


@pytest.mark.parametrize(
    ("status", "changed", "accepted"),
    [
        (101, {}, True),
        (200, {}, False),
        (101, {"upgrade": "h2c"}, False),
        (101, {"connection": "close"}, False),
        (101, {"sec-websocket-accept": "another"}, False),
        (101, {"sec-websocket-extensions": "permessage-deflate"}, False),
        (101, {"sec-websocket-protocol": "chat"}, False),
    ],
)
def test_only_the_link_that_was_asked_for_is_accepted(status, changed, accepted):
    assert is_accepted(Answer(status, OPENED | changed), KEY) is accepted


def test_parts_of_one_token_have_ids_of_their_own(start_relay, sandbox, prompt, conversation):
    relay = start_relay(TRANSCRIPT_MESSAGE_ID="1", TRANSCRIPT_MAX_CHARS="1000")
    sandbox.script(prompt, ["a", "x" * 2500, "b"])
    stream = relay.ask(prompt, conversation).finish().id
    until(lambda: sandbox.text_of(conversation) == f"a{'x' * 2500}b", "the transcript")
    ids = [message["id"] for message in sandbox.conversation(conversation)["messages"]]
    assert len(set(ids)) == len(ids), "a receiver that drops repeats drops none of these"
    assert [f"{stream}:2-2.{part}" for part in (1, 2, 3)] == [name for name in ids if name.startswith(f"{stream}:2-")]


def test_a_killed_worker_takes_back_what_lay_in_its_buffers(start_sandbox, start_relay, prompt, conversation):
    """Its kernel would go on to send it, behind what the next link repeats."""
    sandbox = start_sandbox()
    relay = start_relay(GENESYS_BASE_URL=sandbox.url, DISCONNECT_GRACE="-1")
    sandbox.fault("transcript", "mute", after=1)
    sandbox.script(prompt, ["y" * 4000] * 200)
    stream = relay.begin(prompt, conversation)
    until(lambda: relay.state(stream)["status"] == "complete", "the answer")
    (worker,) = relay.workers
    until(lambda: unsent_bytes(sandbox.url) > 0, "text waits in the kernel")
    os.kill(worker, signal.SIGKILL)
    until(lambda: unsent_bytes(sandbox.url) == 0, "the kernel has let go of it", patience=3)


def unsent_bytes(url):
    """What lies in send buffers towards this place (proc_net_tcp in the kernel's documentation)."""
    there = f"0100007F:{urlsplit(url).port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[4].partition(":")[0], 16) for row in rows if row[2] == there)
