"""GET /metrics: the numbers of all workers, whichever is asked, whatever has become of them."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families

from server import metrics, metrics_folder
from server.access.keys import make_key
from server.measure import Measure

from .conftest import ROOT, RelayServer, until


class CountingRelay(RelayServer):
    app = ("tests.counting_app:app",)

    def count(self, worker, **numbers):
        """Makes this worker count and measure."""

        def told():
            # Each request has a connection of its own, and whichever worker takes it.
            return requests.post(f"{self.url}/count/{worker}", params=numbers, timeout=10).text

        until(lambda: told() == str(worker), f"worker {worker} takes a request")

    def metrics(self, **headers):
        return requests.get(f"{self.url}/metrics", headers=headers, timeout=10)

    def samples(self):
        """Values by name, with the labels' values behind colons, in the order of their names."""
        families = text_string_to_metric_families(self.metrics().text)
        return {
            ":".join([sample.name, *sample.labels.values()]): sample.value
            for family in families
            for sample in family.samples
        }

    @property
    def files(self):
        return sorted(path.name for path in self.metrics_folder.iterdir())

    @property
    def metrics_folder(self):
        environment = Path(f"/proc/{self.workers[0]}/environ").read_bytes()  # only what the master was started with
        assert b"PROMETHEUS_MULTIPROC_DIR" not in environment
        maps = Path(f"/proc/{self.workers[0]}/maps")  # another worker may have been the first to be ready
        found = until(lambda: re.search(r"\S+/relay-metrics-[^/]+", maps.read_text()), "the worker counts")
        return Path(found[0])


@pytest.fixture
def counting(sandbox):
    relay = CountingRelay(sandbox.url, WEB_CONCURRENCY="2", TRANSCRIPT="off")  # which measures by itself
    until(lambda: len(relay.workers) == 2, "both workers")
    yield relay
    relay.stop()


def test_counts_add_up_over_workers_and_gauges_each_in_their_way(counting):
    first, second = counting.workers
    counting.count(first, turns=10, retries=1, links=3, lag=2.5)
    counting.count(second, turns=5, retries=1, links=2, lag=7.5)
    counting.count(first, turns=10, links=4, lag=3.5)
    for _ in range(10):
        samples = counting.samples()
        assert samples["relay_transcript_turns_delivered_total"] == 25
        assert samples["relay_transcript_retries_total:silent"] == 2
        assert samples["relay_transcript_retries_total:refused"] == 0
        assert samples["relay_transcript_lag_seconds"] == 7.5
        assert samples["relay_transcript_links"] == 6


def test_a_dead_workers_gauges_vanish_and_its_counts_stay(counting):
    first, second = counting.workers
    counting.count(first, turns=4, links=2, lag=9)
    counting.count(second, turns=1, links=1, lag=1)
    os.kill(first, signal.SIGKILL)
    until(lambda: len(counting.workers) == 2 and first not in counting.workers, "another worker has come")
    (fresh,) = set(counting.workers) - {second}
    counting.count(fresh, turns=2)
    samples = counting.samples()
    assert samples["relay_transcript_links"] == 1
    assert samples["relay_transcript_lag_seconds"] == 1
    assert samples["relay_transcript_turns_delivered_total"] == 7


def test_a_reload_keeps_the_counts_and_no_file_is_left_over(counting):
    turns = 0
    for _ in range(4):
        workers = counting.workers
        for worker in workers:
            counting.count(worker, turns=1)
            turns += 1
        counting.process.process.send_signal(signal.SIGHUP)
        until(lambda old=workers: len(counting.workers) == 2 and not {*old} & {*counting.workers}, "other workers")
    assert counting.samples()["relay_transcript_turns_delivered_total"] == turns == 8
    counters = [name for name in counting.files if name.startswith("counter")]
    assert len(counters) <= 4, "old and new workers live at the same time for a while, but no longer"


@pytest.fixture
def pair(sandbox):
    """Two workers that do their real work."""
    relay = CountingRelay(sandbox.url, WEB_CONCURRENCY="2", TRANSCRIPT="off", MAX_TURNS="7", DISCONNECT_GRACE="-1")
    until(lambda: len(relay.workers) == 2, "both workers")
    yield relay
    relay.stop()


