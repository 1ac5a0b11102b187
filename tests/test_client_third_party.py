"""Event stream clients that others wrote, against the real server: httpx-sse, sseclient-py, npm's eventsource, curl.

The server asks for keys; what follows a stream goes by the ticket in its `url`.
"""

import json
import subprocess

import httpx
import httpx_sse
import pytest
import requests
import sseclient

from server.access.keys import make_key

from .conftest import ROOT, RelayServer
from .proxy import Proxy
from .script_server import ScriptServer
from .visitor import Visitor

ANN = make_key("ann")
SSE = {"Accept": "text/event-stream"}


@pytest.fixture(scope="module")
def guarded(shared_sandbox):
    relay = RelayServer(
        shared_sandbox.url,
        ACCESS="keys",
        RELAY_API_KEYS=ANN.entry,
        DISCONNECT_GRACE="30",
        GATEWAY_IDLE_TIMEOUT="60",
    )
    yield relay
    relay.stop()


@pytest.fixture
def proxy(guarded, sandbox):
    proxy = Proxy(guarded.url)
    yield proxy
    proxy.close()


def read_with_httpx_sse(address, after=None):
    """What comes with data, as (event, id, data). What has none comes as well, and is nothing: `retry:` and pings."""
    headers = {} if after is None else {"Last-Event-ID": after}
    with httpx.Client(timeout=20) as client, httpx_sse.connect_sse(client, "GET", address, headers=headers) as source:
        for event in source.iter_sse():
            if event.data:
                yield event.event, event.id, event.json()


def read_with_sseclient(address, after=None):
    headers = SSE if after is None else SSE | {"Last-Event-ID": after}
    with requests.get(address, headers=headers, stream=True, timeout=20) as response:
        for event in sseclient.SSEClient(response).events():
            yield event.event, event.id, json.loads(event.data)


def read_with_curl(address, after=None):
    cursor = [] if after is None else ["-H", f"Last-Event-ID: {after}"]
    with subprocess.Popen(["curl", "-sN", *cursor, address], stdout=subprocess.PIPE, text=True) as curl:
        try:
            fields = {}
            for line in curl.stdout:
                name, _, value = line.rstrip("\n").partition(": ")
                if name == "data":
                    yield fields.get("event", "message"), fields.get("id"), json.loads(value)
                fields = fields | {name: value} if name else {}
        finally:
            curl.kill()


READERS = [read_with_httpx_sse, read_with_sseclient, read_with_curl]


def begin(relay, prompt):
    return relay.url + Visitor(relay, ANN.key).begin(prompt)["url"]


def told(events):
    """Without the ticket, which those who came with one get first."""
    return [(name, id_, data) for name, id_, data in events if name != "ticket"]


@pytest.mark.parametrize("read", READERS)
def test_they_read_an_answer_and_go_on_behind_what_they_have(guarded, sandbox, prompt, read):
    tokens = ["Hel", "lo ", "wörld\n", "👋\r\n"]
    sandbox.script(prompt, tokens, gate=True)
    address = begin(guarded, prompt)
    events = read(address)
    name, _, data = next(events)
    assert (name, data["url"].partition("?")[0]) == ("ticket", "/" + address.split("/", 3)[3].partition("?")[0])
    assert next(events) == ("message", "1", {"token": "Hel"})
    sandbox.receipt(prompt, 1)
    assert next(events) == ("message", "2", {"token": "lo "})
    events.close()
    sandbox.receipt(prompt, 4)
    rest = told(read(address, after="2"))
    assert rest[:2] == [("message", "3", {"token": tokens[2]}), ("message", "4", {"token": tokens[3]})]
    assert rest[2][:2] == ("done", "5")
    assert rest[2][2]["status"] == "complete"
    assert len(rest) == 3


@pytest.mark.parametrize("read", READERS)
def test_they_are_told_why_an_answer_fails(guarded, sandbox, prompt, read):
    sandbox.fault("gateway", "bad_request_400", prompt=prompt)
    (_, _, error), (name, _, done) = told(read(begin(guarded, prompt)))
    assert error["code"] == "gateway_rejected"
    assert error["error"].startswith("The gateway refused the request.")
    assert (name, done["status"]) == ("done", "failed")


class EventSource:
    """npm's eventsource in a process of its own."""

    def __init__(self, address):
        command = ["node", ROOT / "tests" / "npm" / "eventsource.mjs", address]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()

    def next_event(self, *types):
        """The next of these types."""
        for line in self._process.stdout:
            event = json.loads(line)
            if event["type"] in types:
                return event
        raise AssertionError(f"it ended without {types}")


def test_npms_eventsource_comes_back_by_itself_and_is_stopped_by_the_204(proxy, sandbox, prompt):
    sandbox.script(prompt, ["a", "b", "c"], gate=True)
    with EventSource(begin(proxy, prompt)) as source:
        assert source.next_event("message") == {"type": "message", "id": "1", "data": {"token": "a"}}
        proxy.cut()
        assert source.next_event("lost", "message")["type"] == "lost"
        sandbox.receipt(prompt, 1)
        assert source.next_event("message") == {"type": "message", "id": "2", "data": {"token": "b"}}
        sandbox.receipt(prompt, 3)
        assert source.next_event("message") == {"type": "message", "id": "3", "data": {"token": "c"}}
        done = source.next_event("message", "done")
        assert (done["type"], done["data"]["status"]) == ("done", "complete")
        assert source.next_event("lost")["type"] == "lost"  # the server ends the stream
        assert source.next_event("closed", "message")["type"] == "closed"  # 204
    assert len(proxy.asked) == 3
    assert all("ticket=" in line for line in proxy.asked)
    assert sandbox.gateway_calls(prompt) == 1


def test_npms_eventsource_is_told_why_an_answer_fails_and_of_a_refusal(guarded, sandbox, prompt):
    sandbox.fault("gateway", "bad_request_400", prompt=prompt)
    address = begin(guarded, prompt)
    with EventSource(address) as source:
        assert source.next_event("message")["data"]["code"] == "gateway_rejected"
        assert source.next_event("done")["data"]["status"] == "failed"
    with EventSource(address.partition("?")[0]) as source:
        assert source.next_event("closed", "lost") == {"type": "closed", "code": 401}


# What the server sends besides events, and what becomes of it.

BESIDES = b'retry: 50\n\nid: 1\ndata: {"token":"a"}\n\n: ping\n\nid: 7\n\n'


def test_httpx_sse_hands_out_blocks_without_data_which_are_to_be_left_out():
    with (
        ScriptServer(BESIDES) as server,
        httpx.Client() as client,
        httpx_sse.connect_sse(client, "GET", server.url) as source,
    ):
        events = [(event.data, event.id, event.retry) for event in source.iter_sse()]
    assert events == [("", "", 50), ('{"token":"a"}', "1", None), ("", "1", None), ("", "7", None)]


def test_sseclient_hands_out_events_with_data_alone():
    with ScriptServer(BESIDES) as server, requests.get(server.url, stream=True, timeout=10) as response:
        events = [(event.data, event.id) for event in sseclient.SSEClient(response).events()]
    assert events == [('{"token":"a"}', "1")]


def test_npms_eventsource_honours_retry_and_takes_its_cursor_from_events_alone():
    with ScriptServer(BESIDES, BESIDES) as server, EventSource(server.url) as source:
        source.next_event("closed")
        assert [asked.get("Last-Event-ID") for asked in server.asked] == [None, "1", "1"]
