"""Workers that die, hang or lose their store: no turn stays open, no follower waits for ever, what was kept stays."""

import contextlib
import os
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
import requests

from .conftest import until
from .proxy import Wire

RECOVERY = 5.0  # seconds from kill -9 to the end of the turn, for every follower
TOKENS = [f"t{i} " for i in range(20)]


@pytest.fixture
def pair(shared_store, start_relay):
    """Two workers with one store."""
    shared = {"STORE_URL": shared_store, "GATEWAY_IDLE_TIMEOUT": "60", "DISCONNECT_GRACE": "30"}
    return start_relay(**shared), start_relay(**shared)


def kill_whole(relay):
    """kill -9 of the worker and of the master, which would start another one."""
    for pid in (relay.process.process.pid, *relay.workers):
        os.kill(pid, signal.SIGKILL)


def ids_of(result):
    return [int(event["id"]) for event in result.events]


def test_a_turn_of_a_dead_worker_is_ended_by_another_one(pair, sandbox, prompt):
    here, there = pair
    sandbox.script(prompt, TOKENS, gate=True)
    stream = here.begin(prompt)
    near, far = here.follow(stream), there.follow(stream)
    for _ in range(3):
        near.next_token()
        assert far.next_token()
        sandbox.receipt(prompt, 3)
    until(lambda: there.state(stream)["last_event_id"] >= 3, "the store has it")
    kill_whole(here)
    killed = time.monotonic()
    result = far.finish_with_jump()
    assert time.monotonic() - killed < RECOVERY
    assert result.error["code"] == "interrupted"
    assert result.done["status"] == "interrupted"
    assert there.state(stream)["text"].startswith("t0 t1 t2 ")
    assert there.logged(stream, "turn interrupted: its worker has died")


def test_a_client_that_saw_more_than_was_kept_gets_the_end_behind_its_cursor(pair, sandbox, prompt):
    here, there = pair
    sandbox.script(prompt, TOKENS, interval_ms=0)
    sandbox.fault("gateway", "stall", prompt=prompt, after=15)
    stream = here.begin(prompt)
    near = here.follow(stream)
    cursor = 0
    while cursor < 15:
        cursor = int(near.next_event()["id"])
    kill_whole(here)  # most likely before the first flush
    killed = time.monotonic()
    result = there.follow(stream, cursor).finish_with_jump()
    assert time.monotonic() - killed < RECOVERY
    assert result.tokens == []
    assert ids_of(result)[0] > cursor
    assert result.done["status"] == "interrupted"


def test_gunicorns_own_restart_is_enough(start_relay, sandbox, prompt):
    relay = start_relay(GATEWAY_IDLE_TIMEOUT="60", DISCONNECT_GRACE="30")
    sandbox.script(prompt, ["a ", "b "], gate=True)
    stream = relay.begin(prompt)
    assert relay.follow(stream).next_token() == "a "
    until(lambda: relay.state(stream)["text"] == "a ", "the text")
    (worker,) = relay.workers
    os.kill(worker, signal.SIGKILL)
    killed = time.monotonic()
    assert relay.read_patiently(stream).done["status"] == "interrupted"
    assert time.monotonic() - killed < RECOVERY


def begin_on_both_workers(relay, prompt):
    """Begins 40 streams or some more, until both workers have some; returns them, and the worker that has fewer."""
    streams, turns = [], {}

    def spread():
        streams.append(relay.begin(prompt))
        health = requests.get(f"{relay.url}/healthz", timeout=10).json()
        turns[health["worker"]] = health["turns"]
        return len(streams) >= 40 and len([count for count in turns.values() if count]) == 2

    until(spread, "both workers have streams")
    return streams, min(turns, key=turns.get)


def test_kill_9_of_one_of_two_workers_ends_its_streams_alone(start_relay, sandbox, prompt):
    relay = start_relay(WEB_CONCURRENCY="2", GATEWAY_IDLE_TIMEOUT="60", DISCONNECT_GRACE="30")
    tokens = [f"t{i} " for i in range(200)]
    sandbox.script(prompt, tokens, interval_ms=40)
    streams, victim = begin_on_both_workers(relay, prompt)
    with ThreadPoolExecutor(200) as pool:
        reading = [pool.submit(relay.read_patiently, stream) for stream in streams]
        until(lambda: all(relay.state(stream)["last_event_id"] > 5 for stream in streams), "all run")
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        interrupted = [s for s in streams if until(lambda s=s: relay.state(s)["status"] != "running", patience=30)]
        results = [future.result() for future in reading]
    assert interrupted
    statuses = [result.done["status"] for result in results]
    assert set(statuses) == {"complete", "interrupted"}
    for result in results:
        assert result.tokens == tokens[: len(result.tokens)], "no token lost in the middle, none twice"
        assert [event.get("event") for event in result.events].count("done") == 1
        if result.done["status"] == "complete":
            assert result.tokens == tokens
    lines = [entry for entry in relay.log if entry["message"] == "turn interrupted: its worker has died"]
    ended = [datetime.fromisoformat(entry["time"]).timestamp() for entry in lines]
    assert len(ended) == statuses.count("interrupted")
    assert time.monotonic() - killed >= 0
    assert max(ended) - (time.time() - (time.monotonic() - killed)) < RECOVERY


