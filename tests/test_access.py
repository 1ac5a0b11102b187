"""Who gets in, and what they see: API keys, streams of one's own, tickets."""

import re
import subprocess
import sys
import time
import uuid

import pytest
import requests

from server.access.keys import make_key

from .conftest import ROOT, Answer, RelayServer, until
from .visitor import JSON, SSE, Visitor, path_of, refusal, ticket_of, with_ticket

ANN, BOB = make_key("ann"), make_key("bob")
LONG = 60  # seconds that a turn goes on without anyone: none ends while a test looks at it


@pytest.fixture(scope="module")
def shared_guarded_relay(shared_sandbox):
    keys = f"{ANN.entry},{BOB.entry}"
    relay = RelayServer(shared_sandbox.url, ACCESS="keys", RELAY_API_KEYS=keys, DISCONNECT_GRACE=str(LONG))
    yield relay
    relay.stop()


@pytest.fixture
def guarded(shared_guarded_relay, sandbox):
    return shared_guarded_relay


@pytest.fixture
def ann(guarded):
    return Visitor(guarded, ANN.key)


@pytest.fixture
def bob(guarded):
    return Visitor(guarded, BOB.key)


@pytest.fixture
def nobody(guarded):
    return Visitor(guarded)


def places(visitor, stream):
    """Each way to a stream, and to any conversation."""
    yield visitor.ask("a question")
    yield visitor.ask("a question", place="/stream-llm")
    yield visitor.list("c")
    yield visitor.get(path_of(stream), SSE)
    yield visitor.get(path_of(stream), JSON)
    yield visitor.delete(path_of(stream))


# Who gets in


def test_without_a_key_every_place_is_refused_with_what_to_do(ann, nobody, prompt):
    for answer in places(nobody, ann.begin(prompt)):
        assert answer.status_code == 401
        assert answer.json()["code"] == "unauthorized"
        assert "Authorization: Bearer KEY" in answer.json()["error"]
        assert answer.headers["WWW-Authenticate"] == "Bearer"


