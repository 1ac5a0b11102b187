"""Real servers for the tests: a sandbox in place of Genesys Cloud, and the relay under gunicorn.

One of each for every worker of pytest; what is only one test's (faults, scripts) is cleared in between.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import pytest
import requests
from hypothesis import settings

ROOT = Path(__file__).parent.parent
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
PATIENCE = 20.0  # seconds that a condition may take to come true


settings.register_profile("thorough", max_examples=1000)


def pytest_addoption(parser):
    seconds = 60 if os.environ.get("CI") else 5
    parser.addoption("--fuzz-seconds", type=float, default=seconds, help="for all targets of test_fuzz.py together")


def until(condition, what="the condition", patience=PATIENCE):
    """Waits until `condition()` is true and returns its value."""
    deadline = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come true within {patience} s"
        time.sleep(0.02)


class Process:
    """A server process of the test's own, with all that it prints.

    It prints into a pipe: a limit on its files, which stands for a full disk, must not meet its log.
    """

    def __init__(self, command, environment, ready, folder=ROOT):
        self._output = bytearray()
        names = (
            "GENESYS_",
            "OAUTH_",
            "GATEWAY_",
            "TRANSCRIPT",
            "SANDBOX_",
            "LOG_",
            "DEFAULT_CONVERSATION_ID",
            "DISCONNECT_",
            "STORE_",
            "RETAIN_",
            "ACCESS",
            "RELAY_",
            "JWT_",
            "SECRET_KEY",
            "TICKET_",
            "RATE_LIMIT",
            "MAX_",
            "CORS_",
            "ALLOWED_HOSTS",
        )
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(names)}
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=inherited | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        found = until(lambda: re.search(ready, self.output) or self._ended(), f"{command}: {ready}")
        assert found is not True, f"{command} ended: {self.output}"
        self.url = found.group(1)

    def _read(self):
        while piece := self.process.stdout.read1():
            self._output += piece

    def _ended(self):
        return self.process.poll() is not None

    @property
    def output(self):
        return bytes(self._output).decode(errors="replace")

    def stop(self, number=signal.SIGTERM):
        """Ends it; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self._reader.join(10)
            self.process.stdout.close()


class Sandbox:
    """The simulated organisation, and what a test can tell it."""

    module = "sandbox"

    def __init__(self, **environment):
        command = [sys.executable, "-m", self.module, "--port", "0"]
        self.process = Process(command, environment, r"sandbox ready on (http://\S+)")
        self.url = self.process.url

    def _post(self, path, **fields):
        answer = requests.post(f"{self.url}/sandbox/{path}", json=fields, timeout=10)
        assert answer.ok, answer.text
        return answer

    def script(self, prompt, tokens, gate=False, interval_ms=0, finish_reason="stop", **more):
        self._post(
            "answers",
            prompt=prompt,
            tokens=tokens,
            gate=gate,
            interval_ms=interval_ms,
            finish_reason=finish_reason,
            **more,
        )

    def receipt(self, prompt, count):
        self._post("receipts", prompt=prompt, count=count)

    def fault(self, at, fault, **fields):
        self._post("faults", at=at, fault=fault, **fields)

    def forget_faults(self):
        assert requests.delete(f"{self.url}/sandbox/faults", timeout=10).ok

    def limit_rate(self, requests, seconds):
        """How many platform requests are served in so many seconds."""
        self._post("rate-limit", requests=requests, seconds=seconds)

    def expire_tokens(self):
        self._post("expire-tokens")

    def reset(self):
        self._post("reset")

    def calls(self):
        return requests.get(f"{self.url}/sandbox/calls", timeout=10).json()

    def gateway_calls(self, prompt):
        """How often the gateway was asked this."""
        return sum(prompt in call.get("prompt", "") for call in self.calls()["log"] if call["place"] == "gateway")

    def conversation(self, conversation_id):
        return requests.get(f"{self.url}/sandbox/conversations/{conversation_id}", timeout=10).json()

    def listed_conversations(self):
        return requests.get(f"{self.url}/sandbox/conversations", timeout=10).json()

    def known_faults(self, place):
        return requests.get(f"{self.url}/sandbox/faults", timeout=10).json()["known"][place]

    def tokens(self):
        """Every access token that was issued."""
        return requests.get(f"{self.url}/sandbox/tokens", timeout=10).json()

    def text_of(self, conversation_id):
        return self.conversation(conversation_id)["text"]


