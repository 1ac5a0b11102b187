"""More than the server should take: it says so, or drops who does not read, and its memory stays bounded."""

import contextlib
import json
import re
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from .conftest import until

NEVER_READING = 1000  # clients
TOKENS = 20_000  # of the answer that they do not read: 800 KB as Server-Sent Events
MOST_PER_CLIENT = 170  # KB; about 120 were measured: a greenlet, a request, and what is sent at once with its events


def private_kb(pid):
    """Memory of the process that is its own."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(map(int, re.findall(r"^Private_\w+:\s+(\d+) kB", rollup, re.MULTILINE)))


def open_files(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def connect_without_reading(relay, stream):
    address = urlsplit(relay.url)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((address.hostname, address.port))
    client.sendall(f"GET /streams/{stream} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode())
    return client


def test_memory_stays_bounded_with_a_thousand_clients_that_never_read(start_relay, sandbox, prompt):
    relay = start_relay(LOG_LEVEL="INFO", TRANSCRIPT="off", DISCONNECT_GRACE="-1")
    tokens = [f"token{n} " for n in range(TOKENS)]
    sandbox.script(prompt, tokens)
    stream = relay.begin(prompt)
    relay.follow(stream).finish()
    (worker,) = relay.workers
    before, files = private_kb(worker), open_files(worker)
    # Some 20 s of not reading, and they are dropped; until then memory may grow only so far.
    highest = 0

    def look():
        nonlocal highest
        highest = max(highest, private_kb(worker))
        return any("client does not read" in entry["message"] for entry in relay.log)

    with contextlib.ExitStack() as clients:
        for _ in range(NEVER_READING):
            clients.enter_context(connect_without_reading(relay, stream))
        until(look, "the first is dropped", patience=60)
        until(lambda: look() and open_files(worker) <= files + 10, "all are dropped", patience=50)
    assert highest - before < NEVER_READING * MOST_PER_CLIENT
    assert relay.follow(stream).finish().tokens == tokens, "who comes back and reads gets all"


def test_a_client_that_was_dropped_resumes_where_it_was(start_relay, sandbox, prompt):
    relay = start_relay(TRANSCRIPT="off", DISCONNECT_GRACE="-1")
    tokens = [f"token{n} " for n in range(TOKENS)]
    sandbox.script(prompt, tokens)
    stream = relay.begin(prompt)
    client = connect_without_reading(relay, stream)
    until(lambda: any("client does not read" in entry["message"] for entry in relay.log), "dropped", patience=60)
    received = b""
    client.settimeout(10)  # a kernel that has given the connection up meanwhile may say nothing of it
    while piece := read_or_nothing(client):
        received += piece
    seen = [json.loads(data)["token"] for data in re.findall(rb"^data: (.*)\n\n", body_of(received), re.MULTILINE)]
    assert seen == tokens[: len(seen)]
    rest = relay.follow(stream, len(seen)).finish()
    assert seen + rest.tokens == tokens


def read_or_nothing(client):
    try:
        return client.recv(65536)
    except (ConnectionResetError, TimeoutError):
        return b""


def body_of(received):
    """What the chunks of a response hold that broke off; the last one may be incomplete."""
    body, rest = b"", received.partition(b"\r\n\r\n")[2]
    while size := re.match(rb"([0-9a-f]+)\r\n", rest, re.IGNORECASE):
        begin, length = size.end(), int(size[1], 16)
        body += rest[begin : begin + length]
        rest = rest[begin + length + 2 :]
    return body


@pytest.mark.parametrize("path", ["/stream-llm", "/streams"])
def test_a_body_that_does_not_come_is_not_waited_for_without_end(relay, path):
    address = urlsplit(relay.url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as client:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        )
        client.sendall(head.encode() + b"{")
        answer = b""
        while b"body_too_slow" not in answer and (piece := client.recv(65536)):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body_too_slow" in answer


def test_a_client_that_does_not_read_a_plain_answer_is_not_waited_for_without_end(start_relay, sandbox, prompt):
    relay = start_relay(TRANSCRIPT="off", DISCONNECT_GRACE="-1")
    sandbox.script(prompt, ["x" * 1000] * 999)
    stream = relay.begin(prompt)
    relay.follow(stream).finish()
    (worker,) = relay.workers
    files = open_files(worker)
    with contextlib.ExitStack() as clients:
        # Ten of them behind one another: more than the kernel takes off our hands.
        asked = f"GET /streams/{stream} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n".encode() * 10
        for _ in range(10):
            client = clients.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            address = urlsplit(relay.url)
            client.connect((address.hostname, address.port))
            client.sendall(asked)
        dropped = "client does not read its answer, dropped"
        until(lambda: relay.process.output.count(dropped) == 10, "all are dropped", patience=60)
        until(lambda: open_files(worker) <= files, "nothing of them is left")
    assert "Traceback" not in relay.process.output
