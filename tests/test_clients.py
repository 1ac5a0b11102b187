"""Clients that leave, and clients that send nonsense."""

import json
import os
import socket
import struct
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from .conftest import until


def abandoned(sandbox):
    return sandbox.calls()["gateway"]["abandoned"]


def test_a_client_that_leaves_is_noticed_within_a_second(start_relay, sandbox, prompt):
    relay = start_relay(DISCONNECT_GRACE="0")
    sandbox.script(prompt, ["a", "b"], gate=True)
    answer = relay.ask(prompt)
    assert answer.next_token() == "a"
    answer.close()
    left = time.monotonic()
    until(lambda: abandoned(sandbox) == 1, "the gateway's connection is closed")
    assert time.monotonic() - left < 1
    assert relay.logged(answer.id, "turn ended")["status"] == "cancelled"


def test_a_client_that_resets_its_connection_is_noticed_as_well(start_relay, sandbox, prompt):
    relay = start_relay(DISCONNECT_GRACE="0")
    sandbox.script(prompt, ["a", "b"], gate=True)
    body = json.dumps({"conversationId": "c-reset", "prompt": prompt}).encode()
    head = (
        b"POST /stream-llm HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )
    address = urlsplit(relay.url)
    with socket.create_connection((address.hostname, address.port)) as client:
        client.sendall(head + body)
        until(lambda: b'"token"' in client.recv(65536), "the first token")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: abandoned(sandbox) == 1, "the gateway's connection is closed", patience=2)


def test_within_the_grace_the_turn_goes_on_without_its_client(start_relay, sandbox, prompt, conversation):
    relay = start_relay(DISCONNECT_GRACE="30")
    sandbox.script(prompt, ["a", "b", "c"], gate=True)
    answer = relay.ask(prompt, conversation)
    assert answer.next_token() == "a"
    answer.close()
    sandbox.receipt(prompt, 3)
    assert relay.logged(answer.id, "turn ended")["status"] == "complete"
    until(lambda: sandbox.text_of(conversation) == "abc", "the transcript")
    assert abandoned(sandbox) == 0


def test_after_the_grace_the_turn_is_cancelled(start_relay, sandbox, prompt):
    relay = start_relay(DISCONNECT_GRACE="1")
    sandbox.script(prompt, ["a", "b"], gate=True)
    answer = relay.ask(prompt)
    assert answer.next_token() == "a"
    answer.close()
    left = time.monotonic()
    assert relay.logged(answer.id, "turn ended")["status"] == "cancelled"
    assert 0.9 < time.monotonic() - left < 3


def test_a_turn_without_a_client_can_go_on_for_ever(start_relay, sandbox, prompt):
    relay = start_relay(DISCONNECT_GRACE="-1")
    sandbox.script(prompt, ["a", "b"], gate=True)
    answer = relay.ask(prompt)
    assert answer.next_token() == "a"
    answer.close()
    other = f"{prompt} count to 30"
    sandbox.script(other, ["x "] * 15, interval_ms=100)
    relay.ask(other).finish()
    sandbox.receipt(prompt, 2)
    assert relay.logged(answer.id, "turn ended")["status"] == "complete"


