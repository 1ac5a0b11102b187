"""The relay in an app of someone's own: under a prefix, with the app's own logins, pages and views."""

import json
import os
import subprocess
import sys

import pytest
import requests
from flask import Blueprint, Flask, abort, request
from playwright.sync_api import expect

from server import Caller, Relay, create_app
from server.access.guard import caller_of_app
from server.errors import BadRequest, KeyUsedOtherwise
from server.journal import Entry
from server.prompt import Message, Prompt
from server.settings import NoAccess, Settings, SettingsError, load_for_app
from server.turns import Key, Started

from .conftest import ROOT, Answer, RelayServer, question, until
from .wire import speak

SSE, JSON = "text/event-stream", "application/json"


class MountedRelay(RelayServer):
    """tests/mounting_app.py, in workers of the relay's own class; nothing says who may ask but the app."""

    app = ("--bind", "127.0.0.1:0", "--workers", "1", "tests.mounting_app:application")
    config = ROOT / "examples/shop/gunicorn.conf.py"

    def __init__(self, sandbox_url, **settings):
        super().__init__(sandbox_url, **{"ACCESS": ""} | settings)

    def _answers(self):
        assert self.process.process.poll() is None, self.process.output
        try:
            return requests.get(f"{self.url}/missing", timeout=5).status_code == 404
        except (requests.ConnectionError, requests.Timeout):
            return False


@pytest.fixture(scope="module")
def shared_mounted(shared_sandbox):
    relay = MountedRelay(shared_sandbox.url, DEFAULT_CONVERSATION_ID="c-default")
    yield relay
    relay.stop()


@pytest.fixture
def mounted(shared_mounted, sandbox):
    return shared_mounted


def send(relay, method, path, user="ann", **options):
    cookies = {"user": user} if user else {}
    return requests.request(method, relay.url + path, cookies=cookies, timeout=20, **options)


def begin(relay, prompt, user="ann", conversation="", root=""):
    return send(relay, "POST", f"{root}/relay/streams", user, json=question(prompt, conversation))


@pytest.mark.parametrize("root", ["", "/outer"])
def test_addresses_lead_to_the_stream_wherever_the_app_is_mounted(mounted, sandbox, prompt, root):
    sandbox.script(prompt, ["a ", "b "])
    begun = begin(mounted, prompt, root=root)
    assert begun.status_code == 201
    url = begun.json()["url"]
    assert begun.headers["Location"] == url
    assert url.startswith(f"{root}/relay/streams/{begun.json()['id']}?ticket=")
    followed = Answer(send(mounted, "GET", url, user=None, headers={"Accept": SSE}, stream=True))
    first, *_ = followed
    assert first["event"] == "ticket"
    assert first["data"]["url"].startswith(f"{root}/relay/streams/")
    state = send(mounted, "GET", url, user=None, headers={"Accept": JSON}).json()
    assert (state["text"], state["status"]) == ("a b ", "complete")
    assert state["url"].startswith(f"{root}/relay/streams/")
    document = send(mounted, "GET", f"{root}/relay/openapi.json").json()
    assert document["servers"] == [{"url": f"{root}/relay"}]


def test_the_page_works_under_a_prefix(mounted, sandbox, browser, prompt):
    sandbox.script(prompt, ["under ", "a prefix"])
    context = browser.new_context()
    complaints = []
    context.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    context.add_cookies([{"name": "user", "value": "ann", "url": mounted.url}])
    page = context.new_page()
    page.goto(f"{mounted.url}/outer/relay/")
    page.get_by_label("Your question").fill(prompt)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answers")).to_contain_text("under a prefix")
    assert complaints == []
    context.close()


