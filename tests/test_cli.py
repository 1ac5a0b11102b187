"""The command `relay run`, started for real: what it prints and serves, and that it leaves nothing behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import requests

from server import settings as settings_module
from server.access.keys import Keyring, make_key, read_keys
from server.cli import main

from .conftest import ROOT, until

FAST = 15.0  # seconds that stopping may take on a busy machine; on a quiet one it takes one or two


class Run:
    """`python -m server.cli run` in a folder of its own, with only the settings that a test gives."""

    def __init__(self, folder, **environment):
        self.mark = f"RELAY_TEST_RUN={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        names = {name.upper() for name in settings_module.Settings.model_fields}
        clean = {name: value for name, value in os.environ.items() if name not in names}
        self.output_file = folder / "output"
        with self.output_file.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "server.cli", "run"],
                cwd=folder,
                env=clean | {"PYTHONPATH": str(ROOT), name: value} | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # noqa: PLW1509 - under nohup as well
            )

    @property
    def output(self):
        return self.output_file.read_text()

    @property
    def url(self):
        found = until(lambda: re.search(r"The page is at  (http://\S+)/ ", self.output) or self.ended, "the address")
        assert found is not True, self.output
        return found[1]

    @property
    def ended(self):
        return self.process.poll() is not None

    def living(self):
        """Process ids of all that was started, whoever their parent is now."""
        return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if self.mark in environ(path)]

    def kill(self):
        for pid in self.living():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def environ(path):
    try:
        return path.read_text(errors="replace")
    except OSError:  # it has ended, or is another user's
        return ""


@pytest.fixture
def run(tmp_path):
    started = []

    def start(**environment):
        started.append(Run(tmp_path, **environment))
        return started[-1]

    yield start
    for one in started:
        one.kill()


def free_port(host="127.0.0.1", family=socket.AF_INET):
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def ask(run, **body):
    return requests.post(f"{run.url}/stream-llm", json={"prompt": "count to 1000", **body}, stream=True, timeout=10)


ENDINGS = {
    "Ctrl-C": [signal.SIGINT],
    "the terminal is closed": [signal.SIGHUP],
    "TERM": [signal.SIGTERM],
    "Ctrl-C twice": [signal.SIGINT, signal.SIGINT],
    "Ctrl-C, then the terminal is closed": [signal.SIGINT, signal.SIGHUP, signal.SIGTERM],
}


@pytest.mark.parametrize("numbers", ENDINGS.values(), ids=ENDINGS)
def test_run_serves_with_the_sandbox_and_leaves_no_process(run, numbers):
    port = free_port()
    running = run(BIND=f"127.0.0.1:{port}")
    assert running.url == f"http://127.0.0.1:{port}"
    answer = ask(running, conversationId="c-1")
    assert answer.status_code == 200
    assert next(line for line in answer.iter_lines() if line.startswith(b"data: "))
    assert len(running.living()) >= 4, "the command, the sandbox, gunicorn and its worker"
    began = time.monotonic()
    for number in numbers:
        running.process.send_signal(number)
        time.sleep(0.05)
    running.process.wait(FAST)
    until(lambda: not running.living(), "no process is left", patience=1)
    assert time.monotonic() - began < FAST
    assert "Traceback" not in running.output


@pytest.mark.parametrize("delay", [0.15, 0.3, 0.6, 1.0])
def test_a_signal_while_it_starts_leaves_no_process(run, delay):
    running = run(BIND="127.0.0.1:0")
    time.sleep(delay)
    running.process.send_signal(signal.SIGINT)
    running.process.wait(FAST)
    until(lambda: not running.living(), "no process is left", patience=1)


def test_a_worker_that_hangs_does_not_outlive_it_however_often_ctrl_c_is_pressed(run):
    running = run(BIND="127.0.0.1:0", WEB_CONCURRENCY="1", STORE_URL="memory://")
    assert running.url
    stuck = max(running.living())
    os.kill(stuck, signal.SIGSTOP)
    for _ in range(5):
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    running.process.wait(20)
    until(lambda: not running.living(), "no process is left", patience=1)


def test_an_env_file_says_where_it_listens_and_the_default_conversation(run, tmp_path):
    port = free_port()
    (tmp_path / ".env").write_text(f"BIND=127.0.0.1:{port}\nDEFAULT_CONVERSATION_ID=from-the-file\n")
    running = run()
    assert running.url == f"http://127.0.0.1:{port}"
    with ask(running, prompt="count to 3") as answer:
        assert answer.text.count('"token"') == 3
    sandbox = re.search(r"the sandbox at (http://\S+);", running.output)[1]
    conversation = f"{sandbox}/sandbox/conversations/from-the-file"
    until(lambda: requests.get(conversation, timeout=5).json().get("text"), "the transcript has the answer")


def test_who_tries_it_out_is_not_limited_unless_a_limit_is_set(run, tmp_path):
    with ask(run(), prompt="count to 3") as answer:
        assert "RateLimit-Limit" not in answer.headers
    (tmp_path / ".env").write_text("RATE_LIMIT=7/minute\n")
    with ask(run(), prompt="count to 3") as answer:
        assert answer.headers["RateLimit-Limit"] == "7"


def test_it_serves_on_an_ipv6_address(run):
    try:
        port = free_port("::1", socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 here")
    running = run(BIND=f"[::1]:{port}")
    assert running.url == f"http://[::1]:{port}"
    assert requests.get(f"{running.url}/healthz", timeout=5).ok


def test_a_taken_port_is_left_to_its_owner(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        running = run(BIND=f"127.0.0.1:{taken.getsockname()[1]}")
        assert requests.get(f"{running.url}/healthz", timeout=5).ok
    assert "is taken, serving on another port" in running.output


HALF = [
    ({"OAUTH_CLIENT_ID": "a"}, "OAUTH_CLIENT_SECRET is missing"),
    ({"OAUTH_CLIENT_SECRET": "b"}, "OAUTH_CLIENT_ID is missing"),
    ({"GATEWAY_API_KEY": "a-key"}, "OAUTH_CLIENT_ID is missing"),
    ({"BIND": "nowhere"}, "BIND='nowhere'"),
    (
        {"OAUTH_CLIENT_ID": "a", "OAUTH_CLIENT_SECRET": "b", "BIND": "192.0.2.1:8000", "ACCESS": "open"},
        "BIND='192.0.2.1:8000'",
    ),
]


@pytest.mark.parametrize(("environment", "line"), HALF)
def test_settings_that_are_half_there_are_not_replaced_by_the_sandbox(run, environment, line):
    running = run(**environment)
    assert running.process.wait(10) == 2
    assert running.output.startswith(line)
    assert running.output.count("\n") == 1


def test_a_server_that_cannot_start_ends_the_command_with_its_status(run, tmp_path):
    (tmp_path / "gunicorn.py").write_text("raise SystemExit(7)")
    assert run().process.wait(10) == 7


OAUTH = {"OAUTH_CLIENT_ID": "a", "OAUTH_CLIENT_SECRET": "b"}


@pytest.mark.parametrize("environment", [{"BIND": "0.0.0.0:0"}, {"ACCESS": "keys"}, OAUTH | {"BIND": "[::]:0"}])
def test_run_is_open_on_this_machine_alone_and_where_nothing_else_is_said(run, environment):
    running = run(**environment)
    assert running.process.wait(20) == 2
    assert "No one may ask yet" in running.output
    assert "RELAY_API_KEYS=client:" in running.output


def test_run_asks_for_the_keys_that_are_set(run):
    fresh = make_key("shop")
    running = run(BIND=f"127.0.0.1:{free_port()}", RELAY_API_KEYS=fresh.entry)
    assert ask(running).status_code == 401
    assert "-H 'Authorization: Bearer KEY'" in running.output
    headers = {"Authorization": f"Bearer {fresh.key}"}
    assert requests.post(f"{running.url}/streams", json={"prompt": "a"}, headers=headers, timeout=10).ok


def test_output_that_no_one_reads_to_its_end_is_no_error():
    """As `relay settings | head` has it."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "server.cli", "settings", "--example"]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, timeout=30, check=False)
    os.close(writing)
    assert done.stderr == b""


def test_keys_new_prints_a_key_and_what_the_server_is_to_know_of_it(capsys):
    main(["keys", "new", "shop"])
    printed = capsys.readouterr().out
    key = re.search(r"relay_[\w-]{43}", printed)[0]
    line = re.search(r"RELAY_API_KEYS=(shop:\w{64})$", printed, re.MULTILINE)[1]
    assert Keyring(read_keys(line)).name_of(key) == "shop"


def test_keys_new_refuses_a_name_that_cannot_be(capsys):
    with pytest.raises(SystemExit):
        main(["keys", "new", "a shop"])
    assert "NAME cannot be right" in capsys.readouterr().err