def test_a_pipelined_request_is_no_hang_up(relay, sandbox, prompt):
    """Bytes behind the request make the connection readable, and are none of the stream's business."""
    sandbox.script(prompt, ["a", "b", "c"], interval_ms=50)
    body = json.dumps({"conversationId": "c-pipe", "prompt": prompt}).encode()
    head = (
        b"POST /stream-llm HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )
    address = urlsplit(relay.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as client:
        client.sendall(head + body + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        received = b""
        while piece := client.recv(65536):
            received += piece
    assert received.count(b"event: done") == 1
    assert b'"status":"complete"' in received
    assert b'"status":"ok"' in received


def test_a_client_that_leaves_with_bytes_unread_is_noticed_within_a_second(start_relay, sandbox, prompt):
    relay = start_relay(DISCONNECT_GRACE="0")
    sandbox.script(prompt, ["a", "b"], gate=True)
    body = json.dumps({"conversationId": "c-extra", "prompt": prompt}).encode()
    head = (
        b"POST /stream-llm HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )
    address = urlsplit(relay.url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as client:
        client.sendall(head + body)
        until(lambda: b'"token"' in client.recv(65536), "the first token")
        client.sendall(b"x")
        before = cpu_seconds(relay)
        time.sleep(1.5)
        assert abandoned(sandbox) == 0
        assert cpu_seconds(relay) - before < 0.5, "the unread byte keeps no loop busy"
    left = time.monotonic()
    until(lambda: abandoned(sandbox) == 1, "the gateway's connection is closed")
    assert time.monotonic() - left < 1


def cpu_seconds(relay):
    """What the worker has used so far."""
    worker = Path(f"/proc/{relay.process.process.pid}/task/{relay.process.process.pid}/children").read_text().split()[0]
    fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_more_turns_than_allowed_are_refused_before_anything_is_asked(start_relay, sandbox, prompt):
    relay = start_relay(MAX_TURNS="2")
    sandbox.script(prompt, ["a", "b"], gate=True)
    answers = [relay.ask(prompt) for _ in range(2)]
    for answer in answers:
        answer.next_token()
    refused = relay.ask(prompt)
    assert refused.response.status_code == 503
    assert int(refused.response.headers["Retry-After"]) >= 1
    assert refused.response.json()["code"] == "too_many_turns"
    assert sandbox.gateway_calls(prompt) == 2
    sandbox.receipt(prompt, 2)
    for answer in answers:
        answer.finish()
    assert until(lambda: relay.ask(prompt).response.status_code == 200, "a free place")


JSON = {"Content-Type": "application/json"}
GOOD = {"conversationId": "c", "prompt": "Hello"}
REFUSED = {
    "not JSON": ({"data": "{"}, 400, "invalid_json"),
    "bad UTF-8": ({"data": b'{"prompt": "\xff"}'}, 400, "invalid_json"),
    "no body": ({"data": b""}, 400, "invalid_json"),
    "not an object": ({"data": "[]"}, 400, "bad_request"),
    "no prompt": ({"json": {"conversationId": "c"}}, 400, "bad_request"),
    "prompt and messages": ({"json": GOOD | {"messages": [{"role": "user", "content": "x"}]}}, 400, "bad_request"),
    "an unknown role": (
        {"json": {"conversationId": "c", "messages": [{"role": "x", "content": "x"}]}},
        400,
        "bad_request",
    ),
    "a long prompt": ({"json": {"conversationId": "c", "prompt": "x" * 200_001}}, 413, "prompt_too_long"),
    "a large body": ({"json": {"conversationId": "c", "prompt": "x" * 1_100_000}}, 413, "body_too_large"),
    "no conversation": ({"json": {"prompt": "Hello"}}, 400, "conversation_required"),
    "a form": ({"data": {"prompt": "Hello"}, "headers": {}}, 415, "unsupported_media_type"),
    "plain text": ({"data": "{}", "headers": {"Content-Type": "text/plain"}}, 415, "unsupported_media_type"),
}


@pytest.mark.parametrize(("request_parts", "status", "code"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_in_json_and_nothing_is_asked(relay, sandbox, request_parts, status, code):
    parts = {"headers": JSON} | request_parts
    answer = requests.post(f"{relay.url}/stream-llm", timeout=10, **parts)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json()["code"] == code
    assert answer.json()["error"].endswith((".", ". "))
    calls = sandbox.calls()
    assert calls["gateway"]["calls"] == 0
    assert calls["transcript"]["handshakes"] == 0


def test_a_chunked_body_over_the_limit_is_refused(relay):
    def pieces():
        yield b'{"conversationId": "c", "prompt": "'
        for _ in range(40):
            yield b"x" * 65536

    try:
        answer = requests.post(f"{relay.url}/stream-llm", data=pieces(), headers=JSON, timeout=10)
    except requests.ConnectionError:
        return  # the server may close before it has read it all, and the answer be lost with the connection
    assert answer.status_code == 413


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_a_wrong_method_is_told_which_is_right(relay, method):
    answer = requests.request(method, f"{relay.url}/stream-llm", timeout=10)
    assert answer.status_code == 405
    assert answer.json()["code"] == "method_not_allowed"
    assert "POST" in answer.headers["Allow"]


def test_an_unknown_address_is_told_so(relay):
    answer = requests.get(f"{relay.url}/nowhere", timeout=10)
    assert answer.status_code == 404
    assert answer.json()["code"] == "not_found"
