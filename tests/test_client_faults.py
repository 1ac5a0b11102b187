"""The relay's own clients (client/), all at once, through what happens to connections and servers."""

import os
import signal
import socket
import time

import pytest
import requests

from server.access.keys import make_key

from .conftest import ROOT, question, until
from .proxy import Proxy
from .relay_clients import Asyncio, Chromium, Node, Python
from .visitor import Visitor

TOKENS = [f"<{number}é> " for number in range(1, 41)]
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.fixture
def proxy(lasting_relay):
    proxy = Proxy(lasting_relay.url)
    yield proxy
    proxy.close()


@pytest.fixture
def make_clients(browser, tmp_path):
    """One of each; `page_url` is where the browser has its page from."""
    made = []

    def make(page_url):
        made.extend([Chromium(browser, page_url), Node(tmp_path), Python(tmp_path), Asyncio(tmp_path)])
        return made

    yield make
    for client in made:
        client.close()


def ask(clients, base, sandbox, prompt, tokens, key=None, **script):
    """Each asks a question of its own, `client.asked`."""
    for client in clients:
        client.asked = f"{prompt} {client.name}"
        sandbox.script(client.asked, tokens, **script)
        options = {} if key is None else {"key": key}
        client.start(base=f"{base}/", options=options, question=question(client.asked, ""))


def until_text(clients, text, patience=20):
    for client in clients:
        until(lambda client=client: client.text == text, f"{client.name}: {text!r}", patience)


def expect_whole(clients, sandbox, tokens):
    """Every token came once, in order, of one turn."""
    for client in clients:
        assert client.until_end() == {"type": "end"}, client.name
        assert [event["token"] for event in client.of("token")] == tokens, client.name
        assert [event["id"] for event in client.of("token")] == list(range(1, len(tokens) + 1)), client.name
        assert client.done["status"] == "complete", client.name
        assert sandbox.gateway_calls(client.asked) == 1, client.name


def test_every_token_comes_once_through_cuts_anywhere_and_a_busy_server(make_clients, proxy, sandbox, prompt):
    clients = make_clients(proxy.url)
    proxy.budget = 433
    ask(clients, proxy.url, sandbox, prompt, TOKENS)
    for client in clients:
        until(lambda client=client: len(client.of("lost")) >= 2, f"{client.name} was cut twice")
    proxy.instead = BUSY
    for client in clients:
        until(lambda client=client: 503 in [lost["status"] for lost in client.of("lost")], f"{client.name} was put off")
    proxy.instead, proxy.budget = None, None
    expect_whole(clients, sandbox, TOKENS)
    for client in clients:
        for lost in client.of("lost"):
            assert lost["in"] >= (2 if lost["status"] == 503 else 1), f"{client.name} comes back too soon"


def test_a_question_whose_receipt_is_lost_is_asked_once(make_clients, proxy, sandbox, prompt):
    clients = make_clients(proxy.url)
    proxy.swallow = 2 * len(clients)
    ask(clients, proxy.url, sandbox, prompt, ["a", "b"])
    expect_whole(clients, sandbox, ["a", "b"])


def test_a_question_waits_for_a_server_that_is_away(make_clients, start_relay, sandbox, prompt):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        bind = f"127.0.0.1:{probe.getsockname()[1]}"
    relay = start_relay(BIND=bind)
    clients = make_clients(relay.url)
    relay.stop()
    ask(clients, relay.url, sandbox, prompt, ["a", "b"])
    for client in clients:
        until(lambda client=client: client.of("lost"), f"{client.name} finds nobody")
        assert client.of("lost")[0]["error"] == "The server cannot be reached.", client.name
    start_relay(BIND=bind)
    expect_whole(clients, sandbox, ["a", "b"])


def test_a_worker_that_is_replaced_loses_nothing(make_clients, start_relay, sandbox, prompt):
    relay = start_relay(DISCONNECT_GRACE="30", GATEWAY_IDLE_TIMEOUT="60")
    clients = make_clients(relay.url)
    ask(clients, relay.url, sandbox, prompt, ["a", "b", "c"], gate=True)
    until_text(clients, "a")
    old = relay.workers
    relay.process.process.send_signal(signal.SIGHUP)
    until(lambda: set(relay.workers) - set(old), "a new worker")
    for count, text in ((1, "ab"), (3, "abc")):
        for client in clients:
            sandbox.receipt(client.asked, count)
        until_text(clients, text)
    expect_whole(clients, sandbox, ["a", "b", "c"])


