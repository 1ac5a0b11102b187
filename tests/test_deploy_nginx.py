"""deploy/nginx.conf before a real relay: what comes through, when, and what does not.

Whether a token is held back anywhere is no matter of time here: the gateway sends none before the client has shown
the last.
"""

import contextlib
import json
import re
import signal
import socket
import ssl
import statistics
import subprocess
import threading
import time
from urllib.parse import urlsplit

import pytest
import requests
from playwright.sync_api import expect

from server.access.keys import make_key
from server.settings import Settings

from .conftest import CHROMIUM, RelayServer, question, until
from .deployed import FILE, Curl, DeployedNginx

KEY = make_key("shop")
BEARER = {"Authorization": f"Bearer {KEY.key}"}
SSE = "text/event-stream"
TOKENS = ["Hel", "lo ", "wörld ", "👋 ", "done"]
ALIVE = {"DISCONNECT_GRACE": "60", "GATEWAY_IDLE_TIMEOUT": "60"}  # a stream that no one follows for a while

FOLLOW = """
([way, url, key, question]) => {
    window.tokens = [];
    const show = (data) => { if (data.token) window.tokens.push(data.token); };
    if (way === "EventSource") {
        const source = new EventSource(url);
        source.onmessage = (event) => show(JSON.parse(event.data));
        source.addEventListener("done", () => { window.done = true; source.close(); });
        return;
    }
    const headers = { "Authorization": `Bearer ${key}`, "Content-Type": "application/json" };
    fetch("/stream-llm", { method: "POST", headers, body: JSON.stringify(question) }).then(async (answer) => {
        const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
        for (let text = ""; ;) {
            const { value, done } = await reader.read();
            if (done) break;
            const blocks = (text + value).split("\\n\\n");
            text = blocks.pop();
            for (const block of blocks) {
                if (block.includes("event: done")) window.done = true;
                const data = /^data: (.*)$/m.exec(block);
                if (data) show(JSON.parse(data[1]));
            }
        }
    });
}
"""


@pytest.fixture(scope="module")
def shared_relay_with_keys(shared_sandbox):
    relay = RelayServer(shared_sandbox.url, ACCESS="keys", RELAY_API_KEYS=KEY.entry, **ALIVE)
    yield relay
    relay.stop()


@pytest.fixture(scope="module")
def shared_nginx(shared_relay_with_keys, tmp_path_factory):
    nginx = DeployedNginx(tmp_path_factory.mktemp("nginx"), urlsplit(shared_relay_with_keys.url).netloc)
    nginx.relay = shared_relay_with_keys
    yield nginx
    nginx.stop()


@pytest.fixture
def nginx(shared_nginx, sandbox):
    return shared_nginx


@pytest.fixture
def start_nginx(tmp_path):
    """Starts one before any address; ends it after the test."""
    started = []

    def start(relay, changes=None):
        started.append(DeployedNginx(tmp_path, relay, changes))
        return started[-1]

    yield start
    for nginx in started:
        nginx.stop()


@pytest.fixture(scope="module", params=["h2", "http/1.1"])
def browser_over(request, browser):
    """Chromium over HTTP/2, as it comes, and over HTTP/1.1."""
    if request.param == "h2":
        yield request.param, browser
        return
    other = browser.browser_type.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-http2"])
    yield request.param, other
    other.close()


@pytest.fixture
def open_page(browser_over, nginx):
    protocol, browser = browser_over
    context = browser.new_context(ignore_https_errors=True)
    page = context.new_page()
    page.goto(nginx.url)
    assert page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol") == protocol
    yield page
    context.close()


class Deaf:
    """In the relay's place: notes the requests that come, and answers with what it is told, or by hanging up."""

    def __init__(self, answers=(), hang=False):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests = []
        self._answers = list(answers)
        self._hang = hang
        self._held = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                self._held.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with contextlib.suppress(OSError):  # closed
            while (data := client.recv(65536)) and not self._hang:
                self.requests.append(data.split(b"\r\n", 1)[0].decode())
                if not self._answers:
                    break
                client.sendall(self._answers.pop(0))
            if not self._hang:
                client.close()

    def close(self):
        for one in (self._listener, *self._held):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.fixture
