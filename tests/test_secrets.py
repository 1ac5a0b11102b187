"""No secret in anything that the server wrote: log at DEBUG, exceptions, answers."""

import logging
import sys

import orjson
import pytest
import requests

from sandbox.faults import GATEWAY, OAUTH, TRANSCRIPT
from server.telemetry import HIDDEN, JsonFormatter, TextFormatter, hide

from .conftest import until

SECRET = "sandbox-secret"


def test_nothing_that_the_server_wrote_holds_a_secret(start_sandbox, start_relay, prompt):
    sandbox = start_sandbox()
    relay = start_relay(
        GENESYS_BASE_URL=sandbox.url,
        GATEWAY_MAX_RETRIES="2",
        GATEWAY_SYSTEM_PROMPT="a-system-prompt-text",
        GATEWAY_TIMEOUT="10",  # nothing else ends a flood
    )
    answers = []
    for number, fault in enumerate([*GATEWAY, None]):
        question = f"{prompt} number {number}"
        sandbox.script(question, ["secret-answer-text "] * 5)
        if fault is not None:
            sandbox.fault("gateway", fault, prompt=question, seconds=None, retry_after=0)
        answers.append(relay.ask(question, f"c-{number}").finish())
    for fault in OAUTH:
        sandbox.fault("oauth", fault, seconds=0.1 if fault == "slow" else None, retry_after=0)
        sandbox.expire_tokens()
        answers.append(relay.ask(f"{prompt} {fault}", "c-oauth").finish())
    for fault in TRANSCRIPT:
        conversation = f"c-{fault}"
        sandbox.fault("transcript", fault, seconds=0.01, after=1)
        question = f"{prompt} {fault}"
        sandbox.script(question, ["secret-answer-text "] * 5, interval_ms=5)
        answers.append(relay.ask(question, conversation).finish())
    until(lambda: sum("link lost" in entry["message"] for entry in relay.log) >= 5, "the links are lost")
    relay.process.process.terminate()
    relay.process.process.wait(60)  # a mute link is given up only when its pong is overdue
    tokens = requests.get(f"{sandbox.url}/sandbox/tokens", timeout=5).json()
    assert len(tokens) >= 3
    told = "".join(str(answer.error) for answer in answers)
    for secret in [SECRET, *tokens]:
        assert secret not in relay.process.output
        assert secret not in told
    for content in (prompt, "secret-answer-text", "a-system-prompt-text"):
        assert content not in relay.process.output
    assert "Traceback" not in relay.process.output, "each failure has a line of its own, not a traceback"


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
    assert orjson.loads(JsonFormatter().format(record))["message"] == 'a "b"\n\x00 é'


def test_a_text_line_ends_with_its_fields():
    record = logging.LogRecord("x", logging.INFO, "f", 1, "turn ended", (), None)
    record.turn, record.code = "t-1", None
    assert TextFormatter().format(record).endswith("turn ended  turn=t-1")