def test_a_worker_that_wakes_up_late_does_nothing_twice(pair, sandbox, prompt):
    here, there = pair
    sandbox.script(prompt, TOKENS, gate=True)
    stream = here.begin(prompt)
    near, far = here.follow(stream), there.follow(stream)
    assert near.next_token() == far.next_token() == "t0 "
    (worker,) = here.workers
    os.kill(worker, signal.SIGSTOP)
    try:
        result = far.finish_with_jump()
        assert result.done["status"] == "interrupted"
        sandbox.receipt(prompt, len(TOKENS))
    finally:
        os.kill(worker, signal.SIGCONT)
    late = near.finish_with_jump()
    assert late.done["status"] == "interrupted"
    assert ids_of(late)[-2:] == ids_of(result)[-2:], "both were told the same end"
    assert there.read_patiently(stream).tokens == ["t0 "]
    assert here.read_patiently(stream).events == there.read_patiently(stream).events
    assert here.logged(stream, "turn failed")["status"] == "interrupted"
    assert [ended_in(here), ended_in(there)] == [0, 1], "who has ended it has counted it"


def ended_in(relay):
    """The turns that /metrics calls interrupted."""
    text = requests.get(f"{relay.url}/metrics", timeout=10).text
    (line,) = (line for line in text.splitlines() if 'status="interrupted"' in line)
    return float(line.split()[-1])


def limit_files(relay, limit=None):
    """Lets the worker's files grow no further than `limit` bytes: what a full disk does to the store."""
    (worker,) = relay.workers
    _, hard = resource.prlimit(worker, resource.RLIMIT_FSIZE)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (hard if limit is None else limit, hard))


def test_a_full_disk_refuses_new_turns_and_breaks_no_running_one(start_relay, sandbox, prompt):
    relay = start_relay(GATEWAY_IDLE_TIMEOUT="60", TRANSCRIPT="off")
    sandbox.script(prompt, TOKENS, gate=True)
    answer = relay.ask(prompt)
    assert answer.next_token() == "t0 "
    limit_files(relay, 1)
    try:
        until(lambda: any("journal out of order" in entry["message"] for entry in relay.log), "the log line")
        refused = relay.ask(prompt)
        assert refused.response.status_code == 503
        assert refused.response.json()["code"] == "store_unavailable"
        assert refused.response.headers["Retry-After"]
        assert sandbox.gateway_calls(prompt) == 1
        sandbox.receipt(prompt, len(TOKENS))
        result = answer.finish()
        assert result.tokens == TOKENS[1:]
        assert result.done["status"] == "complete"
    finally:
        limit_files(relay)
    until(lambda: requests.get(f"{relay.url}/streams/{answer.id}", timeout=10).status_code == 200, "it is kept")
    assert until(lambda: (s := relay.state(answer.id))["status"] == "complete" and s)["text"] == "".join(TOKENS)
    until(lambda: any(entry["message"] == "journal in order again" for entry in relay.log), "the log line")
    assert relay.ask(prompt).finish().done["status"] == "complete"


def test_a_store_that_cannot_be_used_ends_the_start_with_one_line(start_relay, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AssertionError, match=r"STORE_URL=.* cannot be used"):
        start_relay(STORE_URL=f"sqlite:///{tmp_path}/file/relay.db")


def test_the_stores_files_are_for_their_owner_alone(relay):
    found = [path for path in os.scandir(relay.folder.name) if path.is_file()]
    assert len(found) == 3
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in found)


def test_a_redis_that_is_restarted_breaks_no_stream_and_catches_up(start_redis, start_relay, sandbox, prompt):
    redis = start_redis("--appendonly", "yes", "--appendfsync", "always")
    shared = {"STORE_URL": redis.url, "GATEWAY_IDLE_TIMEOUT": "60", "DISCONNECT_GRACE": "30", "TRANSCRIPT": "off"}
    here, there = start_relay(**shared), start_relay(**shared)
    sandbox.script(prompt, TOKENS, gate=True)
    stream = here.begin(prompt)
    near, far = here.follow(stream), there.follow(stream)
    assert near.next_token() == far.next_token() == "t0 "
    redis.stop()
    sandbox.receipt(prompt, 10)
    for count in range(1, 11):
        assert near.next_token() == f"t{count} ", "those who follow in the same worker go on from memory"
    refused = there.ask(prompt)
    assert refused.response.status_code == 503
    assert refused.response.json()["code"] == "store_unavailable"
    out = time.monotonic() + 4  # longer than a lease
    until(lambda: time.monotonic() > out, "the leases have run out")
    redis.start()
    sandbox.receipt(prompt, len(TOKENS))
    assert near.finish().tokens == TOKENS[11:]
    result = far.finish()
    assert result.tokens == TOKENS[1:], "the other worker gets all, once"
    assert result.done["status"] == "complete"
    assert there.state(stream)["text"] == "".join(TOKENS)