class RelayServer:
    """The server as it runs in production: gunicorn with the project's own configuration.

    Each has a working folder of its own, as on another machine.
    """

    app = ()  # in place of the relay alone
    config = ROOT / "gunicorn.conf.py"

    def __init__(self, sandbox_url, **settings):
        command = [sys.executable, "-m", "gunicorn", "-c", str(self.config), *self.app]
        self.folder = tempfile.TemporaryDirectory(prefix="relay-test-")
        defaults = {
            "STORE_URL": f"sqlite:///{self.folder.name}/relay.db",
            "GENESYS_BASE_URL": sandbox_url,
            "SANDBOX_URL": sandbox_url,
            "OAUTH_CLIENT_ID": "sandbox-client",
            "OAUTH_CLIENT_SECRET": "sandbox-secret",
            "BIND": "127.0.0.1:0",
            "LOG_LEVEL": "DEBUG",
            "LOG_FORMAT": "json",
            "DISCONNECT_GRACE": "1",
            "GATEWAY_IDLE_TIMEOUT": "2",
            "WEB_CONCURRENCY": "1",
            "ACCESS": "open",
            "RATE_LIMIT": "off",
        }
        self.settings = defaults | settings
        self.process = Process(command, self.settings, r"Listening at: (http://[^\s\"]+)", self.folder.name)
        self.url = self.process.url
        try:
            until(self._answers, "GET /healthz")
        except BaseException:
            self.stop()  # nobody else knows of it yet
            raise

    def stop(self, number=signal.SIGINT):
        """Ends it; returns its exit status."""
        try:
            return self.process.stop(number)
        finally:
            self.folder.cleanup()

    def _answers(self):
        assert self.process.process.poll() is None, f"it ended: {self.process.output}"
        try:
            return requests.get(f"{self.url}/healthz", timeout=5).ok
        except (requests.ConnectionError, requests.Timeout):
            return False

    @property
    def log(self):
        """All that was logged so far, one dict a line."""
        whole_lines = self.process.output.rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in whole_lines if line.startswith("{")]

    def logged(self, turn_id, message):
        """The log line of a turn, waited for."""
        return until(
            lambda: next((e for e in self.log if e.get("turn") == turn_id and e["message"] == message), None),
            f"log line {message!r} of turn {turn_id}",
        )

    def ask(self, prompt=None, conversation="", **fields):
        """Opens a stream; see Answer."""
        body = question(prompt, conversation, **fields)
        return Answer(requests.post(f"{self.url}/stream-llm", json=body, stream=True, timeout=(10, 30)))

    def begin(self, prompt=None, conversation="", key=None, **fields):
        """Begins a stream that can be followed; returns its id."""
        headers = {} if key is None else {"Idempotency-Key": key}
        body = question(prompt, conversation, **fields)
        answer = requests.post(f"{self.url}/streams", json=body, headers=headers, timeout=10)
        assert answer.status_code == 201, answer.text
        assert answer.headers["Location"] == answer.json()["url"]
        return answer.json()["id"]

    def follow(self, stream_id, after=None):
        """Opens the stream again, behind the event `after`; see Answer."""
        headers = {"Accept": "text/event-stream"} | ({} if after is None else {"Last-Event-ID": str(after)})
        return Answer(requests.get(f"{self.url}/streams/{stream_id}", headers=headers, stream=True, timeout=(10, 30)))

    def read_patiently(self, stream_id, after=0, others=()):
        """Reads as EventSource does: comes back behind the last event until the end. Returns all that came.

        `others` are further servers behind the same address, as a proxy in front of them would have.
        """
        events = []
        servers = itertools.cycle([self, *others])
        while not events or events[-1].get("event") != "done":
            cursor = int(events[-1]["id"]) if events else after
            try:
                answer = next(servers).follow(stream_id, cursor)
                if answer.response.status_code == 204:
                    break
                answer.response.raise_for_status()
                for event in answer:
                    events += [event] if "id" in event else []
            except (requests.RequestException, AssertionError):
                time.sleep(0.05)  # EventSource's own pause between two connections
        return Result(stream_id, events)

    def state(self, stream_id):
        """The stream as JSON."""
        answer = requests.get(f"{self.url}/streams/{stream_id}", headers={"Accept": "application/json"}, timeout=10)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @property
    def workers(self):
        """Process ids of gunicorn's workers."""
        pid = self.process.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def question(prompt, conversation, **fields):
    body = {"conversationId": conversation or f"c-{uuid.uuid4().hex[:12]}", **fields}
    return body if prompt is None else body | {"prompt": prompt}