def test_only_whom_the_app_names_may_ask_and_each_sees_its_own(mounted, sandbox, prompt):
    sandbox.script(prompt, ["a"])
    refused = begin(mounted, prompt, user=None)
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    path = f"/relay/streams/{begin(mounted, prompt).json()['id']}"
    assert send(mounted, "GET", path, headers={"Accept": JSON}).status_code == 200
    assert send(mounted, "GET", path, user="bob", headers={"Accept": JSON}).status_code == 404
    assert send(mounted, "GET", f"{path}?ticket=1.x", user=None, headers={"Accept": JSON}).status_code == 404
    assert send(mounted, "GET", f"{path}?ticket=1.x", headers={"Accept": JSON}).status_code == 200, (
        "logged in is enough"
    )


def test_the_app_says_which_conversations_a_caller_may_use(mounted, sandbox, prompt):
    sandbox.script(prompt, ["a"])
    assert begin(mounted, prompt, "guest", "c-open-1").status_code == 201
    assert begin(mounted, prompt, "guest", "c-closed").json()["code"] == "forbidden"
    refused = send(mounted, "GET", "/ask", "guest", params={"prompt": prompt, "conversation": "c-closed"})
    assert (refused.status_code, refused.text) == (403, "the shop's own words: forbidden")


def test_the_apps_pages_stay_its_own_and_the_relays_answers_are_the_relays(mounted):
    for path in ("/nowhere", "/relay/nowhere", "/missing", "/relay/healthz", "/relay/metrics"):
        answer = send(mounted, "GET", path)
        assert (answer.status_code, answer.text, answer.headers["X-Shop"]) == (404, "the shop's own page", "yes")
        assert "Content-Security-Policy" not in answer.headers
    unknown = send(mounted, "GET", "/relay/streams/unknown", headers={"Accept": JSON})
    assert (unknown.json()["code"], unknown.headers["X-Shop"]) == ("stream_not_found", "yes")
    assert "Content-Security-Policy" in unknown.headers


SIMPLE = ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain; charset=json", ""]


@pytest.mark.parametrize("kind", SIMPLE)
def test_a_form_of_another_site_begins_no_turn(mounted, sandbox, prompt, kind):
    """What a page can send anywhere, cookies and all, without a preflight (Fetch standard, 2.2.2)."""
    for path in ("/relay/streams", "/relay/stream-llm"):
        for origin in ({"Origin": "https://evil.example"}, {}):
            body = f'{{"conversationId": "c", "prompt": "{prompt}"}}'
            answer = send(mounted, "POST", path, data=body, headers={"Content-Type": kind} | origin)
            assert answer.json()["code"] == ("cross_origin" if origin else "unsupported_media_type")
    assert sandbox.gateway_calls(prompt) == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "https://other.shop.example"},
    ],
)
def test_what_a_page_of_another_origin_sends_with_the_cookies_is_refused(mounted, sandbox, prompt, headers):
    sandbox.script(prompt, ["a ", "b "], gate=True)
    running = begin(mounted, prompt, conversation="c-kept").json()
    forged = f"forged {prompt.split()[1]}"
    for method, path in (
        ("POST", "/relay/streams"),
        ("POST", "/relay/stream-llm"),
        ("DELETE", f"/relay/streams/{running['id']}"),
        ("DELETE", "/relay/conversations/c-kept"),
    ):
        answer = send(mounted, method, path, json=question(forged, "c"), headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "cross_origin")
    state = send(mounted, "GET", running["url"], headers={"Accept": JSON}).json()
    assert state["status"] == "running"
    assert sandbox.gateway_calls(forged) == 0
    own = {"Sec-Fetch-Site": "same-origin", "Origin": mounted.url}
    assert send(mounted, "DELETE", f"/relay/streams/{running['id']}", headers=own).status_code == 204


def test_the_apps_own_views_ask_for_no_page_of_another_origin(mounted, sandbox, prompt):
    sandbox.script(prompt, ["a"])
    asked = {"prompt": prompt, "conversation": "c"}
    for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        refused = send(mounted, "POST", "/ask", params=asked, headers=headers)
        assert (refused.status_code, refused.text) == (403, "the shop's own words: cross_origin")
    assert sandbox.gateway_calls(prompt) == 0
    answer = send(mounted, "POST", "/ask", params=asked, headers={"Origin": mounted.url})
    assert answer.text.splitlines() == ["token a /ask", "done complete /ask"]


