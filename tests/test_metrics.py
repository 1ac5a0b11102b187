"""GET /metrics: the numbers of all workers, whichever is asked, whatever has become of them."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from server import metrics_folder

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
        """Values by name, with the label's value behind a colon."""
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
        maps = Path(f"/proc/{self.workers[0]}/maps").read_text()
        return Path(re.search(r"\S+/relay-metrics-[^/]+", maps)[0])


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
        assert family.type in ("counter", "gauge")
        assert all(sample.name.endswith("_total") == (family.type == "counter") for sample in family.samples)


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