WRONG = {
    "another key": make_key("ann").key,
    "what the server keeps of a key": ANN.entry,
    "a key without its end": ANN.key[:-1],
    "a token where there are only keys": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbm4ifQ.",
    "other characters": "ключ".encode().decode("latin-1"),
    "nothing behind the scheme": "",
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_key_is_refused_and_not_repeated(ann, guarded, prompt, wrong):
    stranger = Visitor(guarded)
    stranger.headers = {"Authorization": f"Bearer {wrong}".encode("latin-1")}
    for answer in places(stranger, ann.begin(prompt)):
        assert answer.status_code == 401
        assert answer.json()["code"] == "invalid_token"
        assert answer.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
        assert not wrong or wrong not in answer.text


def test_a_key_under_another_scheme_is_refused(guarded):
    stranger = Visitor(guarded)
    for value in (ANN.key, f"Basic {ANN.key}", f"Bearer{ANN.key}", f"Bearer {ANN.key} {BOB.key}"):
        stranger.headers = {"Authorization": value}
        assert stranger.ask("a question").status_code == 401


def test_who_is_not_let_in_asks_nothing_and_is_not_read(nobody, sandbox, prompt):
    assert nobody.ask(prompt).status_code == 401
    body = requests.post(f"{nobody.relay.url}/streams", data=b"not JSON", timeout=10)
    assert body.status_code == 401, "the body is not looked at"
    assert not sandbox.gateway_calls(prompt)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_key_lets_in_and_the_schemes_case_does_not_matter(guarded, prompt, scheme):
    visitor = Visitor(guarded)
    visitor.headers = {"Authorization": f"{scheme} {ANN.key}"}
    answer = visitor.ask(prompt, place="/stream-llm")
    assert answer.status_code == 200
    assert "event: done" in answer.text


def test_health_and_the_page_need_no_key_and_tell_no_conversation(start_relay):
    relay = start_relay(ACCESS="keys", RELAY_API_KEYS=ANN.entry, DEFAULT_CONVERSATION_ID="the-default")
    visitor = Visitor(relay)
    assert visitor.get("/healthz").ok
    assert visitor.get("/").ok
    config = visitor.get("/page/config.json").json()
    assert config["needs_key"]
    assert config["conversation_id"] is None


# Whose stream it is


def test_another_callers_stream_is_like_one_that_is_not_there(ann, bob, sandbox, prompt):
    sandbox.script(prompt, ["a", "b"], gate=True)
    stream = ann.begin(prompt)
    unknown = {"id": uuid.uuid4().hex}
    for accept in (SSE, JSON):
        assert refusal(bob.get(path_of(stream), accept)) == refusal(bob.get(path_of(unknown), accept))
        assert bob.get(path_of(stream), accept).status_code == 404
    assert refusal(bob.get(f"{path_of(stream)}?after=1", SSE)) == refusal(bob.get(f"{path_of(unknown)}?after=1", SSE))
    assert refusal(bob.delete(path_of(stream))) == refusal(bob.delete(path_of(unknown)))
    assert ann.get(path_of(stream)).json()["status"] == "running", "it was not cancelled"


def test_another_callers_ended_stream_is_like_one_that_is_not_there(ann, bob, prompt):
    stream = ann.begin(prompt)
    until(lambda: ann.get(path_of(stream)).json()["status"] == "complete", "it ends")
    unknown = {"id": uuid.uuid4().hex}
    for accept in (SSE, JSON):
        assert refusal(bob.get(path_of(stream), accept)) == refusal(bob.get(path_of(unknown), accept))


def test_a_list_holds_the_callers_own_streams_alone(ann, bob, prompt, conversation):
    stream = ann.begin(prompt, conversation)
    assert [one["id"] for one in ann.list(conversation).json()["streams"]] == [stream["id"]]
    assert bob.list(conversation).json() == {"streams": []}
    assert refusal(bob.list(conversation)) == refusal(bob.list("no-such-conversation"))


def test_a_caller_follows_looks_at_and_cancels_its_own(ann, sandbox, prompt):
    sandbox.script(prompt, ["a", "b"], gate=True)
    stream = ann.begin(prompt)
    answer = Answer(ann.get(path_of(stream), SSE, stream=True))
    assert ann.delete(path_of(stream)).status_code == 204
    events = list(answer)
    assert events[-1]["data"]["status"] == "cancelled"
    assert "ticket" not in [event.get("event") for event in events], "who has a key needs no ticket"


def test_two_callers_can_use_the_same_idempotency_key(ann, bob, prompt, conversation):
    header = {"Idempotency-Key": f"key-{prompt}"}
    first = ann.begin(prompt, conversation, **header)
    assert bob.begin(prompt, conversation, **header)["id"] != first["id"]
    assert ann.begin(prompt, conversation, **header)["id"] == first["id"]


# Tickets


def test_the_address_of_a_stream_is_enough_to_follow_look_and_cancel(ann, nobody, sandbox, prompt):
    sandbox.script(prompt, ["a", "b"], gate=True)
    answer = ann.ask(prompt)
    stream = answer.json()
    assert answer.headers["Location"] == stream["url"]
    assert nobody.get(stream["url"]).json()["status"] == "running"
    followed = Answer(nobody.get(stream["url"], SSE, stream=True))
    assert nobody.delete(stream["url"]).status_code == 204
    assert list(followed)[-1]["data"]["status"] == "cancelled"


def test_a_list_brings_addresses_that_are_enough(ann, nobody, prompt, conversation):
    ann.begin(prompt, conversation)
    (listed,) = ann.list(conversation).json()["streams"]
    assert nobody.get(listed["url"]).json()["id"] == listed["id"]


def test_a_ticket_is_for_its_stream_alone(ann, nobody, prompt):
    mine, other = ann.begin(prompt), ann.begin(prompt)
    unknown = {"id": uuid.uuid4().hex}
    for accept in (SSE, JSON):
        answer = nobody.get(with_ticket(other, ticket_of(mine)), accept)
        assert answer.status_code == 404
        assert refusal(answer) == refusal(nobody.get(with_ticket(unknown, ticket_of(mine)), accept))
    assert nobody.delete(with_ticket(other, ticket_of(mine))).status_code == 404
    assert nobody.get(f"/conversations/c/streams?ticket={ticket_of(mine)}").status_code == 401


def test_a_ticket_that_was_tampered_with_is_none(ann, nobody, prompt):
    stream = ann.begin(prompt)
    expiry, signature = ticket_of(stream).split(".")
    for ticket in (
        f"{int(expiry) + 1}.{signature}",
        f"{expiry}.{signature[:-1]}",
        f"{expiry}.{'A' * 43}",
        "",
        "x",
        "%ff",
    ):
        answer = nobody.get(with_ticket(stream, ticket))
        assert answer.status_code == 404
        assert answer.json()["code"] == "stream_not_found"


def test_a_ticket_or_a_key_is_enough_whatever_the_other_is(ann, bob, guarded, prompt):
    stream = ann.begin(prompt)
    assert bob.get(stream["url"]).ok, "a good ticket, and the key of another caller"
    assert ann.get(with_ticket(stream, "wrong")).ok, "a wrong ticket, and the caller's own key"
    assert bob.get(with_ticket(stream, "wrong")).status_code == 404
    assert Visitor(guarded, "wrong").get(stream["url"]).ok
    assert Visitor(guarded, "wrong").get(with_ticket(stream, "wrong")).status_code == 401


def test_each_use_of_a_ticket_brings_a_fresh_one_and_the_old_one_ends(start_relay, sandbox, prompt):
    relay = start_relay(ACCESS="keys", RELAY_API_KEYS=ANN.entry, TICKET_SECONDS="3", DISCONNECT_GRACE=str(LONG))
    sandbox.script(prompt, ["a", "b"], gate=True)
    nobody = Visitor(relay)
    first = Visitor(relay, ANN.key).begin(prompt)
    time.sleep(1.5)
    looked = nobody.get(first["url"]).json()["url"]
    event = Answer(nobody.get(first["url"], SSE, stream=True)).next_event()
    assert event["event"] == "ticket"
    assert "id" not in event
    followed = event["data"]["url"]
    until(lambda: nobody.get(first["url"]).status_code == 404, "the first ticket has ended", patience=3)
    assert refusal(nobody.get(first["url"], SSE)) == refusal(nobody.get("/streams/unknown?ticket=1", SSE))
    assert nobody.get(looked).ok
    assert nobody.get(followed).ok


def test_the_fresh_ticket_comes_first_and_no_event_is_lost(ann, nobody, sandbox, prompt):
    sandbox.script(prompt, ["a", "b"])
    stream = ann.begin(prompt)
    text = nobody.get(stream["url"], SSE).text
    assert text.startswith('retry: 1000\n\nevent: ticket\ndata: {"url":"/streams/')
    assert [line for line in text.split("\n") if line.startswith("id: ")] == ["id: 1", "id: 2", "id: 3"]
    again = nobody.get(f"{stream['url']}&after=1", SSE).text
    assert again.startswith("retry: 1000\nid: 1\n\nevent: ticket\n"), "a cursor is told before the ticket"


def test_tickets_outlive_a_restart_and_hold_on_every_server_of_the_store(start_relay, shared_store, prompt):
    settings = {"ACCESS": "keys", "RELAY_API_KEYS": ANN.entry, "STORE_URL": shared_store}
    here, there = start_relay(**settings), start_relay(**settings)
    stream = Visitor(here, ANN.key).begin(prompt)
    until(lambda: Visitor(there).get(stream["url"]).json()["status"] != "running", "the other server shows its end")
    here.stop()
    there.stop()
    assert Visitor(start_relay(**settings)).get(stream["url"]).ok


def test_another_secret_key_makes_all_tickets_void(start_relay, shared_store, prompt):
    settings = {"ACCESS": "keys", "RELAY_API_KEYS": ANN.entry, "STORE_URL": shared_store}
    here, there = (start_relay(**settings, SECRET_KEY=letter * 32) for letter in "ab")
    stream = Visitor(here, ANN.key).begin(prompt)
    assert Visitor(here).get(stream["url"]).ok
    assert Visitor(there).get(stream["url"]).status_code == 404


# Open access


def test_open_access_asks_for_nothing_and_makes_no_tickets(relay, prompt):
    stream = Visitor(relay).begin(prompt)
    assert stream["url"] == path_of(stream)
    assert Visitor(relay, "whatever").get(f"{stream['url']}?ticket=whatever").ok
    assert "event: ticket" not in Visitor(relay).get(f"{stream['url']}?ticket=whatever", SSE).text


def test_streams_of_callers_stay_theirs_when_access_is_opened(start_relay, tmp_path, prompt):
    store = {"STORE_URL": f"sqlite:///{tmp_path}/relay.db"}
    stream = Visitor(start_relay(ACCESS="keys", RELAY_API_KEYS=ANN.entry, **store), ANN.key).begin(prompt)
    assert Visitor(start_relay(**store)).get(path_of(stream)).status_code == 404


def test_open_access_for_other_machines_is_warned_of_at_the_start(start_relay):
    relay = start_relay(BIND="0.0.0.0:0")
    warnings = [entry["message"] for entry in relay.log if entry["level"] == "WARNING"]
    assert any("ACCESS=open and BIND=0.0.0.0:0" in warning for warning in warnings)


# Safe start


def start(folder, **settings):
    """Starts gunicorn, which is expected to end at once."""
    base = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "OAUTH_CLIENT_ID": "a", "OAUTH_CLIENT_SECRET": "b"}
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py")]
    environment = base | {"BIND": "127.0.0.1:0", "LOG_FORMAT": "json"} | settings
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=30, check=False)