def test_an_origin_that_is_none_is_not_ours_where_no_host_is_named(mounted, prompt):
    body = json.dumps(question(prompt, "c")).encode()
    head = b"POST /relay/streams HTTP/1.0\r\nOrigin: null\r\nCookie: user=ann\r\n"
    more = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    answer = speak(mounted.url, head + more + body)
    assert b" 403 " in answer.split(b"\r\n")[0]
    assert b"cross_origin" in answer


def test_pages_that_cors_lets_in_have_no_cookies(start_mounted, sandbox, prompt):
    mounted = start_mounted(CORS_ORIGINS="https://partner.example")
    origin = {"Origin": "https://partner.example", "Sec-Fetch-Site": "cross-site"}
    preflight = send(mounted, "OPTIONS", "/relay/streams", headers=origin | {"Access-Control-Request-Method": "POST"})
    assert preflight.status_code == 204
    assert "Access-Control-Allow-Credentials" not in preflight.headers
    sandbox.script(prompt, ["a ", "b "], gate=True)
    url = begin(mounted, prompt).json()["url"]
    assert send(mounted, "POST", "/relay/streams", json=question(prompt, "c"), headers=origin).status_code == 403
    without = send(mounted, "POST", "/relay/streams", user=None, json=question(prompt, "c"), headers=origin)
    assert (without.status_code, without.json()["code"]) == (401, "unauthorized")
    assert send(mounted, "DELETE", url, user=None, headers=origin).status_code == 204, "it was handed the address"


@pytest.fixture
def start_mounted(sandbox):
    started = []

    def start(**settings):
        started.append(MountedRelay(sandbox.url, **settings))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def test_a_view_streams_the_events_with_the_context_of_its_request(mounted, sandbox, prompt, conversation):
    sandbox.script(prompt, ["a", "b"], gate=True)
    asked = {"prompt": prompt, "conversation": conversation}
    answer = send(mounted, "GET", "/ask", params=asked, stream=True)
    lines = answer.iter_lines(decode_unicode=True, chunk_size=1)
    assert next(lines) == "token a /ask"
    sandbox.receipt(prompt, 2)
    assert list(lines) == ["token b /ask", "done complete /ask"]
    until(lambda: sandbox.text_of(conversation) == "ab", "the transcript has it")
    state = send(mounted, "GET", f"/relay/streams/{answer.headers['X-Stream-Id']}", headers={"Accept": JSON}).json()
    assert state["text"] == "ab", "it can be followed as well"


def test_an_answer_streams_into_a_template(mounted, sandbox, prompt, conversation):
    sandbox.script(prompt, ["a", "b"], gate=True)
    answer = send(mounted, "GET", "/template", params={"prompt": prompt, "conversation": conversation}, stream=True)
    pieces = answer.iter_content(1)
    received = b""
    while b"a|" not in received:
        received += next(pieces)
    sandbox.receipt(prompt, 2)
    assert received + b"".join(pieces) == b"<p>a|b|complete|</p>"


def test_a_failure_is_an_event_and_a_refusal_comes_before_the_page(mounted, sandbox, prompt, conversation):
    sandbox.fault("gateway", "bad_request_400", prompt=prompt)
    asked = {"prompt": prompt, "conversation": conversation}
    assert send(mounted, "GET", "/ask", params=asked).text.splitlines() == [
        "failure gateway_rejected /ask",
        "done failed /ask",
    ]
    refused = send(mounted, "GET", "/template", params=asked | {"prompt": " "})
    assert (refused.status_code, refused.text) == (400, "the shop's own words: bad_request")
    refused = send(mounted, "GET", "/ask", user=None, params=asked)
    assert (refused.status_code, refused.text) == (401, "the shop's own words: unauthorized")


