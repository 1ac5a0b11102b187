"""An app with a relay in servers that do not know of it: what works there, and what is said of the rest."""

import signal
import sys
import tempfile

import pytest
import requests

from server.surroundings import ONE_AT_A_TIME, ONLY_GEVENT

from .conftest import Answer, Process, question, until

THREADS = "The relay cannot work in a server that runs each request in a thread."
GUNICORN = ("-m", "gunicorn", "--bind", "127.0.0.1:0", "--no-control-socket")
APP = "tests.mounting_app:application"
FLASK = ("-m", "flask", "--app", "tests.mounting_app", "run", "--port", "0")


class ForeignServer:
    """tests/mounting_app.py in a server of someone's choice, without any of the relay's own settings for it."""

    def __init__(self, sandbox_url, command, **settings):
        self.folder = tempfile.TemporaryDirectory(prefix="relay-test-")
        environment = {
            "STORE_URL": f"sqlite:///{self.folder.name}/relay.db",
            "GENESYS_BASE_URL": sandbox_url,
            "OAUTH_CLIENT_ID": "sandbox-client",
            "OAUTH_CLIENT_SECRET": "sandbox-secret",
            "RATE_LIMIT": "off",
        }
        ready = r"(?:Listening at: |Running on )(http://\S+)"
        self.process = Process([sys.executable, *command], environment | settings, ready, self.folder.name)
        self.url = self.process.url

    def get(self, path, **options):
        return requests.get(self.url + path, cookies={"user": "ann"}, timeout=20, **options)

    def begin(self, prompt, conversation="", place="/relay/streams", **options):
        body = question(prompt, conversation)
        return requests.post(self.url + place, json=body, cookies={"user": "ann"}, timeout=20, **options)

    def stop(self):
        self.process.stop(signal.SIGTERM)
        self.folder.cleanup()


@pytest.fixture
def start_in(sandbox):
    started = []

    def start(*command, **settings):
        started.append(ForeignServer(sandbox.url, command, **settings))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def test_under_the_stock_gevent_worker_all_streams_and_one_warning_says_what_is_lost(
    start_in, sandbox, prompt, conversation
):
    server = start_in(*GUNICORN, "-k", "gevent", APP)
    sandbox.script(prompt, ["a", "b"], gate=True)
    views = [
        server.get("/ask", params={"prompt": prompt, "conversation": f"{conversation}-{number}"}, stream=True)
        for number in range(5)
    ]
    first = [next(view.iter_lines(decode_unicode=True, chunk_size=1)) for view in views]
    followed = Answer(server.get(server.begin(prompt, conversation).json()["url"], stream=True))
    sandbox.receipt(prompt, 2)
    assert first == ["token a /ask"] * 5
    assert followed.finish().text == "ab"
    until(lambda: sandbox.text_of(conversation) == "ab", "the transcript has it")
    assert server.process.output.count(ONLY_GEVENT) == 1


def test_a_deploy_under_the_stock_gevent_worker_ends_what_no_one_reads_and_the_next_worker_says_so(
    start_in, sandbox, prompt, conversation
):
    server = start_in(*GUNICORN, "-k", "gevent", "--graceful-timeout", "1", APP, DISCONNECT_GRACE="60")
    sandbox.script(prompt, ["a", "b"], gate=True)
    url = server.begin(prompt, conversation).json()["url"]
    until(lambda: sandbox.text_of(conversation) == "a", "the first token is there")
    server.process.process.send_signal(signal.SIGHUP)

    def status():
        try:
            return server.get(url, headers={"Accept": "application/json"}).json()["status"]
        except requests.ConnectionError:
            return "running"

    assert until(lambda: status() != "running" and status(), "the turn's end") == "interrupted"


@pytest.mark.parametrize(
    "command",
    [(*GUNICORN, "-k", "sync", APP), (*FLASK, "--without-threads")],
    ids=["sync", "flask run without threads"],
)
def test_one_request_at_a_time_gets_its_answer_and_one_warning_says_what_is_lost(start_in, sandbox, prompt, command):
    server = start_in(*command)
    sandbox.script(prompt, ["a", "b"])
    for number in range(2):
        view = server.get("/ask", params={"prompt": prompt, "conversation": f"c-{number}"})
        assert view.text.splitlines() == ["token a /ask", "token b /ask", "done complete /ask"]
    assert Answer(server.begin(prompt, place="/relay/stream-llm", stream=True)).finish().text == "ab"
    assert server.process.output.count(ONE_AT_A_TIME) == 1


@pytest.mark.parametrize(
    "command", [(*GUNICORN, "-k", "gthread", "--threads", "4", APP), FLASK], ids=["gthread", "flask run"]
)
def test_a_server_of_threads_is_refused_in_one_sentence(start_in, sandbox, prompt, command):
    server = start_in(*command)
    for _ in range(2):
        refused = server.begin(prompt)
        assert (refused.status_code, refused.json()["code"]) == (500, "needs_gevent")
        assert refused.json()["error"].startswith(THREADS)
    view = server.get("/ask", params={"prompt": prompt, "conversation": "c"})
    assert (view.status_code, view.text) == (500, "the shop's own words: needs_gevent")
    assert server.get("/missing").status_code == 404, "the app's own pages go on"
    assert server.process.output.count(THREADS) == 1
    assert sandbox.gateway_calls(prompt) == 0
