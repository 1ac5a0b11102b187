"""`relay doctor --url`: what a real nginx between does to a stream, seen from the outside."""

from urllib.parse import urlsplit

import pytest
import requests

from server.access.keys import make_key
from server.doctor.arrival import Arrival, Reception, judge
from server.doctor.finding import State
from server.sse_reader import Received

from .command import run
from .conftest import RelayServer
from .deployed import DeployedNginx
from .test_nginx import CONFIG, Nginx

READ_TIMEOUT = "proxy_read_timeout 60s;"
# Without chunks nginx waits until a buffer is full, unless the server has it told not to.
OLD_HTTP = "proxy_http_version 1.0; proxy_ignore_headers X-Accel-Buffering;"
KEY = make_key("doctor")


@pytest.fixture(scope="module")
def guarded(shared_sandbox):
    """A relay that asks for a key."""
    relay = RelayServer(shared_sandbox.url, ACCESS="keys", RELAY_API_KEYS=KEY.entry)
    yield relay
    relay.stop()


@pytest.fixture
def behind_nginx(guarded, sandbox, tmp_path):
    """Examines the relay through an nginx with more in its configuration; returns the end."""
    started = []

    def examine(*arguments, more="", **environment):
        config = CONFIG.replace(READ_TIMEOUT, f"{READ_TIMEOUT} {more}")
        if more == OLD_HTTP:
            config = config.replace("proxy_http_version 1.1;", "")
        started.append(Nginx(guarded, tmp_path, config))
        folder = tmp_path / "doctor"
        folder.mkdir(exist_ok=True)
        return run(folder, "doctor", "--json", "--url", started[-1].url, *arguments, **environment)

    yield examine
    for one in started:
        one.stop()


def public(ended):
    """The states of the public checks, by their short names; the settings are not there."""
    return {name[8:]: one["state"] for name, one in ended.findings.items() if name.startswith("public: ")}


def test_through_an_nginx_as_the_readme_sets_it_up_all_is_well(behind_nginx, sandbox, guarded):
    ended = behind_nginx(RELAY_KEY=KEY.key)
    assert public(ended) == dict.fromkeys(["health", "TLS", "stream", "resuming", "/metrics"], "ok")
    assert "30 tokens in" in ended.findings["public: stream"]["found"]
    assert ended.status == 2, "there are no settings here, and that is said"
    assert KEY.key not in ended.all
    (asked,) = [call for call in sandbox.calls()["log"] if call["place"] == "gateway"]
    assert "count to 30" in asked["prompt"]
    entry = next(line for line in guarded.log if line["message"] == "turn ended" and "relay-doctor-" in str(line))
    headers = {"Authorization": f"Bearer {KEY.key}", "Accept": "application/json"}
    left = requests.get(f"{guarded.url}/streams/{entry['turn']}", headers=headers, timeout=10)
    assert left.status_code == 404, "what it asked is erased"


def test_behind_the_nginx_that_is_delivered_all_is_well(guarded, sandbox, tmp_path):
    nginx = DeployedNginx(tmp_path, urlsplit(guarded.url).netloc)
    try:
        trusted = {"REQUESTS_CA_BUNDLE": str(nginx.certificate)}
        ended = run(tmp_path, "doctor", "--json", "--url", nginx.url, RELAY_KEY=KEY.key, **trusted)
    finally:
        nginx.stop()
    assert public(ended) == dict.fromkeys(["health", "TLS", "stream", "resuming", "/metrics"], "ok"), ended.out


@pytest.mark.parametrize(
    ("more", "check", "found", "fix"),
    [
        (OLD_HTTP, "stream", "buffered: 30 tokens in 1 piece", "proxy_http_version 1.1"),
        ("gzip on; gzip_types text/event-stream; gzip_min_length 1;", "stream", "Content-Encoding", "gzip"),
        ('proxy_set_header Last-Event-ID "";', "resuming", "and got 1", "Last-Event-ID"),
        ("proxy_hide_header X-Stream-Id;", "resuming", "X-Stream-Id", "X-Stream-Id"),
    ],
)
def test_what_nginx_spoils_is_found(behind_nginx, more, check, found, fix):
    ended = behind_nginx("--key", KEY.key, more=more)
    finding = ended.findings[f"public: {check}"]
    assert finding["state"] == "failed", finding
    assert found in finding["found"]
    assert fix in finding["fix"]


def test_without_a_key_it_says_so(behind_nginx):
    ended = behind_nginx()
    assert ended.findings["public: stream"]["state"] == "failed"
    assert ended.findings["public: stream"]["found"] == "no stream came (HTTP 401): unauthorized"
    assert "RELAY_KEY" in ended.findings["public: stream"]["fix"]
    assert public(ended)["resuming"] == "skipped"


@pytest.mark.parametrize("url", ["relay.example", "http://127.0.0.1:1"])
def test_an_address_that_leads_to_no_relay_is_found(tmp_path, url):
    ended = run(tmp_path, "doctor", "--json", "--url", url)
    assert any(one["state"] == "failed" and one["check"] != "settings" for one in ended.findings.values())
    assert "stream" not in public(ended) or public(ended)["stream"] == "skipped"


def test_a_public_name_that_is_not_known_has_a_dns_record_made(tmp_path):
    ended = run(tmp_path, "doctor", "--json", "--url", "https://relay.invalid")
    assert "Make a DNS record for it, or correct --url" in ended.findings["name relay.invalid"]["fix"]


def reception(opening, tokens, **headers):
    """A stream whose opening and tokens arrive at these seconds after the question."""
    events = [Arrival(at, [Received(number, "message", {"token": "x"})]) for number, at in enumerate(tokens, 1)]
    done = Arrival(max(tokens), [Received(len(tokens) + 1, "done", {"status": "complete"})])
    return Reception(0.0, headers, [Arrival(opening, []), *events, done])


ARRIVALS = {
    "one by one": (reception(0.01, [0.2, 0.3, 0.4, 0.5, 0.6]), State.OK),
    "one by one, the first at once": (reception(0.01, [0.011, 0.3, 0.4, 0.5]), State.OK),
    "one by one behind a slow start": (reception(0.9, [0.9, 1.0, 1.1, 1.2]), State.OK),
    "a gateway that answers all at once, late": (reception(0.01, [0.8] * 30), State.OK),
    "everything with the end": (reception(0.8, [0.8] * 30), State.FAILED),
    "in two lumps": (reception(0.5, [0.5] * 15 + [1.0] * 15), State.FAILED),
    "everything at once, and soon": (reception(0.02, [0.02] * 30), State.WARNING),
    "with a length": (reception(0.01, [0.2, 0.3, 0.4], **{"Content-Length": "9"}), State.FAILED),
}


@pytest.mark.parametrize(("arrived", "state"), ARRIVALS.values(), ids=ARRIVALS)
def test_buffering_is_told_from_a_fast_gateway(arrived, state):
    assert judge(arrived, way=0.005).state is state