@pytest.mark.parametrize("path", ["/ask", "/template"])
def test_a_view_whose_client_leaves_lets_the_answer_go(mounted, sandbox, prompt, conversation, path):
    sandbox.script(prompt, ["a", "b"], gate=True)
    answer = send(mounted, "GET", path, params={"prompt": prompt, "conversation": conversation}, stream=True)
    next(answer.iter_content(1))
    answer.close()
    assert ended(mounted, conversation) == "cancelled"  # after DISCONNECT_GRACE, without anyone


def test_an_answer_that_no_one_reads_is_let_go_with_the_response(mounted, sandbox, prompt, conversation):
    sandbox.script(prompt, ["a", "b"], gate=True)
    assert send(mounted, "GET", "/unread", params={"prompt": prompt, "conversation": conversation}).ok
    assert ended(mounted, conversation) == "cancelled"


def ended(relay, conversation):
    """How the one turn of a conversation has ended."""

    def status():
        (stream,) = send(relay, "GET", f"/relay/conversations/{conversation}/streams").json()["streams"]
        return stream["status"] if stream["status"] != "running" else None

    return until(status, "the turn's end")


def test_the_app_may_ask_in_someones_name(mounted, sandbox, prompt):
    sandbox.script(prompt.split()[1], ["for ", "carl"])
    assert send(mounted, "GET", f"/as/{prompt.split()[1]}", user=None).text == "for carl"
    (stream, *_) = send(mounted, "GET", "/relay/conversations/c-default/streams", user=prompt.split()[1]).json()[
        "streams"
    ]
    assert stream["status"] == "complete"


def settings(**more):
    fields = {"store_url": "memory://", "web_concurrency": 1, "transcript": "off", "gateway_api_key": "a-key"}
    return Settings(_env_file=None, **fields | more)


def test_an_app_that_names_no_callers_lets_no_one_in(caplog):
    app = Flask(__name__)
    Relay(settings=settings(access="app")).init_app(app)
    answer = app.test_client().post("/streams", json={"prompt": "Hello"})
    assert (answer.status_code, answer.json["code"]) == (500, "internal_error")
    assert "name the callers by a function under @relay.caller" in caplog.text


def test_the_relay_alone_cannot_leave_the_callers_to_an_app(capsys):
    with pytest.raises(SystemExit):
        create_app(settings(access="app"))
    assert "ACCESS=app cannot be right" in capsys.readouterr().err