def test_the_server_does_not_start_without_a_word_on_access_and_prints_the_fix(tmp_path, start_relay, prompt):
    ended = start(tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 2
    key = re.search(r"relay_[\w-]{43}", ended.stderr)[0]
    entry = re.search(r"RELAY_API_KEYS=(client:\w{64})$", ended.stderr, re.MULTILINE)[1]
    relay = start_relay(ACCESS="", RELAY_API_KEYS=entry)
    assert Visitor(relay, key).begin(prompt)
    assert Visitor(relay).ask(prompt).status_code == 401


def test_a_file_of_keys_that_cannot_be_used_ends_the_start_with_one_line(tmp_path):
    path = tmp_path / "keys"
    ended = start(tmp_path, RELAY_API_KEYS_FILE=str(path))
    assert ended.returncode == 2
    assert f"RELAY_API_KEYS_FILE={path} cannot be used: No such file" in ended.stderr
    path.write_text(f"{ANN.entry}\n{ANN.key}\n")
    ended = start(tmp_path, RELAY_API_KEYS_FILE=str(path))
    assert "entry 2 is not NAME:HASH" in ended.stderr
    assert ANN.key not in ended.stderr


# Keys that change


def status_of(relay, key):
    return Visitor(relay, key).list("c").status_code


def keys_read(relay):
    return sum(entry["message"] == "API keys read" for entry in relay.log)


def test_a_changed_file_counts_within_seconds_on_every_worker_without_a_restart(start_relay, tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{ANN.entry}\n")
    relay = start_relay(ACCESS="keys", RELAY_API_KEYS_FILE=str(path), WEB_CONCURRENCY="2")
    workers = relay.workers
    until(lambda: status_of(relay, ANN.key) == 200 and keys_read(relay) == 2, "both workers let Ann in")
    path.write_text(f"{BOB.entry}\n")
    # A request makes a worker look; both must have been asked.
    until(lambda: status_of(relay, BOB.key) and keys_read(relay) == 4, "both workers have read it again", patience=5)
    for _ in range(20):
        assert status_of(relay, BOB.key) == 200
        assert status_of(relay, ANN.key) == 401
    assert relay.workers == workers


def test_a_file_that_breaks_keeps_its_keys_even_for_a_worker_that_comes_later(start_relay, tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"{ANN.entry}\n")
    relay = start_relay(ACCESS="keys", RELAY_API_KEYS_FILE=str(path), RELAY_API_KEYS=BOB.entry)
    assert status_of(relay, ANN.key) == 200
    path.write_text(f"{ANN.key}\n")
    complaints = lambda: [entry for entry in relay.log if "RELAY_API_KEYS_FILE" in entry["message"]]  # noqa: E731
    until(lambda: status_of(relay, ANN.key) == 200 and complaints(), "it is noticed")
    time.sleep(2.5)
    assert status_of(relay, ANN.key) == 200
    assert len(complaints()) == 1
    assert ANN.key not in relay.process.output
    relay.process.process.send_signal(1)  # HUP: a deploy
    old = relay.workers
    until(lambda: relay.workers and relay.workers != old, "another worker has come")
    until(lambda: status_of(relay, BOB.key) == 200, "it serves")


# What leaks


def test_no_key_and_no_ticket_reaches_the_log(start_relay, prompt):
    secret = "the-secret-key-that-signs-all-tickets"
    relay = start_relay(ACCESS="keys", RELAY_API_KEYS=ANN.entry, SECRET_KEY=secret, LOG_LEVEL="DEBUG")
    wrong = make_key("mallory").key
    stream = Visitor(relay, ANN.key).begin(prompt)
    for visitor in (Visitor(relay), Visitor(relay, wrong)):
        visitor.get(stream["url"])
        visitor.get(stream["url"], SSE)
        visitor.get(with_ticket(stream, ticket_of(stream) + "x"))
        visitor.delete(stream["url"])
        visitor.ask(prompt)
    requests.get(f"{relay.url}/streams/{'x' * 50}?ticket={ticket_of(stream)}&after=nonsense", timeout=10)
    until(lambda: f"GET {path_of(stream)}" in relay.process.output, "the access log has the requests, without queries")
    for leaked in (ANN.key, wrong, ticket_of(stream), ticket_of(stream).split(".")[1], secret, "ticket="):
        assert leaked not in relay.process.output
