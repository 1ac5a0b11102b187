"""No secret in anything that the server wrote: log at DEBUG, exceptions, store, metrics, answers."""

import logging
import sys
from pathlib import Path

import orjson
import pytest
import requests

from sandbox.faults import GATEWAY, OAUTH, TRANSCRIPT
from server.access.keys import make_key
from server.telemetry import HIDDEN, JsonFormatter, TextFormatter, hide

from .conftest import until
from .provider import Provider
from .visitor import SSE, Visitor, path_of, ticket_of, with_ticket
from .wire import get, speak

SECRET = "sandbox-secret"


class Everything:
    """All that a server wrote while a test used it: its log, its store, its metrics, its answers."""

    def __init__(self, relay):
        self.relay = relay
        self.answers = ""
        self.metrics = ""

    def keep(self, answer):
        """Notes an answer, with its headers; returns it."""
        self.answers += f"{answer.status_code} {answer.headers} {answer.text}\n"
        return answer

    def keep_raw(self, data):
        self.answers += speak(self.relay.url, data).decode(errors="replace")

    def end(self):
        """Stops the server in peace, so that the log is whole."""
        self.metrics = requests.get(f"{self.relay.url}/metrics", timeout=10).text
        self.relay.process.process.terminate()
        self.relay.process.process.wait(60)  # a mute link is given up only when its pong is overdue

    @property
    def log(self):
        return self.relay.process.output

    @property
    def store(self):
        return "".join(path.read_bytes().decode("latin-1") for path in Path(self.relay.folder.name).iterdir())


def script(sandbox, question, **more):
    sandbox.script(question, ["secret-answer-text "] * 5, **more)
    return question


def meet_every_failure(sandbox, ask, relay, prompt):
    """Of the gateway, the login and the transcript."""
    for number, fault in enumerate([*GATEWAY, None]):
        question = script(sandbox, f"{prompt} number {number}")
        if fault is not None:
            sandbox.fault("gateway", fault, prompt=question, seconds=None, retry_after=0)
        ask(question, f"c-{number}")
    for fault in OAUTH:
        sandbox.fault("oauth", fault, seconds=0.1 if fault == "slow" else None, retry_after=0)
        sandbox.expire_tokens()
        ask(script(sandbox, f"{prompt} {fault}"), "c-oauth")
    for fault in TRANSCRIPT:
        sandbox.fault("transcript", fault, seconds=0.01, after=1)
        ask(script(sandbox, f"{prompt} {fault}", interval_ms=5), f"c-{fault}")
    until(lambda: sum("link lost" in entry["message"] for entry in relay.log) >= 5, "the links are lost")


def be_refused(everything, visitors, streams, prompt):
    """In every way, each time with a secret in hand."""
    relay, keep = everything.relay, everything.keep
    stream, other = streams
    for visitor in visitors:
        keep(visitor.ask(prompt, "not-mine"))
        keep(visitor.ask(prompt, "not-mine", place="/stream-llm"))
        keep(visitor.list("not-mine"))
        keep(visitor.get(path_of(stream), SSE))
        keep(visitor.delete(path_of(stream)))
    nobody, owner = Visitor(relay), visitors[0]
    for url in (with_ticket(other, ticket_of(stream)), with_ticket(stream, ticket_of(stream)[:-1])):
        keep(nobody.get(url, SSE))
        keep(nobody.get(url))
    ticket = ticket_of(stream)
    for url in (f"/nowhere?ticket={ticket}", f"{stream['url']}&after=nonsense", f"/conversations/c?ticket={ticket}"):
        keep(nobody.get(url, SSE))
    keep(requests.put(relay.url + stream["url"], headers=owner.headers, data=prompt, timeout=10))
    keep(requests.get(relay.url + stream["url"], headers=owner.headers | {"Host": "evil.example"}, timeout=10))
    for body in (
        [prompt],
        {"prompt": prompt, "messages": [prompt]},
        {"prompt": prompt * 9000},
        {"model": prompt + "\0"},
    ):
        keep(owner.post("/streams", body))
    keep(requests.post(f"{relay.url}/streams", headers=owner.headers, data=prompt, timeout=10))
    keep(owner.ask(prompt, "c-same", **{"Idempotency-Key": "same"}))
    keep(owner.ask(f"{prompt} another", "c-same", **{"Idempotency-Key": "same"}))
    bearer = owner.headers["Authorization"].encode()
    for line in (bearer, b"Authorization : " + bearer, b"Authorization: " + bearer + b"\0", b"X: " + bearer * 200):
        everything.keep_raw(get(stream["url"].encode(), line))
    everything.keep_raw(bearer + b" " + prompt.encode() + b"\r\n\r\n")
    everything.keep_raw(b"GET " + stream["url"].encode() + b"\r\n\r\n")


