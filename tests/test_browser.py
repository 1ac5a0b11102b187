"""What browsers make of an answer: which names lead here, which pages may read, what else is said for safety."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from server.access.keys import make_key

from .conftest import RelayServer
from .visitor import JSON, SSE, Visitor
from .wire import LAST, speak, statuses

ANN = make_key("ann")
SHOP, OTHER = "https://shop.example", "https://other.example"
KEYS = {"ACCESS": "keys", "RELAY_API_KEYS": ANN.entry}


@pytest.fixture(scope="module")
def shared_shop_relay(shared_sandbox):
    relay = RelayServer(
        shared_sandbox.url, CORS_ORIGINS=f"{SHOP}, http://localhost:3000", DISCONNECT_GRACE="60", **KEYS
    )
    yield relay
    relay.stop()


@pytest.fixture
def shop_relay(shared_shop_relay, sandbox):
    """A relay that the pages of a shop may use."""
    return shared_shop_relay


@pytest.fixture
def ann(shop_relay):
    visitor = Visitor(shop_relay, ANN.key)
    visitor.headers["Origin"] = SHOP
    return visitor


def preflight(relay, path, method="POST", origin=SHOP):
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type,idempotency-key",
    }
    return requests.options(relay.url + path, headers=headers, timeout=10)


def cors(answer):
    return {name.lower() for name in answer.headers if name.lower().startswith("access-control-allow-")}


def words(value):
    return {word.strip() for word in value.split(",")}


# Pages of other origins (CORS)

SHARED = [
    ("/stream-llm", "POST"),
    ("/streams", "POST"),
    ("/streams/unknown", "GET"),
    ("/streams/unknown", "DELETE"),
    ("/conversations/a/b/streams", "GET"),
]


@pytest.mark.parametrize(("path", "method"), SHARED)
def test_a_preflight_of_an_allowed_origin_is_answered_without_a_key(shop_relay, path, method):
    answer = preflight(shop_relay, path, method)
    assert answer.status_code == 204
    assert answer.headers["Access-Control-Allow-Origin"] == SHOP
    assert method in words(answer.headers["Access-Control-Allow-Methods"])
    assert words(answer.headers["Access-Control-Allow-Headers"]) == {
        "Authorization",
        "Content-Type",
        "Idempotency-Key",
        "Last-Event-ID",
        "Traceparent",
        "Tracestate",
    }
    assert int(answer.headers["Access-Control-Max-Age"]) <= 600
    assert "Origin" in words(answer.headers["Vary"])


STRANGERS = [
    OTHER,
    "null",
    "http://shop.example",
    "https://shop.example:8443",
    "https://shop.example.evil.example",
    "https://evilshop.example",
    "https://SHOP.example",
    "https://shop.example/",
    "",
]


@pytest.mark.parametrize("origin", STRANGERS)
def test_pages_of_another_origin_are_let_in_nowhere(shop_relay, origin):
    for path, method in SHARED:
        answer = preflight(shop_relay, path, method, origin)
        assert cors(answer) == set()
        assert "Origin" in words(answer.headers["Vary"]), "a cache must not give this answer to the shop"
    answer = requests.get(f"{shop_relay.url}/streams/unknown", headers={"Origin": origin}, timeout=10)
    assert cors(answer) == set()
    assert "Origin" in words(answer.headers["Vary"])


def test_an_allowed_page_may_read_the_stream_and_its_headers(ann, prompt):
    answer = ann.ask(prompt, place="/stream-llm")
    assert answer.headers["Access-Control-Allow-Origin"] == SHOP
    exposed = words(answer.headers["Access-Control-Expose-Headers"])
    assert {"X-Stream-Id", "Location", "Retry-After", "RateLimit-Remaining"} <= exposed
    begun = ann.ask(prompt)
    assert begun.headers["Access-Control-Allow-Origin"] == SHOP
    for accept in (SSE, JSON):
        followed = ann.get(begun.json()["url"], accept)
        assert followed.headers["Access-Control-Allow-Origin"] == SHOP
        assert "Origin" in words(followed.headers["Vary"])


def test_an_allowed_page_may_read_why_it_was_refused(ann, shop_relay):
    nobody = Visitor(shop_relay)
    nobody.headers["Origin"] = SHOP
    refusals = {
        401: nobody.ask("a question"),
        400: ann.post("/streams", {}),
        404: ann.get("/streams/unknown"),
        405: requests.put(f"{shop_relay.url}/streams", headers=ann.headers, timeout=10),
        415: requests.post(f"{shop_relay.url}/streams", headers=ann.headers, data="x", timeout=10),
    }
    for status, answer in refusals.items():
        assert answer.status_code == status
        assert answer.headers["Access-Control-Allow-Origin"] == SHOP
        assert "Retry-After" in words(answer.headers["Access-Control-Expose-Headers"])


def test_credentials_are_never_allowed(ann, shop_relay, prompt):
    for answer in (ann.ask(prompt), ann.get("/streams/unknown"), preflight(shop_relay, "/streams")):
        assert "Access-Control-Allow-Credentials" not in answer.headers


def test_figures_and_the_page_are_for_no_other_origin(shop_relay):
    for path in ("/metrics", "/healthz", "/", "/page/page.js", "/page/config.json"):
        assert cors(preflight(shop_relay, path, "GET")) == set()
        assert cors(requests.get(shop_relay.url + path, headers={"Origin": SHOP}, timeout=10)) == set()


def test_by_default_no_other_origin_is_let_in(relay, prompt):
    assert cors(preflight(relay, "/streams")) == set()
    visitor = Visitor(relay)
    visitor.headers["Origin"] = SHOP
    answer = visitor.ask(prompt, place="/stream-llm")
    assert cors(answer) == set()
    assert "Vary" not in answer.headers


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_what_a_page_may_send_without_a_preflight_asks_nothing(relay, sandbox, prompt, content_type):
    """The Fetch standard's simple requests: a browser sends them for any page, and keeps the answer to itself."""
    body = f'{{"conversationId": "c", "prompt": "{prompt}"}}'
    for path in ("/streams", "/stream-llm"):
        headers = {"Origin": OTHER, "Content-Type": content_type}
        assert requests.post(relay.url + path, data=body, headers=headers, timeout=10).status_code == 415
    assert not sandbox.gateway_calls(prompt)


