"""Deploys and recycling under load: no turn ends, no token is lost or comes twice, clients who can come back do."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from .conftest import RelayServer, until

TOKENS = [f"t{i} " for i in range(120)]
STREAMS = 80  # followed by clients who come back
POSTS = 20  # of the seed's route, whose clients cannot
SETTINGS = {"WEB_CONCURRENCY": "2", "GATEWAY_IDLE_TIMEOUT": "60", "DISCONNECT_GRACE": "30", "LOG_LEVEL": "INFO"}


@pytest.fixture
def under_load(sandbox, prompt):
    """Runs 100 streams, does something in the middle, and checks that each client got every token once."""

    def run(relay, disturb, others=()):
        sandbox.script(prompt, TOKENS, interval_ms=50)
        with ThreadPoolExecutor(STREAMS + POSTS) as pool:
            posts = [pool.submit(lambda: relay.ask(prompt).finish()) for _ in range(POSTS)]
            streams = list(pool.map(lambda _: relay.begin(prompt), range(STREAMS)))
            reading = [pool.submit(relay.read_patiently, stream, 0, others) for stream in streams]
            until(lambda: all(relay.state(stream)["last_event_id"] > 3 for stream in streams), "all run")
            disturb()
            results = [future.result() for future in [*posts, *reading]]
        for result in results:
            assert result.tokens == TOKENS
            assert result.done["status"] == "complete"
            assert [int(event["id"]) for event in result.events] == list(range(1, len(TOKENS) + 2))
        assert sandbox.gateway_calls(prompt) == STREAMS + POSTS, "nothing was asked twice"

    return run


def test_hup_loses_nothing(start_relay, under_load):
    relay = start_relay(**SETTINGS)
    before = set(relay.workers)

    def reload():
        relay.process.process.send_signal(signal.SIGHUP)
        until(lambda: len(set(relay.workers) - before) == 2, "new workers")

    under_load(relay, reload)
    until(lambda: not before & set(relay.workers), "the old workers are gone")


def test_term_with_another_server_on_the_same_store_loses_nothing(shared_store, start_relay, under_load):
    shared = SETTINGS | {"STORE_URL": shared_store}
    relay, other = start_relay(**shared), start_relay(**shared)
    under_load(relay, lambda: relay.process.process.send_signal(signal.SIGTERM), [other])
    assert relay.process.process.wait(20) == 0


def test_recycling_loses_nothing(start_relay, under_load):
    # Looking at the streams' states takes many requests: both workers reach their limit, one after the other.
    relay = start_relay(**SETTINGS, GUNICORN_CMD_ARGS="--max-requests 400 --max-requests-jitter 400")
    before = set(relay.workers)
    under_load(relay, lambda: None)

    def recycled():
        requests.get(f"{relay.url}/healthz", timeout=30)
        return not before & set(relay.workers)

    until(recycled, "both workers were replaced", patience=60)


def test_followers_are_told_to_come_back_at_once(start_relay, sandbox, prompt):
    relay = start_relay(GATEWAY_IDLE_TIMEOUT="60", DISCONNECT_GRACE="30")
    sandbox.script(prompt, ["a ", "b "], gate=True)
    stream = relay.begin(prompt)
    follower = requests.get(f"{relay.url}/streams/{stream}", stream=True, timeout=20)
    pieces = follower.iter_content(None)
    received = next(pieces)
    while b"token" not in received:
        received += next(pieces)
    relay.process.process.send_signal(signal.SIGHUP)
    received += b"".join(pieces)  # ends cleanly: a cut would raise
    wait = int(received.rsplit(b"retry: ", 1)[1])
    assert received.endswith(b"retry: %d\n\n" % wait)
    assert 50 <= wait <= 500
    begin = time.monotonic()
    again = until(lambda: new_answer(relay, stream), "another worker answers")
    assert time.monotonic() - begin < 5
    sandbox.receipt(prompt, 2)
    assert again.finish().text == "b "


def new_answer(relay, stream):
    try:
        return relay.follow(stream, 1)
    except requests.ConnectionError:
        return None


def test_a_second_term_ends_what_is_left_and_says_so(start_relay, sandbox, prompt):
    relay = start_relay(GATEWAY_IDLE_TIMEOUT="60")
    sandbox.script(prompt, ["a ", "b "], gate=True)
    answer = relay.ask(prompt)
    assert answer.next_token() == "a "
    relay.process.process.send_signal(signal.SIGTERM)
    until(lambda: any("Handling signal: term" in entry["message"] for entry in relay.log), "the first TERM has arrived")
    relay.process.process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    result = answer.finish()
    assert result.error["code"] == "interrupted"
    assert result.done["status"] == "interrupted"
    relay.process.process.wait(10)
    assert time.monotonic() - begin < 5


def test_int_ends_at_once_and_leaves_a_whole_journal(start_relay, sandbox, prompt, tmp_path):
    store = f"sqlite:///{tmp_path}/kept.db"
    relay = start_relay(STORE_URL=store, GATEWAY_IDLE_TIMEOUT="60")
    sandbox.script(prompt, ["a ", "b "], gate=True)
    stream = relay.begin(prompt)
    follower = relay.follow(stream)
    assert follower.next_token() == "a "
    relay.process.process.send_signal(signal.SIGINT)
    assert follower.finish().done["status"] == "interrupted"
    relay.process.process.wait(10)
    after = start_relay(STORE_URL=store)
    state = after.state(stream)
    assert (state["status"], state["text"], state["last_event_id"]) == ("interrupted", "a ", 3)


def test_a_follower_on_its_way_to_another_worker_is_waited_for(start_relay, sandbox, prompt):
    relay = start_relay(GATEWAY_IDLE_TIMEOUT="60", DISCONNECT_GRACE="0")
    sandbox.script(prompt, ["a ", "b "], gate=True)
    answer = relay.ask(prompt)  # keeps the turn alive until its stream is followed as well
    assert answer.next_token() == "a "
    follower = relay.follow(answer.id)
    assert follower.next_token() == "a "
    answer.close()
    relay.process.process.send_signal(signal.SIGHUP)
    assert list(follower) == [], "sent elsewhere"
    again = until(lambda: new_answer(relay, answer.id), "another worker answers")
    sandbox.receipt(prompt, 2)
    assert again.finish().text == "b "


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_that_is_told_to_stop_as_it_is_born_does(number, start_relay, tmp_path, monkeypatch):
    birth, born = tmp_path / "birth", tmp_path / "born"
    config = tmp_path / "gunicorn.conf.py"
    config.write_text(
        f"exec(open({str(RelayServer.config)!r}).read())\n"
        "import os, time\n"
        "keep = post_fork\n"
        "def post_fork(arbiter, worker):\n"
        f"    open({str(birth)!r}, 'a').close()\n"
        f"    while worker.age > 1 and not os.path.exists({str(born)!r}):\n"
        "        time.sleep(0.01)\n"
        "    keep(arbiter, worker)\n"
    )
    monkeypatch.setattr(RelayServer, "config", config)
    relay = start_relay()
    (first,) = relay.workers
    birth.unlink()
    relay.process.process.send_signal(signal.SIGHUP)
    until(birth.exists, "another worker is being born")
    relay.process.process.send_signal(number)
    until(lambda: first not in relay.workers, "the first has been told")
    born.touch()
    assert relay.process.process.wait(10) == 0, "and so was the other, which no one waits out"


@pytest.mark.parametrize("worker_class", ["gevent", "sync"])
def test_a_worker_of_another_class_hears_that_it_is_to_stop(worker_class, start_relay):
    relay = start_relay(GUNICORN_CMD_ARGS=f"--worker-class {worker_class}")
    relay.process.process.send_signal(signal.SIGTERM)
    assert relay.process.process.wait(10) == 0