def reload(relay):
    before = relay.workers
    relay.process.process.send_signal(signal.SIGHUP)
    until(lambda: len(relay.workers) == 2 and not {*before} & {*relay.workers}, "other workers")


def shows(relay, **expected):
    """Waits until /metrics has these values; what a worker adds up, another one shows a moment later."""
    wrong = {}

    def is_shown():
        samples = relay.samples()
        wrong.clear()
        wrong.update({name: samples.get(f"relay_{name}") for name in expected})
        return wrong == expected

    try:
        until(is_shown)
    except AssertionError:
        assert wrong == expected


def test_turns_tokens_and_times_add_up_over_workers_and_a_reload(pair, sandbox, prompt):
    tokens = [f"t{i} " for i in range(10)]
    sandbox.script(prompt, tokens, interval_ms=2)
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda _: pair.ask(prompt).finish(), range(4)))
        assert all(result.done["status"] == "complete" for result in results)
        reload(pair)
    shows(
        pair,
        turns_begun_total=12,
        **{"turns_ended_total::complete": 12, "turns_ended_total:gateway_unavailable:failed": 0},
        tokens_total=120,
        first_token_seconds_count=12,
        turn_duration_seconds_count=12,
        token_gap_seconds_count=12 * 9,
        turns_running=0,
        turns_limit=14,
        followers=0,
        workers=2,
        journal_failing=0,
    )
    samples = until(
        lambda: (found := pair.samples())["relay_memory_resident_bytes"] > 2e7 and found, "both have measured"
    )
    assert samples["relay_token_gap_seconds_bucket:+Inf"] == 12 * 9
    assert 0.002 * 100 < samples["relay_token_gap_seconds_sum"] < samples["relay_turn_duration_seconds_sum"]
    assert samples["relay_journal_flush_seconds_count"] >= 3
    assert samples["relay_access_token_fetches_total:ok"] >= 2
    assert samples["relay_loop_delay_seconds_count"] > 0
    assert samples["relay_cpu_seconds_total"] > 0.1
    assert any(re.fullmatch(r"relay_build_info:3[.\d]+:0[.\d]+", name) for name in samples)


def test_what_runs_is_shown_while_it_runs_and_dies_with_its_worker(pair, sandbox, prompt):
    sandbox.script(prompt, ["a", "b"], gate=True)
    answers = [pair.ask(prompt) for _ in range(6)]
    for answer in answers:
        assert answer.next_token() == "a"
    shows(pair, turns_running=6, followers=6, tokens_total=6)
    for worker in pair.workers:
        os.kill(worker, signal.SIGKILL)
    until(lambda: pair._answers() and len(pair.workers) == 2, "other workers")
    # Nothing that was counted is lost, and nothing that was alive is left over.
    shows(pair, turns_running=0, followers=0, workers=2, turns_begun_total=6, tokens_total=6)
    # Who has died counts nothing: those who end the turns do, each turn once over all of them.
    shows(pair, **{"turns_ended_total:interrupted:interrupted": 6})
    for answer in answers:
        assert pair.logged(answer.id, "turn interrupted: its worker has died")["conversation"]
        answer.close()