def test_any_origin_may_be_let_in_where_keys_are_asked_for(start_relay, prompt):
    relay = start_relay(CORS_ORIGINS="*", **KEYS)
    assert preflight(relay, "/streams", origin=OTHER).headers["Access-Control-Allow-Origin"] == "*"
    visitor = Visitor(relay, ANN.key)
    visitor.headers["Origin"] = "null"
    assert visitor.ask(prompt).headers["Access-Control-Allow-Origin"] == "*"


class Elsewhere(BaseHTTPRequestHandler):
    """An empty page of another origin."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def elsewhere():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


ASK = """async ([relay, key, prompt]) => {
    const headers = {"Content-Type": "application/json", "Idempotency-Key": prompt};
    if (key) headers.Authorization = `Bearer ${key}`;
    const body = JSON.stringify({conversationId: "c-elsewhere", prompt});
    const begun = await fetch(`${relay}/streams`, {method: "POST", headers, body});
    const {url} = await begun.json();
    const tokens = [];
    await new Promise((resolve, reject) => {
        const source = new EventSource(relay + url);
        source.onmessage = (event) => tokens.push(JSON.parse(event.data).token);
        source.onerror = reject;
        source.addEventListener("done", () => { source.close(); resolve(); });
    });
    const streamed = await fetch(`${relay}/stream-llm`, {method: "POST", headers, body});
    const gone = await fetch(relay + url, {method: "DELETE"});
    delete headers.Authorization;
    const refused = await fetch(`${relay}/streams`, {method: "POST", headers, body});
    return {
        tokens,
        place: begun.headers.get("Location"),
        id: streamed.headers.get("X-Stream-Id"),
        text: await streamed.text(),
        gone: gone.status,
        refused: refused.status,
    };
}"""


def test_a_page_of_an_allowed_origin_asks_follows_and_cancels_in_a_browser(
    browser, elsewhere, start_relay, sandbox, prompt
):
    relay = start_relay(CORS_ORIGINS=elsewhere, **KEYS)
    sandbox.script(prompt, ["Hel", "lo"])
    page = browser.new_page()
    page.goto(elsewhere)
    found = page.evaluate(ASK, [relay.url, ANN.key, prompt])
    page.close()
    assert found["tokens"] == ["Hel", "lo"]
    assert found["place"].startswith("/streams/")
    assert found["id"] == found["place"].removeprefix("/streams/").partition("?")[0]
    assert "event: done" in found["text"]
    assert found["gone"] == 204
    assert found["refused"] == 401


def test_a_page_of_another_origin_gets_nothing_in_a_browser(browser, elsewhere, relay, sandbox, prompt):
    page = browser.new_page()
    page.goto(elsewhere)
    with pytest.raises(Exception, match="Failed to fetch"):
        page.evaluate(ASK, [relay.url, None, prompt])
    page.close()
    assert not sandbox.gateway_calls(prompt), "open access on loopback is not open to each page"


# Headers of every answer

EVERY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def answers(visitor, prompt):
    """One of each kind: all routes, both sorts of stream, refusals."""
    stream = visitor.begin(prompt)
    yield visitor.ask(prompt, place="/stream-llm")
    yield visitor.ask(prompt)
    yield visitor.get(stream["url"], SSE)
    yield visitor.get(stream["url"], JSON)
    yield visitor.list("c")
    yield visitor.delete(stream["url"])
    yield visitor.post("/streams", [])
    for path in ("/healthz", "/metrics", "/page/config.json", "/page/nowhere.js", "/nowhere", "/streams/unknown"):
        yield visitor.get(path)
    yield requests.options(visitor.relay.url + "/streams", timeout=10)
    yield preflight(visitor.relay, "/streams")
    yield requests.put(visitor.relay.url + "/streams", timeout=10)
    yield requests.get(visitor.relay.url + "/healthz", headers={"Host": "evil.example"}, timeout=10)
    yield Visitor(visitor.relay).ask(prompt)


def test_every_answer_says_what_may_not_be_done_with_it(ann, prompt):
    for answer in answers(ann, prompt):
        for name, value in EVERY.items():
            assert answer.headers[name] == value, answer.request.url
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["Cache-Control"].startswith(("no-store", "no-cache"))


def test_the_page_says_it_as_well_and_runs_nothing_but_its_own(ann):
    for path in ("/", "/page/page.js", "/page/page.css", "/page/icon.svg"):
        answer = ann.get(path)
        assert answer.status_code == 200
        assert {name: answer.headers[name] for name in EVERY} == EVERY
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy


def test_no_answer_sets_a_cookie_or_tells_a_version(ann, prompt):
    for answer in (*answers(ann, prompt), ann.get("/"), ann.get("/page/page.js")):
        assert "Set-Cookie" not in answer.headers
        assert answer.headers["Server"] == "gunicorn"


def test_a_cookie_opens_nothing(shop_relay):
    visitor = Visitor(shop_relay)
    visitor.headers["Cookie"] = f"Authorization=Bearer {ANN.key}; session={ANN.key}"
    assert visitor.ask("a question").status_code == 401


# Names that lead here (DNS rebinding)


def answer_to(relay, host, path=b"/healthz", version=b"1.1"):
    line = b"" if host is None else b"Host: " + host + b"\r\n"
    return speak(relay.url, b"GET " + path + b" HTTP/" + version + b"\r\n" + line + LAST)


OURS = [b"localhost", b"LocalHost:8000", b"localhost.", b"127.0.0.1", b"127.0.0.1:1", b"[::1]", b"[::1]:65535"]


@pytest.mark.parametrize("host", OURS)
def test_on_loopback_the_names_of_loopback_lead_here(relay, host):
    assert statuses(answer_to(relay, host)) == [200]


ANOTHERS = [
    b"evil.example",
    b"evil.example:8000",
    b"127.0.0.1.evil.example",
    b"localhost.evil.example",
    b"evillocalhost",
    b"0.0.0.0",
    b"192.168.1.7",
    b"[::2]",
]


@pytest.mark.parametrize("host", ANOTHERS)
def test_on_loopback_no_other_name_leads_here(relay, host):
    answer = answer_to(relay, host)
    assert statuses(answer) == [421]
    assert b'"code":"host_not_allowed"' in answer
    assert b"ALLOWED_HOSTS" in answer


NO_HOSTS = [
    b"",
    b"localhost@evil.example",
    b"localhost/",
    b"local host",
    b"localhost:x",
    b"localhost, evil.example",
    b"[::1",
]


@pytest.mark.parametrize("host", [None, *NO_HOSTS])
def test_what_is_no_host_is_refused(relay, host):
    """RFC 9112, 3.2."""
    assert statuses(answer_to(relay, host)) == [400]


def test_a_health_check_in_http_1_0_needs_no_host(relay):
    assert statuses(answer_to(relay, None, version=b"1.0")) == [200]


def test_an_absolute_address_counts_more_than_the_host(relay):
    """RFC 9112, 3.2.2."""
    assert statuses(answer_to(relay, b"evil.example", b"http://localhost/healthz")) == [200]
    assert statuses(answer_to(relay, b"localhost", b"http://evil.example/healthz")) == [421]
    assert statuses(answer_to(relay, b"localhost", b"http://localhost@evil.example/healthz")) == [400]


def test_a_page_under_a_strangers_name_gets_and_asks_nothing(relay, sandbox, prompt):
    """DNS rebinding: the browser takes relay and page for one origin, and sends no preflight."""
    headers = {"Host": "evil.example", "Origin": "http://evil.example", "Accept": SSE}
    for method, path in [("GET", "/"), ("GET", "/page/config.json"), ("GET", "/metrics"), ("GET", "/streams/unknown")]:
        assert requests.request(method, relay.url + path, headers=headers, timeout=10).status_code == 421
    for path in ("/streams", "/stream-llm", "/nowhere"):
        question = {"conversationId": "c", "prompt": prompt}
        assert requests.post(relay.url + path, json=question, headers=headers, timeout=10).status_code == 421
    assert not sandbox.gateway_calls(prompt)


def test_names_that_are_set_lead_here_as_well(start_relay):
    relay = start_relay(ALLOWED_HOSTS="Relay.example .shop.example")
    for host in (b"relay.example", b"relay.example:443", b"shop.example", b"a.b.shop.example", b"localhost"):
        assert statuses(answer_to(relay, host)) == [200], host
    for host in (b"a.relay.example", b"evilshop.example", b"evil.example"):
        assert statuses(answer_to(relay, host)) == [421], host


def test_where_other_machines_come_in_every_name_leads_here_unless_some_are_set(start_relay):
    assert statuses(answer_to(start_relay(BIND="0.0.0.0:0"), b"relay.example")) == [200]
    relay = start_relay(BIND="0.0.0.0:0", ALLOWED_HOSTS="relay.example,0.0.0.0")
    assert statuses(answer_to(relay, b"relay.example")) == [200]
    assert statuses(answer_to(relay, b"127.0.0.1")) == [200], "a health check on the machine"
    assert statuses(answer_to(relay, b"evil.example")) == [421]