def test_a_redis_that_has_lost_all_breaks_no_running_stream(start_redis, start_relay, sandbox, prompt):
    redis = start_redis()
    relay = start_relay(STORE_URL=redis.url, GATEWAY_IDLE_TIMEOUT="60")
    sandbox.script(prompt, TOKENS, gate=True)
    answer = relay.ask(prompt)
    assert answer.next_token() == "t0 "
    redis.stop()
    redis.start()
    sandbox.receipt(prompt, len(TOKENS))
    result = answer.finish()
    assert result.tokens == TOKENS[1:]
    assert result.done["status"] == "complete"
    sandbox.script(f"{prompt} next", ["a"])
    assert until(lambda: relay.ask(f"{prompt} next").response.status_code == 200, "it works again")


def test_while_redis_is_gone_its_own_worker_still_shows_and_cancels_a_turn(start_redis, start_relay, sandbox, prompt):
    redis = start_redis()
    relay = start_relay(STORE_URL=redis.url, GATEWAY_IDLE_TIMEOUT="60", TRANSCRIPT="off")
    sandbox.script(prompt, TOKENS, gate=True)
    stream = relay.begin(prompt)
    first = relay.follow(stream)
    assert first.next_token() == "t0 "
    redis.stop()
    first.close()
    again = relay.follow(stream, 1)
    sandbox.receipt(prompt, 1)
    assert again.next_token() == "t1 "
    assert relay.state(stream)["text"] == "t0 t1 "
    assert requests.delete(f"{relay.url}/streams/{stream}", timeout=10).status_code == 204
    redis.start()
    assert again.finish().done["status"] == "cancelled"


def test_an_outage_longer_than_the_grace_cancels_no_turn_that_is_followed_elsewhere(
    start_redis, start_relay, sandbox, prompt
):
    redis = start_redis("--appendonly", "yes", "--appendfsync", "always")
    shared = {"STORE_URL": redis.url, "GATEWAY_IDLE_TIMEOUT": "60", "DISCONNECT_GRACE": "2", "TRANSCRIPT": "off"}
    here, there = start_relay(**shared), start_relay(**shared)
    sandbox.script(prompt, TOKENS, gate=True)
    far = there.follow(here.begin(prompt))
    assert far.next_token() == "t0 "
    redis.stop()
    out = time.monotonic() + 7  # longer than the grace and a watcher's word
    until(lambda: time.monotonic() > out, "the grace is over")
    redis.start()
    sandbox.receipt(prompt, len(TOKENS))
    assert far.finish().tokens == TOKENS[1:]


def test_a_worker_that_stops_waits_for_its_store(start_redis, start_relay, sandbox, prompt):
    redis = start_redis("--appendonly", "yes", "--appendfsync", "always")
    shared = {"STORE_URL": redis.url, "GATEWAY_IDLE_TIMEOUT": "60", "TRANSCRIPT": "off"}
    here, there = start_relay(**shared), start_relay(**shared)
    sandbox.script(prompt, TOKENS, gate=True)
    answer = here.ask(prompt)
    assert answer.next_token() == "t0 "
    until(lambda: there.state(answer.id)["text"] == "t0 ", "it is kept")
    redis.stop()
    sandbox.receipt(prompt, len(TOKENS))
    for token in TOKENS[1:]:
        assert answer.next_token() == token
    here.process.process.send_signal(signal.SIGTERM)
    out = time.monotonic() + 3
    until(lambda: time.monotonic() > out, "the worker has had time to go")
    redis.start()
    assert answer.finish().done["status"] == "complete"
    assert here.process.process.wait(20) == 0
    state = there.state(answer.id)
    assert (state["status"], state["text"]) == ("complete", "".join(TOKENS))


def test_a_worker_cut_off_from_redis_does_not_contradict_who_took_over(start_redis, start_relay, sandbox, prompt):
    redis = start_redis()
    with contextlib.closing(Wire(redis.port)) as wire:
        shared = {"GATEWAY_IDLE_TIMEOUT": "60", "TRANSCRIPT": "off", "DISCONNECT_GRACE": "30"}
        here = start_relay(STORE_URL=f"redis://127.0.0.1:{wire.port}/0", **shared)
        there = start_relay(STORE_URL=redis.url, **shared)
        sandbox.script(prompt, TOKENS, gate=True)
        stream = here.begin(prompt)
        near, far = here.follow(stream), there.follow(stream)
        assert near.next_token() == far.next_token() == "t0 "
        wire.cut()
        result = far.finish_with_jump()
        assert result.done["status"] == "interrupted"
        sandbox.receipt(prompt, len(TOKENS))
        assert near.next_token() == "t1 ", "text goes on from memory"
        wire.mend()
        late = near.finish_with_jump()
        assert late.done["status"] == "interrupted"
        assert ids_of(late)[-2:] == ids_of(result)[-2:], "both were told the same end"