def test_failures_retries_and_refusals_are_counted_by_their_cause(pair, sandbox, prompt):
    sandbox.script(prompt, ["a"])
    sandbox.fault("gateway", "rate_limited", prompt=prompt, retry_after=0)
    assert pair.ask(prompt).finish().done["status"] == "complete"
    sandbox.fault("gateway", "expired", prompt=prompt)
    assert pair.ask(prompt).finish().done["status"] == "complete"
    sandbox.fault("gateway", "bad_request_400", prompt=prompt)
    assert pair.ask(prompt).finish().done["status"] == "failed"
    sandbox.fault("gateway", "unavailable_503", calls=3, prompt=prompt, retry_after=0)
    assert pair.ask(prompt).finish().done["status"] == "failed"
    requests.post(f"{pair.url}/stream-llm", json={"prompt": ""}, timeout=10)
    requests.get(f"{pair.url}/streams/nowhere", timeout=10)
    with socket.create_connection(("127.0.0.1", int(pair.url.rpartition(":")[2]))) as client:
        client.sendall(b"nonsense\r\n\r\n")
        while client.recv(4096):
            pass
    expected = {
        "turns_ended_total::complete": 2,
        "turns_ended_total:gateway_rejected:failed": 1,
        "turns_ended_total:gateway_unavailable:failed": 1,
        "gateway_retries_total:rate_limited": 1,
        "gateway_retries_total:gateway_unauthorized": 1,
        "gateway_retries_total:gateway_unavailable": 2,
        "requests_refused_total:stream_not_found": 1,
        "requests_refused_total:bad_request": 2,
    }
    shows(pair, **expected)


def test_a_store_that_fails_and_logins_that_do_are_counted(start_redis, sandbox, prompt):
    redis = start_redis()
    relay = CountingRelay(sandbox.url, STORE_URL=redis.url, TRANSCRIPT="off", GATEWAY_IDLE_TIMEOUT="60")
    try:
        sandbox.script(prompt, ["a", "b", "c"], gate=True)
        answer = relay.ask(prompt)
        assert answer.next_token() == "a"
        redis.stop()
        until(lambda: relay.samples()["relay_journal_failing"] == 1, "the store fails")
        sandbox.receipt(prompt, 2)
        assert answer.next_token() == "b"
        until(lambda: relay.samples()["relay_journal_flush_failures_total"] > 0, "a flush fails")
        redis.start()
        shows(relay, journal_failing=0)
        sandbox.expire_tokens()
        sandbox.fault("oauth", "invalid_client")
        assert relay.ask(prompt).finish().error["code"] == "credentials_rejected"
        shows(relay, **{"access_token_fetches_total:rejected": 1, "access_token_fetches_total:ok": 1})
    finally:
        relay.stop()


def test_gaps_are_those_between_tokens_and_the_longest_is_told():
    measure = Measure(began=10.0)
    for now, tokens in [(10.5, 1), (10.75, 1), (13.0, 5), (13.25, 2)]:
        measure.take(now, tokens)
    measure.note_followers(2)
    measure.note_followers(1)
    assert measure.fields(14.0) == {
        "tokens": 9,
        "first_token_ms": 500,
        "longest_gap_ms": 2250,
        "duration_ms": 4000,
        "followers": 2,
    }


def test_values_added_up_are_counted_in_the_same_buckets_as_one_by_one():
    registry = CollectorRegistry()
    bounds = (0.1, 1.0, 10.0)
    at_once = metrics.SpreadTally("at_once_seconds", "Added up.", bounds)
    one_by_one = Histogram("one_by_one", "Counted.", registry=registry, buckets=bounds)
    values = [0.0, 0.05, 0.1, 0.10001, 1.0, 3.0, 10.0, 11.0]
    for value in values:
        at_once.observe(value, 0)
        one_by_one.observe(value)
    at_once.flush()
    at_once.flush()
    for suffix, labels in [("_count", {}), ("_sum", {}), *(("_bucket", {"le": str(bound)}) for bound in bounds)]:
        expected = registry.get_sample_value(f"one_by_one{suffix}", labels)
        assert metrics.registry.get_sample_value(f"relay_at_once_seconds{suffix}", labels) == expected