def start_deaf():
    started = []

    def start(*answers, **options):
        started.append(Deaf(answers, **options))
        return started[-1]

    yield start
    for server in started:
        server.close()


def begin(nginx, prompt, conversation=""):
    """The address with its ticket."""
    answer = requests.post(
        f"{nginx.url}/streams",
        json=question(prompt, conversation),
        headers=BEARER,
        verify=nginx.certificate,
        timeout=10,
    )
    assert answer.status_code == 201, answer.text  # and not 301, which nginx has for /streams/ without its end
    return answer.json()["url"]


def logged(nginx, path, **fields):
    """The line of the access log with this path, waited for: a stream's comes when it ends."""

    def find():
        lines = map(json.loads, nginx.access_log.splitlines())
        return next((e for e in lines if e["path"] == path and all(e[k] == v for k, v in fields.items())), None)

    return until(find, f"the line of {path}")


def curl(nginx, path, *options):
    command = ["curl", "-s", "-i", "--cacert", str(nginx.certificate), *options, nginx.url + path]
    return subprocess.run(command, capture_output=True, check=True, timeout=30, text=True).stdout


@pytest.mark.parametrize("protocol", ["--http1.1", "--http2"])
@pytest.mark.parametrize("place", ["/stream-llm", "/streams/"])
def test_each_token_leaves_as_it_comes(nginx, sandbox, prompt, protocol, place):
    sandbox.script(prompt, TOKENS, gate=True)
    if place == "/streams/":
        stream = Curl(nginx, begin(nginx, prompt), protocol, "-H", f"Accept: {SSE}")
    else:
        headers = ["-H", f"Authorization: Bearer {KEY.key}", "-H", f"Accept: {SSE}"]
        stream = Curl(nginx, place, protocol, *headers, "--json", json.dumps(question(prompt, "")))
    for count, token in enumerate(TOKENS, 1):
        assert stream.next_token() == token
        sandbox.receipt(prompt, count)
    assert "event: done" in stream.finish()


@pytest.mark.parametrize("way", ["EventSource", "fetch"])
def test_a_browser_shows_each_token_before_the_next_is_sent(open_page, nginx, sandbox, prompt, way):
    sandbox.script(prompt, TOKENS, gate=True)
    url = begin(nginx, prompt) if way == "EventSource" else None
    open_page.evaluate(FOLLOW, [way, url, KEY.key, question(prompt, "")])
    for count in range(1, len(TOKENS) + 1):
        open_page.wait_for_function("count => window.tokens.length === count", arg=count)
        sandbox.receipt(prompt, count)
    open_page.wait_for_function("() => window.done")
    assert open_page.evaluate("window.tokens") == TOKENS