class Answer:
    """A stream, read event by event as it comes."""

    def __init__(self, response):
        self.response = response
        self.id = response.headers.get("X-Stream-Id")
        self._events = self._read()

    def _read(self):
        """Dicts with id, event, data; the standard's parsing (WHATWG HTML, 9.2.6) for LF streams."""
        buffer = b""
        for piece in self.response.iter_content(None):
            buffer += piece
            *blocks, buffer = buffer.split(b"\n\n")
            for block in blocks:
                fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if not line.startswith(":"))
                if "data" in fields:
                    yield fields | {"data": json.loads(fields["data"])}
        assert buffer == b"", "the stream ended inside an event"

    def __iter__(self):
        return self._events

    def next_event(self):
        return next(self._events)

    def next_token(self):
        event = self.next_event()
        assert "token" in event["data"], event
        return event["data"]["token"]

    def close(self):
        self.response.close()

    def finish(self):
        """Reads to the end; returns what came as a Result, having checked what holds for every stream."""
        result = self.finish_with_jump()
        ids = [int(e["id"]) for e in result.events if "id" in e]
        assert ids == list(range(ids[0], ids[0] + len(ids))), "ids are consecutive"
        return result

    def finish_with_jump(self):
        """The same for a turn whose worker died: ids jump before the closing events."""
        events = list(self._events)
        assert [e.get("event") for e in events].count("done") == 1
        assert events[-1].get("event") == "done", "nothing follows done"
        ids = [int(e["id"]) for e in events if "id" in e]
        assert ids == sorted(set(ids))
        return Result(self.id, events)


class Result:
    def __init__(self, turn_id, events):
        self.id = turn_id
        self.events = events
        self.tokens = [e["data"]["token"] for e in events if "token" in e["data"]]
        self.text = "".join(self.tokens)
        self.statuses = [e["data"] for e in events if e.get("event") == "status"]
        self.error = next((e["data"] for e in events if "error" in e["data"]), None)
        self.done = events[-1]["data"]


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - not for each test's start

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shared_sandbox():
    sandbox = Sandbox()
    yield sandbox
    sandbox.process.stop()


@pytest.fixture(scope="session")
def shared_relay(shared_sandbox):
    relay = RelayServer(shared_sandbox.url)
    yield relay
    relay.stop()


@pytest.fixture
def sandbox(shared_sandbox):
    yield shared_sandbox
    shared_sandbox.reset()


@pytest.fixture
def relay(shared_relay, sandbox):
    return shared_relay


@pytest.fixture(scope="module")
def shared_lasting_relay(shared_sandbox):
    relay = RelayServer(shared_sandbox.url, DISCONNECT_GRACE="30", GATEWAY_IDLE_TIMEOUT="60")
    yield relay
    relay.stop()


@pytest.fixture
def lasting_relay(shared_lasting_relay, sandbox):
    """A relay whose answers go on for long without anyone who reads them."""
    return shared_lasting_relay


@pytest.fixture
def start_relay(sandbox):
    """Starts further relays with settings of their own; ends them after the test."""
    started = []

    def start(**settings):
        started.append(RelayServer(sandbox.url, **settings))
        return started[-1]

    yield start
    for server in started:
        server.stop()


class TcpRedis:
    """A redis-server on a port of 127.0.0.1, in a folder of its own. `stop` and `start` keep its address."""

    def __init__(self, folder, *options):
        self._folder = folder
        self._options = options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self):
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        self.process = subprocess.Popen([*command, "--save", "", *self._options], stdout=subprocess.DEVNULL)
        until(self._listens, "redis-server listens")

    def _listens(self):
        assert self.process.poll() is None, "redis-server ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def start_redis(tmp_path):
    """Starts a redis-server; ends it after the test."""
    started = []

    def start(*options):
        started.append(TcpRedis(tmp_path, *options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(params=["sqlite", "redis"])
def shared_store(request, tmp_path):
    """STORE_URL of a store that several servers of the test share, for each engine."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shared.db"
    return request.getfixturevalue("start_redis")().url


@pytest.fixture
def start_sandbox():
    """Starts further sandboxes with settings of their own; ends them after the test."""
    started = []

    def start(**settings):
        started.append(Sandbox(**settings))
        return started[-1]

    yield start
    for server in started:
        server.process.stop()


@pytest.fixture
def prompt():
    """A prompt that no other test has."""
    return f"question {uuid.uuid4().hex}"


@pytest.fixture
def conversation():
    return f"c-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="module")
def redis_server():
    """For the journals of one file of tests."""
    from .stores import RedisServer  # noqa: PLC0415 - that module needs this one

    server = RedisServer()
    yield server
    server.remove()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store(request):
    """What the workers of one test share, for each engine."""
    from .stores import make_store  # noqa: PLC0415

    store = make_store(request.param, request)
    yield store
    store.close()


@pytest.fixture
def ann(store):
    """A worker's journal."""
    return store.worker("ann")


@pytest.fixture
def bob(store):
    """The journal of another worker with the same store."""
    return store.worker("bob")