def test_a_worker_that_is_killed_is_told(make_clients, start_relay, sandbox, prompt):
    relay = start_relay(DISCONNECT_GRACE="30", GATEWAY_IDLE_TIMEOUT="60")
    clients = make_clients(relay.url)
    ask(clients, relay.url, sandbox, prompt, ["a", "b"], gate=True)
    until_text(clients, "a")
    time.sleep(0.5)  # until the token is in the store
    os.kill(relay.workers[0], signal.SIGKILL)
    for client in clients:
        assert client.until_end() == {"type": "end"}, client.name
        assert client.text == "a", client.name
        assert client.of("error")[0]["code"] == "interrupted", client.name
        assert client.done["status"] == "interrupted", client.name


def test_who_stops_reading_leaves_the_turn_and_who_cancels_ends_it(make_clients, lasting_relay, sandbox, prompt):
    clients = make_clients(lasting_relay.url)
    ask(clients, lasting_relay.url, sandbox, prompt, ["a", "b", "c"], gate=True)
    until_text(clients, "a")
    for client in clients:
        client.abort()
        sandbox.receipt(client.asked, 1)
    for client in clients:
        ended = client.until_end()
        assert ended["type"] == "end" or ended["name"] == "AbortError", client.name
        stream = client.of("begun")[0]["id"]
        assert lasting_relay.state(stream)["status"] == "running", client.name
        requests.delete(f"{lasting_relay.url}/streams/{stream}", timeout=10)


def test_cancelling_ends_the_turn_and_is_told(make_clients, lasting_relay, sandbox, prompt):
    clients = make_clients(lasting_relay.url)
    ask(clients, lasting_relay.url, sandbox, prompt, ["a", "b"], gate=True)
    until_text(clients, "a")
    for client in clients:
        client.cancel()
        assert client.until_end() == {"type": "end"}, client.name
        assert client.done["status"] == "cancelled", client.name


def test_who_is_over_the_limit_comes_back_when_told(make_clients, start_relay, sandbox, prompt):
    relay = start_relay(MAX_TURNS_PER_CALLER="1", DISCONNECT_GRACE="30", GATEWAY_IDLE_TIMEOUT="60")
    sandbox.script(prompt, ["a", "b"], gate=True)
    first = relay.begin(prompt)
    clients = make_clients(relay.url)
    ask(clients, relay.url, sandbox, prompt, ["a", "b"])
    for client in clients:
        until(lambda client=client: client.of("lost"), f"{client.name} is refused")
        assert client.of("lost")[0]["status"] == 429, client.name
        assert client.of("lost")[0]["in"] >= 1, f"{client.name} keeps to Retry-After"
    requests.delete(f"{relay.url}/streams/{first}", timeout=10)
    expect_whole(clients, sandbox, ["a", "b"])


def test_a_refusal_for_good_is_told_at_once(make_clients, relay):
    clients = make_clients(relay.url)
    for client in clients:
        client.start(base=f"{relay.url}/", options={}, question=question("", ""))
        assert client.until_end(5) == {"type": "thrown", "name": "RelayError", "code": "bad_request"}, client.name
        assert not client.of("lost"), client.name


def test_a_ticket_is_renewed_while_it_is_good(make_clients, start_relay, sandbox, prompt):
    ann = make_key("ann")
    relay = start_relay(
        ACCESS="keys",
        RELAY_API_KEYS=ann.entry,
        TICKET_SECONDS="6",
        DISCONNECT_GRACE="60",
        GATEWAY_IDLE_TIMEOUT="60",
    )
    proxy = Proxy(relay.url)
    sandbox.script(prompt, ["a", "b", "c"], gate=True)
    clients = make_clients(relay.url)
    url = Visitor(relay, ann.key).begin(prompt)["url"]
    began = time.monotonic()
    for client in clients[1:]:  # the browser's page comes from elsewhere; tests/test_page.py has it with tickets
        client.start(base=f"{proxy.url}/", options={}, url=url)
    for count, text, since in ((1, "a", 3), (3, "ab", 6.5)):
        until_text(clients[1:], text)
        time.sleep(max(0, began + since - time.monotonic()))
        proxy.cut()
        sandbox.receipt(prompt, count)
    for client in clients[1:]:
        assert client.until_end() == {"type": "end"}, client.name
        assert client.text == "abc", client.name
    proxy.close()


def test_the_browsers_client_is_small():
    """Without its comments and indentation, as it would be counted after the simplest of minifiers."""
    lines = (ROOT / "client" / "relay.js").read_text().splitlines()
    code = [line.strip().partition(" // ")[0] for line in lines if not line.strip().startswith(("/**", "*"))]
    assert len("\n".join(filter(None, code))) < 4096