def test_nothing_that_the_server_wrote_holds_a_secret(start_sandbox, start_relay, prompt):
    sandbox, provider = start_sandbox(), Provider()
    provider.add("k-1")
    ann, wrong = make_key("ann"), make_key("ann")
    relay = start_relay(
        GENESYS_BASE_URL=sandbox.url,
        GATEWAY_MAX_RETRIES="2",
        GATEWAY_SYSTEM_PROMPT="a-system-prompt-text",
        GATEWAY_TIMEOUT="5",  # some faults never end by themselves
        RELAY_API_KEYS=ann.entry,
        SECRET_KEY="the-secret-key-that-signs-all-tickets",
        **provider.settings,
    )
    everything = Everything(relay)
    good, late = provider.token(), provider.token(exp=1)
    narrow = provider.token(conversations=["c-1"])
    unsigned = good.rpartition(".")[0] + "."
    user, program = Visitor(relay, good), Visitor(relay, ann.key)
    meet_every_failure(
        sandbox,
        lambda question, conversation: everything.keep(user.ask(question, conversation, place="/stream-llm")),
        relay,
        prompt,
    )
    streams = [everything.keep(who.ask(script(sandbox, f"{prompt} last"), "c")).json() for who in (user, program)]
    for stream in streams:
        everything.keep(Visitor(relay).get(stream["url"], SSE))
        everything.keep(Visitor(relay).get(stream["url"]))
    for path in ("/healthz", "/", "/page/config.json", "/conversations/c/streams"):
        everything.keep(user.get(path))
    strangers = [Visitor(relay, secret) for secret in (late, narrow, unsigned, wrong.key)]
    be_refused(everything, [user, program, *strangers, Visitor(relay)], streams, prompt)
    everything.end()
    provider.close()

    secrets = {
        SECRET,
        *sandbox.tokens(),
        ann.key,
        wrong.key,
        good,
        late,
        narrow,
        "the-secret-key-that-signs-all-tickets",
    }
    secrets |= {part for token in (good, late, narrow) for part in token.split(".")[1:]}
    tickets = {ticket_of(stream) for stream in streams}
    tickets |= {ticket.split(".")[1] for ticket in tickets}
    content = {prompt, "a-system-prompt-text"}
    assert len(secrets) > 12
    for secret in secrets | content:
        assert secret not in everything.log
        assert secret not in everything.store
        assert secret not in everything.metrics
        assert secret not in everything.answers
    for secret in tickets | {"secret-answer-text", "ticket="}:
        assert secret not in everything.log
        assert secret not in everything.metrics
    for ticket in tickets:
        assert ticket not in everything.store
    assert "secret-answer-text" in everything.store, "that is where answers are kept"
    assert "Traceback" not in everything.log, "each failure has a line of its own, not a traceback"


def test_a_key_for_the_gateway_is_in_nothing_that_the_server_wrote(start_relay, prompt):
    relay = start_relay(GATEWAY_API_KEY="the-key-for-the-gateway", TRANSCRIPT="off")
    everything = Everything(relay)
    everything.keep(Visitor(relay).ask(prompt, place="/stream-llm"))
    assert "gateway_unauthorized" in everything.answers, "the sandbox knows no such key"
    everything.end()
    for place in (everything.log, everything.store, everything.metrics, everything.answers):
        assert "the-key-for-the-gateway" not in place
        assert SECRET not in place


def test_prompts_and_answers_are_logged_only_when_that_is_asked_for(start_relay, sandbox, prompt):
    key = make_key("ann").key
    sandbox.script(f"{prompt} {key}", ["an-ans", "wer-text"])
    for settings, logged in (
        ({"LOG_CONTENT": "1", "LOG_LEVEL": "DEBUG"}, 1),
        ({"LOG_CONTENT": "1", "LOG_LEVEL": "INFO"}, 0),
        ({"LOG_LEVEL": "DEBUG"}, 0),
    ):
        relay = start_relay(**settings)
        turn = relay.ask(f"{prompt} {key}").finish().id
        relay.logged(turn, "turn ended")
        if logged:
            assert prompt in relay.logged(turn, "turn was asked")["content"]
            assert relay.logged(turn, "turn has answered")["content"] == "an-answer-text"
        relay.process.stop()
        assert relay.process.output.count(prompt) == logged
        assert relay.process.output.count("an-answer-text") == logged
        assert key not in relay.process.output, "a secret is one in a prompt as well"


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_the_formatters_hide_secrets_in_messages_fields_and_exceptions(formatter):
    hide("hunter2-the-token")
    try:
        raise ValueError("wss://h/v2?access_token=abc.def and hunter2-the-token")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "Authorization: Bearer %s", ("abc.def",), sys.exc_info())
    record.detail = "Basic YWJjOmRlZg== client_secret=abc.def&x"
    line = formatter.format(record)
    assert "abc.def" not in line
    assert "hunter2" not in line
    assert "YWJj" not in line
    assert HIDDEN in line


def test_a_json_line_is_json_whatever_the_message():
    record = logging.LogRecord("x", logging.INFO, "f", 1, 'a "b"\n\x00 é', (), None)
    record.created, record.msecs = 1_800_000_000.25, 250.0
    line = orjson.loads(JsonFormatter().format(record))
    assert line["message"] == 'a "b"\n\x00 é'
    assert line["time"] == "2027-01-15T08:00:00.250Z"


def test_a_text_line_ends_with_its_fields():
    record = logging.LogRecord("x", logging.INFO, "f", 1, "turn ended", (), None)
    record.turn, record.code = "t-1", None
    assert TextFormatter().format(record).endswith("turn ended  turn=t-1")
