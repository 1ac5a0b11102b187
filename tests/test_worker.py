"""Stopping: turns are finished and transcripts sent before the process goes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import requests

from .conftest import ROOT, until


def test_term_lets_a_stream_go_on_to_its_end(start_relay, sandbox, prompt, conversation):
    relay = start_relay()
    sandbox.script(prompt, ["a ", "b ", "c "], gate=True)
    answer = relay.ask(prompt, conversation)
    assert answer.next_token() == "a "
    relay.process.process.send_signal(signal.SIGTERM)
    until(lambda: any("Handling signal: term" in entry["message"] for entry in relay.log), "the signal has arrived")
    sandbox.receipt(prompt, 3)
    result = answer.finish()
    assert result.text == "b c "
    assert result.done["status"] == "complete"
    assert relay.process.process.wait(20) == 0
    assert sandbox.text_of(conversation) == "a b c "


def test_term_waits_for_a_turn_whose_client_has_left_and_for_its_transcript(start_relay, sandbox, prompt, conversation):
    relay = start_relay(DISCONNECT_GRACE="30")
    sandbox.script(prompt, ["a ", "b ", "c "], gate=True)
    answer = relay.ask(prompt, conversation)
    assert answer.next_token() == "a "
    answer.close()
    relay.process.process.send_signal(signal.SIGTERM)
    until(lambda: any("Handling signal: term" in entry["message"] for entry in relay.log), "the signal has arrived")
    sandbox.receipt(prompt, 3)
    assert relay.process.process.wait(20) == 0
    assert relay.logged(answer.id, "turn ended")["status"] == "complete"
    assert sandbox.text_of(conversation) == "a b c "


def test_hup_ends_no_stream_and_new_requests_go_to_a_new_worker(start_relay, sandbox, prompt):
    relay = start_relay()
    sandbox.script(prompt, ["a ", "b "], gate=True)
    answer = relay.ask(prompt)
    assert answer.next_token() == "a "
    before = relay.workers
    relay.process.process.send_signal(signal.SIGHUP)
    until(lambda: set(relay.workers) - set(before), "a new worker")
    other = f"{prompt} other"
    sandbox.script(other, ["x"])
    assert until(lambda: asks_well(relay, other), "an answer of the new worker")
    sandbox.receipt(prompt, 2)
    assert answer.finish().done["status"] == "complete"
    until(lambda: not set(relay.workers) & set(before), "the old worker is gone")


def asks_well(relay, prompt):
    try:
        return relay.ask(prompt).finish().done["status"] == "complete"
    except requests.ConnectionError:
        return False


def test_after_hup_the_master_sees_what_happens_while_old_turns_go_on(start_relay, sandbox, prompt):
    relay = start_relay(GATEWAY_IDLE_TIMEOUT="60")
    sandbox.script(prompt, ["a ", "b "], gate=True)
    answer = relay.ask(prompt)
    assert answer.next_token() == "a "
    (old,) = relay.workers
    relay.process.process.send_signal(signal.SIGHUP)
    (new,) = until(lambda: set(relay.workers) - {old}, "a new worker")
    other = f"{prompt} other"
    sandbox.script(other, ["x"])
    assert until(lambda: asks_well(relay, other), "an answer of the new worker")
    os.kill(new, signal.SIGKILL)
    until(lambda: set(relay.workers) - {old, new}, "another in its place")
    assert until(lambda: asks_well(relay, other), "an answer of that one")
    assert old in relay.workers, "the old one still has its turn"
    relay.process.process.send_signal(signal.SIGTERM)
    until(lambda: any("Handling signal: term" in entry["message"] for entry in relay.log), "the first has arrived")
    relay.process.process.send_signal(signal.SIGTERM)
    assert answer.finish().done["status"] == "interrupted"
    assert relay.process.process.wait(10) == 0


RELOADED = """
import os, signal
from pathlib import Path
from types import SimpleNamespace
from server.settings import load
from server.worker import check_before_reload

def configuration():
    names = {}
    exec(compile(Path("gunicorn.conf.py").read_text(), "gunicorn.conf.py", "exec"), names)
    return names["graceful_timeout"], names["worker_connections"]

before, heard = configuration(), []
check_before_reload(SimpleNamespace(signal=lambda number, frame: heard.append(number)), load)
os.environ |= {"GATEWAY_TIMEOUT": "200", "MAX_TURNS": "50"}
os.kill(os.getpid(), signal.SIGHUP)
os.environ["STORE_URL"] = "sqlite:////etc/passwd/x/relay.db"
os.kill(os.getpid(), signal.SIGHUP)
os.environ["STORE_URL"] = "memory://"
print(before, configuration(), len(heard))
"""


def test_a_reload_takes_all_that_follows_from_the_settings_and_no_store_that_cannot_be_used():
    settings = {"ACCESS": "open", "OAUTH_CLIENT_ID": "id", "OAUTH_CLIENT_SECRET": "a secret", "STORE_URL": "memory://"}
    settings |= {"GATEWAY_TIMEOUT": "100", "MAX_TURNS": "20"}
    done = subprocess.run(
        [sys.executable, "-c", RELOADED], cwd=ROOT, env=settings, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "(115, 140) (215, 200) 1\n"


def test_what_outlives_the_drain_is_ended_and_said_so(start_relay, sandbox, prompt):
    relay = start_relay(GATEWAY_IDLE_TIMEOUT="60", GUNICORN_CMD_ARGS="--graceful-timeout 4")
    sandbox.script(prompt, ["a ", "b "], gate=True)
    answer = relay.ask(prompt)
    assert answer.next_token() == "a "
    begin = time.monotonic()
    relay.process.process.send_signal(signal.SIGTERM)
    result = answer.finish()
    assert result.done["status"] == "interrupted"
    relay.process.process.wait(20)
    assert time.monotonic() - begin < 15


def test_an_orphaned_worker_ends_by_itself(start_relay):
    relay = start_relay()
    (worker,) = relay.workers
    os.kill(relay.process.process.pid, signal.SIGKILL)
    relay.process.process.wait(5)
    until(lambda: not Path(f"/proc/{worker}").exists(), "the worker is gone")
