"""GET /readyz: 200 while questions can be answered, else 503 with what to do; asking costs no one anything."""

import contextlib
import os
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import gevent
import pytest
import requests

from server.readiness import Readiness

from .conftest import until


def readiness(relay, client=requests):
    """Status and checks; asked without any key."""
    answer = client.get(f"{relay.url}/readyz", timeout=10)
    state = answer.json()
    assert (answer.status_code == 200) == state["ready"]
    assert answer.headers["Cache-Control"] == "no-store"
    assert all(("error" in check) == (check["state"] == "failing") for check in state["checks"].values())
    return answer.status_code, state["checks"]


def failing(relay, name):
    """The sentence of a check, once it fails."""

    def sentence():
        status, checks = readiness(relay)
        return status == 503 and checks[name].get("error")

    return until(sentence, f"{name} fails")


def is_ready(relay):
    return readiness(relay)[0] == 200


def test_a_server_that_can_answer_is_ready_and_tells_nothing_else(start_relay):
    relay = start_relay(ACCESS="keys", RELAY_API_KEYS="shop:" + 64 * "a", TRANSCRIPT="off")
    status, checks = readiness(relay)
    assert status == 200
    assert checks == {name: {"state": "ok"} for name in ("store", "token", "drain")}


def test_a_login_that_fails_is_not_ready_with_what_to_do_and_is_not_flooded(start_relay, sandbox):
    sandbox.fault("oauth", "invalid_client", calls=1000)
    relay = start_relay(TRANSCRIPT="off")
    assert "OAUTH_CLIENT_SECRET" in failing(relay, "token")
    began, before = time.monotonic(), sandbox.calls()["oauth"]["calls"]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: readiness(relay), range(200)))
    assert {status for status, _ in answers} == {503}
    logins = sandbox.calls()["oauth"]["calls"] - before
    assert logins <= 1 + (time.monotonic() - began) / 5, "one in five seconds, however many ask"
    assert "sandbox-secret" not in str(answers)
    sandbox.forget_faults()
    until(lambda: is_ready(relay), "the login works again")


def test_a_login_that_hangs_is_not_ready_within_the_checks_time(start_relay, sandbox):
    sandbox.fault("oauth", "slow", seconds=60, calls=1000)
    relay = start_relay(TRANSCRIPT="off")
    began = time.monotonic()
    status, checks = readiness(relay)
    assert time.monotonic() - began < 4, "2 seconds a check, and all at the same time"
    assert status == 503
    assert "GENESYS_OAUTH_URL" in checks["token"]["error"]
    assert checks["store"] == {"state": "ok"}


def test_a_login_that_hangs_is_tried_again_only_after_a_while(monkeypatch):
    monkeypatch.setattr("server.readiness.CHECK_TIMEOUT", 0.05)
    monkeypatch.setattr("server.readiness.FRESH", 0)
    tries = []

    class Hanging:
        at_hand = False

        def token(self):
            tries.append(1)
            gevent.sleep(60)

    ready = Readiness(SimpleNamespace(wait_for_store=lambda: True, draining=False), Hanging())
    for _ in range(3):
        assert "GENESYS_OAUTH_URL" in ready.checks()["token"].advice
    assert len(tries) == 1
    ready._login_again = 0.0  # the while is over
    assert ready.checks()["token"].advice
    assert len(tries) == 2


def test_asking_makes_no_login_while_a_token_is_at_hand(start_relay, sandbox):
    relay = start_relay(TRANSCRIPT="off")
    until(lambda: is_ready(relay))
    before = sandbox.calls()["oauth"]["calls"]
    sandbox.fault("oauth", "invalid_client", calls=1000)
    deadline = time.monotonic() + 1.5  # longer than what was found holds
    while time.monotonic() < deadline:
        assert is_ready(relay)
    assert sandbox.calls()["oauth"]["calls"] == before


def test_no_login_is_asked_where_none_is_needed(start_relay, sandbox):
    relay = start_relay(TRANSCRIPT="off", GATEWAY_API_KEY="a-static-bearer")
    before = sandbox.calls()["oauth"]["calls"]
    assert is_ready(relay)
    assert sandbox.calls()["oauth"]["calls"] == before


@contextlib.contextmanager
def full_disk(relay):
    (worker,) = relay.workers
    _, hard = resource.prlimit(worker, resource.RLIMIT_FSIZE)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (hard, hard))


@contextlib.contextmanager
def stopped(redis):
    redis.stop()
    try:
        yield
    finally:
        redis.start()


@contextlib.contextmanager
def stalled(redis):
    """It takes connections and answers nothing."""
    os.kill(redis.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(redis.process.pid, signal.SIGCONT)


@pytest.mark.parametrize("break_store", [stopped, stalled])
def test_a_redis_that_is_gone_or_mute_is_not_ready_and_is_again_afterwards(start_redis, start_relay, break_store):
    redis = start_redis()
    relay = start_relay(STORE_URL=redis.url, TRANSCRIPT="off")
    until(lambda: is_ready(relay))
    with break_store(redis):
        assert "STORE_URL" in failing(relay, "store")
    until(lambda: is_ready(relay), "the store is back")


def test_a_disk_that_is_full_is_not_ready_and_is_again_afterwards(start_relay):
    relay = start_relay(TRANSCRIPT="off")
    with full_disk(relay):
        assert "free the disk" in failing(relay, "store")
    until(lambda: is_ready(relay), "there is room again")


def test_a_worker_that_stops_is_not_ready(start_relay, sandbox, prompt):
    relay = start_relay(TRANSCRIPT="off", GATEWAY_IDLE_TIMEOUT="60", DISCONNECT_GRACE="-1")
    sandbox.script(prompt, ["a", "b"], gate=True)
    answer = relay.ask(prompt)
    answer.next_token()
    with requests.Session() as client:  # its connection was there before
        assert readiness(relay, client)[0] == 200
        relay.process.process.send_signal(signal.SIGTERM)
        until(lambda: not accepts(relay), "the worker stops")
        status, checks = readiness(relay, client)
    assert status == 503
    assert "another" in checks["drain"]["error"]
    assert checks["store"] == checks["token"] == {"state": "ok"}
    sandbox.receipt(prompt, 2)
    assert answer.finish().done["status"] == "complete"


def accepts(relay):
    try:
        return requests.get(f"{relay.url}/healthz", timeout=5).ok
    except requests.ConnectionError:
        return False