@pytest.mark.parametrize("place", ["/stream-llm", "/v1/chat/completions", "/streams/x"])
def test_the_file_alone_switches_buffering_off(start_nginx, start_deaf, place):
    """The relay's own X-Accel-Buffering is not there, and gzip is offered."""
    deaf = start_deaf(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\n\n\r\n")
    own = start_nginx(deaf.address)
    answer = requests.post(own.url + place, json={}, verify=own.certificate, stream=True, timeout=10)
    assert next(answer.iter_content(None)) == b"a\n\n", "and the server still holds the connection"
    assert "Content-Encoding" not in answer.headers
    answer.close()


def test_tokens_come_at_the_pace_at_which_they_are_sent(nginx, sandbox, prompt):
    pace = 0.03  # seconds
    sandbox.script(prompt, [f"{number} " for number in range(40)], interval_ms=pace * 1000)
    stream = Curl(nginx, begin(nginx, prompt), "-H", f"Accept: {SSE}")
    arrivals = []
    for _ in range(40):
        stream.next_token()
        arrivals.append(time.monotonic())
    stream.finish()
    sent = 39 * pace  # seconds from the first to the last
    assert arrivals[-1] - arrivals[0] > sent / 2, "what is gathered comes all at once"
    assert statistics.median(arrivals) - arrivals[0] > sent / 4, "nor in heaps"


def test_the_page_works_over_https_with_its_policy(open_page, nginx, sandbox, prompt):
    complaints = []
    open_page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    open_page.fill("#key", KEY.key)
    open_page.keyboard.press("Enter")
    sandbox.script(prompt, TOKENS, gate=True)
    open_page.fill("#prompt", prompt)
    open_page.click("#ask")
    for count in range(1, len(TOKENS) + 1):
        expect(open_page.locator(".answer-text").last).to_have_text("".join(TOKENS[:count]))
        sandbox.receipt(prompt, count)
    expect(open_page.locator(".answer").last).to_have_attribute("data-state", "complete")
    assert complaints == []
    answer = requests.get(nginx.url, verify=nginx.certificate, timeout=10)
    assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Strict-Transport-Security"].startswith("max-age=")
    assert answer.headers["Content-Encoding"] == "gzip", "the page is the one thing that is compressed"


def test_a_reload_of_nginx_cuts_no_stream(start_nginx, nginx, sandbox, prompt):
    own = start_nginx(urlsplit(nginx.relay.url).netloc)
    sandbox.script(prompt, TOKENS, gate=True)
    stream = Curl(own, begin(own, prompt), "--http2", "-H", f"Accept: {SSE}")
    assert stream.next_token() == TOKENS[0]
    own.reload()
    for count, token in enumerate(TOKENS[1:], 1):
        sandbox.receipt(prompt, count)
        assert stream.next_token() == token
    sandbox.receipt(prompt, len(TOKENS))
    assert "event: done" in stream.finish()


def test_event_source_goes_on_after_nginx_and_relay_were_gone(browser, start_nginx, start_relay, sandbox, prompt):
    """Refused connections, then an nginx with no relay behind it: at a plain 502 EventSource would give up for good."""
    relay = start_relay(**ALIVE)
    own = start_nginx(urlsplit(relay.url).netloc)
    context = browser.new_context(ignore_https_errors=True)
    page = context.new_page()
    page.goto(own.url)
    sandbox.script(prompt, TOKENS, gate=True)
    page.evaluate(FOLLOW, ["EventSource", f"/streams/{relay.begin(prompt)}", None, None])
    page.wait_for_function("() => window.tokens.length === 1")
    whole, nowhere = own.config.read_text(), "127.0.0.1:1"
    own.stop()
    own.config.write_text(whole.replace(urlsplit(relay.url).netloc, nowhere))
    own.start()
    until(lambda: '"relay_status":"502"' in own.access_log, "it has asked while the relay was gone")
    own.config.write_text(whole)
    own.reload()
    for count in range(1, len(TOKENS) + 1):
        page.wait_for_function("count => window.tokens.length === count", arg=count)
        sandbox.receipt(prompt, count)
    page.wait_for_function("() => window.done")
    assert page.evaluate("window.tokens") == TOKENS
    context.close()


def test_tickets_are_in_no_log_whatever_happens(nginx, start_nginx, sandbox, prompt):
    url = begin(nginx, prompt)
    ticket = url.partition("ticket=")[2]
    path = urlsplit(url).path
    dead = start_nginx("127.0.0.1:1")
    for server in (nginx, dead):
        for headers in ({"Accept": SSE}, {"Accept": "application/json", "Referer": server.url + url}):
            requests.get(server.url + url, headers=headers, verify=server.certificate, timeout=10)
        requests.get(f"{server.url}{url}&x={'x' * 9000}", verify=server.certificate, timeout=10)  # refused as too long
        assert requests.get(server.plain_url + url, allow_redirects=False, timeout=10).status_code == 301
        logged(server, path)
        assert ticket not in server.access_log + server.error_log
    requests.get(dead.url, verify=dead.certificate, timeout=10)
    until(lambda: "connect() failed" in dead.error_log, "what fails elsewhere is in the error log")


def test_the_log_has_the_clients_own_address_and_the_streams_id(nginx, sandbox, prompt):
    forged = ["-H", "X-Forwarded-For: 203.0.113.9", "-H", f"Authorization: Bearer {KEY.key}"]
    body = ["--json", json.dumps(question(prompt, ""))]
    for peer, address in (("127.0.0.2", "127.0.0.2"), ("127.0.0.1", "203.0.113.9")):  # a stranger; your load balancer
        answer = curl(nginx, "/stream-llm", "--interface", peer, *forged, *body)
        stream = re.search(r"x-stream-id: (\S+)", answer, re.IGNORECASE)[1]
        line = logged(nginx, "/stream-llm", stream=stream)
        assert line["address"] == address
        assert line["request"] == re.search(r"x-request-id: (\S+)", answer, re.IGNORECASE)[1]
        assert nginx.relay.logged(stream, "turn ended"), "the same id as in the relay's log"
    assert "203.0.113.9" not in nginx.relay.process.output


def test_a_post_is_never_sent_twice(start_nginx, start_deaf):
    kept = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    deaf = start_deaf(kept, kept)
    own = start_nginx(deaf.address)
    assert requests.post(f"{own.url}/streams", json={}, verify=own.certificate, timeout=10).status_code == 200
    assert requests.post(f"{own.url}/streams", json={}, verify=own.certificate, timeout=10).status_code == 200
    for place in ("/stream-llm", "/v1/chat/completions", "/streams"):  # the first on a connection that is kept
        answer = requests.post(own.url + place, json={}, verify=own.certificate, timeout=10)
        assert answer.status_code == 502
        assert answer.headers["Retry-After"] == "2"
        assert [line.split()[1] for line in deaf.requests].count(place) == (3 if place == "/streams" else 1)


@pytest.mark.parametrize(("place", "shape"), [("/stream-llm", "relay"), ("/v1/chat/completions", "openai")])
def test_a_relay_that_is_gone_or_late_is_told_as_json_with_when_to_come_back(start_nginx, start_deaf, place, shape):
    own = start_nginx(start_deaf(hang=True).address, {"proxy_read_timeout 60s": "proxy_read_timeout 1s"})
    late = requests.post(own.url + place, json={}, verify=own.certificate, timeout=10)
    own.config.write_text(re.sub(r"server 127\.0\.0\.1:\d+;", "server 127.0.0.1:1;", own.config.read_text()))
    own.reload()
    gone = requests.post(own.url + place, json={}, verify=own.certificate, timeout=10)
    for answer, status, code in ((late, 504, "relay_late"), (gone, 502, "relay_unavailable")):
        assert answer.status_code == status
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.headers["Access-Control-Allow-Origin"] == "*", "a page of another origin can read it"
        body = answer.json() if shape == "relay" else answer.json()["error"]
        assert body["code"] == code
        assert body["error" if shape == "relay" else "message"].endswith(".")


def test_an_address_that_asks_too_often_is_refused_and_others_are_not(nginx):
    begin = time.monotonic()
    answers = curl(nginx, "/openapi.yaml?[1-1000]", "--interface", "127.0.0.5", "--http2")
    served, refused = answers.count("HTTP/2 404"), answers.count("HTTP/2 429")
    assert served + refused == 1000
    assert 400 <= served <= 402 + 50 * (time.monotonic() - begin), "what may come at once, and what each second adds"
    assert refused
    refusal = answers.rpartition("HTTP/2 429")[2]
    assert "retry-after: 10" in refusal
    assert '"code":"too_many_requests"' in refusal
    assert "HTTP/2 404" in curl(nginx, "/openapi.yaml", "--http2", "--interface", "127.0.0.6")


def test_an_address_that_holds_too_many_requests_is_refused_and_others_are_not(nginx):
    head = b"POST /streams HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    context = ssl.create_default_context(cafile=str(nginx.certificate))
    with contextlib.ExitStack() as stack:

        def ask(source):
            plain = socket.create_connection(("127.0.0.1", nginx.port), source_address=(source, 0))
            client = stack.enter_context(context.wrap_socket(plain, server_hostname="localhost"))
            client.sendall(head)
            return client

        held = [ask("127.0.0.7") for _ in range(400)]  # their bodies do not come
        one_more = ask("127.0.0.7")
        one_more.settimeout(10)
        assert one_more.recv(65536).startswith(b"HTTP/1.1 429 ")
        other = ask("127.0.0.8")
        other.sendall(b'{"a": 1} ')
        assert other.recv(65536).startswith(b"HTTP/1.1 401 "), "the relay's own answer"
        assert len(held) == 400


def test_a_body_may_be_as_large_as_the_relay_takes_and_touches_no_disk(nginx):
    size = Settings.model_fields["max_body_bytes"].default
    assert size == 1024 * 1024
    assert "client_max_body_size 1m;" in FILE.read_text()
    for length, refused_by in ((size, "relay"), (size + 1, "nginx")):
        body = b'{"prompt": "' + b"x" * (length - 14) + b'"}'
        headers = {"Content-Type": "application/json", **BEARER}
        answer = requests.post(f"{nginx.url}/streams", data=body, headers=headers, verify=nginx.certificate, timeout=20)
        assert answer.status_code == 413
        assert answer.json()["code"] == ("prompt_too_long" if refused_by == "relay" else "body_too_large")
    assert "temporary file" not in nginx.error_log


def test_what_is_for_the_operator_is_not_there_for_the_outside(nginx):
    for place in ("metrics", "healthz", "readyz"):
        assert requests.get(f"{nginx.url}/{place}", verify=nginx.certificate, timeout=10).status_code == 404
    assert requests.get(f"{nginx.inside_url}/healthz", timeout=10).json()["status"] == "ok"
    assert "relay_transcript_lag_seconds" in requests.get(f"{nginx.inside_url}/metrics", timeout=10).text
    assert requests.get(f"{nginx.inside_url}/openapi.json", timeout=10).status_code == 404


def test_it_is_ready_while_an_old_worker_ends_its_answers(start_nginx, start_relay, sandbox, prompt):
    """The old worker still answers on the connections that it has, and says that it is draining."""
    relay = start_relay(**ALIVE)
    own = start_nginx(urlsplit(relay.url).netloc)
    sandbox.script(prompt, TOKENS, gate=True)
    answer = relay.ask(prompt)
    assert answer.next_token() == TOKENS[0]
    ready = [f"{own.inside_url}/{place}" for place in ("readyz", "healthz")] * 5
    assert {requests.get(url, timeout=10).status_code for url in ready} == {200}
    (old,) = relay.workers
    relay.process.process.send_signal(signal.SIGHUP)
    until(lambda: "Handling signal: hup" in relay.process.output and {*relay.workers} - {old}, "another worker")
    straight = [f"{relay.url}/readyz"] * 10
    until(lambda: all(requests.get(url, timeout=10).ok for url in straight), "the new one alone takes connections")
    assert {requests.get(url, timeout=10).status_code for url in ready} == {200}
    assert old in relay.workers, "all that time it had an answer to end"
    sandbox.receipt(prompt, len(TOKENS))
    assert answer.finish().done["status"] == "complete"


def test_another_name_gets_no_certificate_and_plain_http_is_sent_to_tls(nginx):
    context = ssl.create_default_context(cafile=str(nginx.certificate))
    with socket.create_connection(("127.0.0.1", nginx.port)) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="other.example")
    answer = requests.get(f"{nginx.plain_url}/streams/x", allow_redirects=False, timeout=10)
    assert answer.status_code == 301
    assert answer.headers["Location"] == "https://localhost/streams/x"
    legacy = ["--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0"]
    command = ["curl", "-s", "--cacert", str(nginx.certificate), *legacy, nginx.url]
    assert subprocess.run(command, check=False, timeout=10).returncode == 35, "no TLS below 1.2"


def test_a_client_that_leaves_is_noticed_behind_it(start_nginx, start_relay, sandbox, prompt):
    relay = start_relay(DISCONNECT_GRACE="0")
    own = start_nginx(urlsplit(relay.url).netloc)
    sandbox.script(prompt, TOKENS, gate=True)
    stream = Curl(own, "/stream-llm", "--http2", "--json", json.dumps(question(prompt, "")))
    stream.next_token()
    stream.process.send_signal(signal.SIGTERM)
    until(lambda: [e for e in relay.log if e["message"] == "turn ended" and e["status"] == "cancelled"], "its end")
    stream.close()