def test_one_line_sums_a_turn_up(start_relay, sandbox, prompt, conversation):
    key = make_key("shop")
    relay = start_relay(ACCESS="keys", RELAY_API_KEYS=key.entry, LOG_LEVEL="INFO")
    sandbox.script(prompt, ["Hel", "lo", "!"], gate=True)
    headers = {"Authorization": f"Bearer {key.key}"}
    body = {"conversationId": conversation, "prompt": prompt}
    url = relay.url + requests.post(f"{relay.url}/streams", json=body, headers=headers, timeout=10).json()["url"]
    first, second = [requests.get(url, headers=headers, stream=True, timeout=30) for _ in range(2)]
    sandbox.receipt(prompt, 3)
    assert first.text.count('data: {"token"') == second.text.count('data: {"token"') == 3
    turn = first.headers["X-Stream-Id"]
    line = relay.logged(turn, "turn ended")
    assert [entry for entry in relay.log if entry.get("turn") == turn and "status" in entry] == [line]
    assert (
        line
        | {
            "conversation": conversation,
            "caller": "key:shop",
            "status": "complete",
            "finish_reason": "stop",
            "tokens": 3,
            "chars": 6,
            "retries": 0,
            "followers": 2,
            "worker": relay.workers[0],
        }
        == line
    )
    assert 0 < line["first_token_ms"] <= line["duration_ms"]
    assert 0 <= line["longest_gap_ms"] <= line["duration_ms"]
    assert re.fullmatch(r"[\w-]{8,}", line["correlation"])
    assert line["prompt_tokens"] > 0
    assert line["completion_tokens"] > 0
    assert key.key not in relay.process.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_folder_is_gone_after_the_end(sandbox, number):
    relay = CountingRelay(sandbox.url)
    folder = relay.metrics_folder
    assert folder.is_dir()
    relay.stop(number)
    assert not folder.exists()


def test_a_server_that_cannot_listen_leaves_no_folder(counting):
    environment = {
        "BIND": counting.url.removeprefix("http://"),
        "STORE_URL": "memory://",
        "ACCESS": "open",
        "OAUTH_CLIENT_ID": "a",
        "OAUTH_CLIENT_SECRET": "b",
    }
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py")]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, stderr=subprocess.DEVNULL)
    assert process.wait(30) != 0
    assert not list(counting.metrics_folder.parent.glob(f"relay-metrics-{process.pid}-*"))


def test_folders_of_killed_masters_are_removed_and_those_in_use_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_folder, "YOUNG", -1)
    abandoned, used, foreign = [tmp_path / name for name in ("relay-metrics-1-x", "relay-metrics-2-x", "other-3-x")]
    for folder in (abandoned, used, foreign):
        folder.mkdir()
    held = metrics_folder.lock(used)
    metrics_folder.remove_abandoned(tmp_path)
    os.close(held)
    assert sorted(tmp_path.iterdir()) == [foreign, used]


def test_a_killed_master_takes_the_lock_with_it_once_its_workers_have_gone(counting):
    folder = counting.metrics_folder
    with pytest.raises(BlockingIOError):
        metrics_folder.lock(folder)
    workers = counting.workers
    counting.process.process.kill()
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), "the workers have gone")
    os.close(metrics_folder.lock(folder))
    shutil.rmtree(folder)


def test_names_and_texts_follow_the_conventions(counting):
    answer = counting.metrics()
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert answer.headers["Cache-Control"] == "no-store"
    families = list(text_string_to_metric_families(answer.text))
    assert len(families) >= 8
    for family in families:
        assert family.name.startswith("relay_")
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge", "histogram")
        assert all(sample.name.endswith("_total") == (family.type == "counter") for sample in family.samples)
        assert family.type != "histogram" or family.name.endswith("_seconds")


def test_openmetrics_for_who_asks_for_it(counting):
    answer = counting.metrics(Accept="application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert answer.text.endswith("# EOF\n")


def test_without_gunicorn_the_process_shows_its_own():
    program = (
        "from server import metrics; metrics.transcript_messages.inc(3);"
        "assert b'relay_transcript_messages_total 3.0' in metrics.exposition('')[0]"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=False).returncode == 0


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=zz",
        "application/openmetrics-text;version=1",
        "text/plain;version=",
        "text/plain;version=9.9.9.9a",
        "application/openmetrics-text; version=1.0.0; escaping=none",
        ",;,;=",
        "x" * 5000,
    ],
)
def test_whatever_a_client_accepts_it_gets_figures(relay, accept):
    answer = requests.get(f"{relay.url}/metrics", headers={"Accept": accept}, timeout=10)
    assert answer.status_code == 200
    assert "relay_transcript_messages_total" in answer.text