def test_in_an_app_access_need_not_be_set_but_what_is_set_counts(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in (
        ("OAUTH_CLIENT_ID", "id"),
        ("OAUTH_CLIENT_SECRET", "secret"),
        ("ACCESS", ""),
        ("RELAY_API_KEYS", ""),
    ):
        monkeypatch.setenv(name, value)
    assert load_for_app().access == "app"
    monkeypatch.setenv("ACCESS", "keys")
    with pytest.raises(NoAccess):
        load_for_app()


def test_the_apps_blueprints_may_have_any_name_but_one():
    app = Flask(__name__)
    for name in ("streams", "openapi", "page", "ops"):
        app.register_blueprint(Blueprint(name, __name__))
    relay = Relay(app, settings=settings(access="open"), url_prefix="/relay", page=True, ops=True)
    assert app.test_client().get("/relay/healthz").json["status"] == "ok"
    assert Relay.of(app) is relay


def test_an_extension_of_the_app_can_leave_the_relay_alone_or_refuse_in_its_own_words():
    """As Flask-WTF does: it knows the blueprint that a request is for, of all that it was told to leave alone."""
    app = Flask(__name__)
    relay = Relay(app, settings=settings(access="open", rate_limit="off"), openai=False)
    exempt = set()

    @app.before_request
    def look():
        if app.blueprints.get(request.blueprint) not in exempt:
            abort(400, "The CSRF token is missing.")

    client = app.test_client()
    refused = client.post("/streams", json={"prompt": "Hello"})
    assert (refused.status_code, refused.json["error"]) == (400, "The CSRF token is missing.")
    exempt.update(relay.blueprints)
    assert "Send the text to ask." in client.post("/streams", json={"prompt": " "}).json["error"]
    assert client.get("/openapi.json").status_code == 200
    assert not [rule.rule for rule in app.url_map.iter_rules() if rule.rule.startswith("/v1")]


@pytest.mark.parametrize("words", ["two\nlines", "", None])
def test_words_that_are_not_for_clients_are_not_passed_on(words):
    app = Flask(__name__)
    Relay(app, settings=settings(access="open"))
    app.before_request(lambda: abort(400, words))
    assert app.test_client().post("/streams").json["error"] == BadRequest.sentence


def test_an_apps_own_variables_are_not_the_relays(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATEWAY_API_KEY", "a-key")
    monkeypatch.setenv("TRANSCRIPT", "off")
    monkeypatch.setenv("ACCESS", "")
    monkeypatch.setenv("SECRET_KEY", "dev")
    monkeypatch.setenv("RATE_LIMIT", "100 per hour")
    with pytest.raises(SettingsError, match="RATE_LIMIT"):
        load_for_app()
    monkeypatch.setenv("RELAY_RATE_LIMIT", "5/minute")
    (tmp_path / ".env").write_text("RELAY_MAX_TURNS=7\nMAX_TURNS=9\n")
    found = load_for_app()
    assert (found.secret_key, found.rate_limit, found.max_turns) == (None, "5/minute", 7)
    assert found.access == "app"
    monkeypatch.setenv("RELAY_SECRET_KEY", "k" * 32)
    assert load_for_app().secrets == ("a-key", "k" * 32)


def test_an_app_that_is_to_be_loaded_before_the_workers_is_refused_in_one_line(tmp_path):
    config = ("-c", ROOT / "examples/shop/gunicorn.conf.py", "--bind", "127.0.0.1:0", "--preload")
    settings = {"GATEWAY_API_KEY": "a-key", "TRANSCRIPT": "off", "ACCESS": "", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn", *config, "tests.mounting_app:application"],
        cwd=tmp_path,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert "preload_app=True cannot be right" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_caller_may_be_the_number_of_a_row():
    assert caller_of_app(7) == caller_of_app("7")
    assert caller_of_app(Caller(7, ("c-1",))) == Caller("app:7", ("c-1",))


def test_a_key_leads_no_caller_into_a_conversation_that_is_not_open_to_it(monkeypatch):
    """One name, first with another conversation than now: DEFAULT_CONVERSATION_ID or the app's word has changed."""
    relay = Relay(Flask(__name__), settings=settings(access="open"))
    begun = Started(Entry("a-turn", "c-1", "app:ann", began=0))
    monkeypatch.setattr(relay.turns, "start", lambda *_: begun)
    asked, key = Prompt((Message("user", "Hello"),)), Key("k", "fingerprint")
    assert relay.begin(asked, "c-1", Caller("app:ann", ("c-1",)), key) == begun
    with pytest.raises(KeyUsedOtherwise):
        relay.begin(asked, "c-2", Caller("app:ann", ("c-2",)), key)


@pytest.mark.parametrize(
    "wrong", [7.5, True, b"ann", "", "a" * 257, "two\nlines", Caller(None), Caller("ann", "order-*")]
)
def test_a_name_that_cannot_be_one_is_no_caller(wrong):
    with pytest.raises((TypeError, ValueError)):
        caller_of_app(wrong)


def test_no_key_and_no_token_has_an_apps_callers_name():
    assert caller_of_app("key:shop").name == "app:key:shop"
    assert caller_of_app(Caller("ann", ("c-1",))) == Caller("app:ann", ("c-1",))
