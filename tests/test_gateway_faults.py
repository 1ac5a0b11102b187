"""Each way in which the gateway can fail: what the client sees, what the gateway was asked, what the operator reads."""

import time

import pytest
import requests

from .conftest import until

TOKENS = ["eins ", "zwei ", "drei ", "vier ", "fünf 👋"]
TEXT = "".join(TOKENS)


@pytest.fixture
def asked(relay, sandbox, prompt):
    """Orders a fault, asks, and returns the result."""

    def ask(fault, server=relay, **order):
        sandbox.script(prompt, TOKENS, interval_ms=5)
        sandbox.fault("gateway", fault, prompt=prompt, **order)
        return server.ask(prompt).finish()

    return ask


@pytest.mark.parametrize(
    "fault",
    [
        "crlf",
        "bare",
        "no_space",
        "comments",
        "no_done",
        "split_utf8",
        "one_byte",
        "glued",
        "slow_first_byte",
        "early_hints",
    ],
)
def test_a_gateway_with_its_own_manners_is_understood(asked, sandbox, prompt, fault):
    result = asked(fault, seconds=0.5)
    assert result.text == TEXT
    assert result.done["status"] == "complete"
    assert result.done["finish_reason"] == "stop"
    assert sandbox.gateway_calls(prompt) == 1


@pytest.mark.parametrize(
    ("fault", "order"),
    [
        ("rate_limited", {}),
        ("rate_limited", {"retry_after": 1}),
        ("rate_limited", {"retry_after": 1, "as_date": True}),
        ("rate_limited", {"retry_after": "soon"}),
        ("error_500", {}),
        ("unavailable_503", {"retry_after": 1}),
        ("cut_before_first", {}),
        ("no_finish", {"after": 0}),
    ],
)
def test_what_fails_before_the_first_token_is_tried_again(relay, sandbox, prompt, asked, fault, order):
    begin = time.monotonic()
    result = asked(fault, calls=2, **order)
    assert result.text == TEXT
    assert result.done["status"] == "complete"
    assert sandbox.gateway_calls(prompt) == 3
    assert [status["state"] for status in result.statuses] == ["retrying", "retrying"]
    line = relay.logged(result.id, "gateway failed, trying again")
    assert line["attempt"] == 1
    assert line["code"] == result.statuses[0]["reason"]
    if order.get("retry_after") == 1 and "as_date" not in order:
        assert time.monotonic() - begin >= 2, "Retry-After was honoured, twice"
        assert [status["in"] for status in result.statuses] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("rate_limited", "rate_limited"),
        ("error_500", "gateway_unavailable"),
        ("unavailable_503", "gateway_unavailable"),
        ("cut_before_first", "gateway_unavailable"),
    ],
)
def test_after_the_last_try_the_turn_fails(relay, sandbox, prompt, asked, fault, code):
    result = asked(fault, calls=9)
    assert result.tokens == []
    assert result.error["code"] == code
    assert result.done["status"] == "failed"
    assert sandbox.gateway_calls(prompt) == 3
    assert relay.logged(result.id, "turn failed")["code"] == code


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("bad_request_400", "gateway_rejected"),
        ("redirect", "gateway_rejected"),
        ("forbidden_403", "gateway_forbidden"),
        ("html", "answer_malformed"),
        ("stall_before_first", "gateway_stalled"),
    ],
)
def test_what_will_not_get_better_is_not_tried_again(relay, sandbox, prompt, asked, fault, code):
    result = asked(fault)
    assert result.tokens == []
    assert result.error["code"] == code
    assert result.error["error"].endswith(".")
    assert sandbox.gateway_calls(prompt) == 1
    line = relay.logged(result.id, "turn failed")
    assert line["code"] == code


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("stall", "gateway_stalled"),
        ("cut", "answer_cut"),
        ("no_finish", "answer_cut"),
        ("malformed", "answer_malformed"),
        ("error_object", "answer_failed"),
        ("huge_line", "answer_malformed"),
    ],
)
def test_what_fails_after_the_first_token_keeps_the_text_and_is_not_tried_again(
    relay, sandbox, prompt, asked, fault, code
):
    result = asked(fault)
    assert result.tokens == TOKENS[:3]
    assert result.error["code"] == code
    assert result.done["status"] == "failed"
    assert sandbox.gateway_calls(prompt) == 1
    assert relay.logged(result.id, "turn failed")["events"] == 5


def test_a_connection_that_breaks_without_an_answer_is_a_failed_try(asked, start_relay, sandbox, prompt):
    result = asked("refused", server=start_relay(), calls=2)  # a new relay: no connection was used before
    assert result.text == TEXT
    assert [status["state"] for status in result.statuses] == ["retrying", "retrying"]
    assert sandbox.gateway_calls(prompt) == 3


def test_after_the_last_try_without_an_answer_the_turn_fails(asked, start_relay, sandbox, prompt):
    result = asked("refused", server=start_relay(), calls=9)
    assert result.error["code"] == "gateway_unavailable"
    assert sandbox.gateway_calls(prompt) == 3


def test_a_connection_that_went_stale_is_replaced_at_once_and_without_a_word(start_relay, sandbox, prompt):
    relay = start_relay(GATEWAY_MAX_RETRIES="1")
    sandbox.script(prompt, TOKENS)
    relay.ask(prompt).finish()
    sandbox.fault("gateway", "stale", prompt=prompt)
    result = relay.ask(prompt).finish()
    assert result.text == TEXT
    assert result.statuses == []
    assert sandbox.gateway_calls(prompt) == 3
    assert sandbox.calls()["gateway"]["connections"] == 2


def test_an_interim_answer_does_not_let_two_turns_share_a_connection(start_relay, sandbox, prompt):
    relay = start_relay()
    first, second = f"{prompt} first", f"{prompt} second"
    sandbox.script(first, ["a ", "b "], gate=True)
    sandbox.script(second, TOKENS)
    sandbox.fault("gateway", "early_hints", prompt=first)
    answer = relay.ask(first)
    assert answer.next_token() == "a "
    assert relay.ask(second).finish().text == TEXT
    sandbox.receipt(first, 1)
    assert answer.finish().text == "b "
    assert sandbox.calls()["gateway"]["connections"] == 2


def test_a_gateway_that_floods_does_not_freeze_the_worker(start_relay, sandbox, prompt):
    relay = start_relay(GATEWAY_TIMEOUT="8")
    sandbox.script(prompt, TOKENS)
    sandbox.fault("gateway", "flood", prompt=prompt)
    begin = time.monotonic()
    answer = relay.ask(prompt)
    assert [answer.next_token() for _ in range(3)] == TOKENS[:3]
    for _ in range(3):
        assert requests.get(f"{relay.url}/healthz", timeout=5).ok
    assert time.monotonic() - begin < 8, "the flood still goes on"
    assert answer.finish().error["code"] == "turn_timed_out"
    assert time.monotonic() - begin < 12


@pytest.mark.parametrize("fault", ["cut_after_finish", "stall_after_finish"])
def test_an_answer_with_its_finish_reason_is_complete_whatever_comes_then(asked, sandbox, prompt, fault):
    begin = time.monotonic()
    result = asked(fault)
    assert result.text == TEXT
    assert result.error is None
    assert result.done["status"] == "complete"
    assert result.done["finish_reason"] == "stop"
    assert ("usage" in result.done) == (fault == "stall_after_finish")
    assert sandbox.gateway_calls(prompt) == 1
    assert time.monotonic() - begin < 4


def test_an_answer_with_its_finish_reason_is_not_stalled(start_relay, asked):
    result = asked("stall_after_finish", server=start_relay(GATEWAY_IDLE_TIMEOUT="0.5"))
    assert result.done["status"] == "complete"


def test_what_cannot_be_told_to_followers_is_shortened_or_left_out(relay, sandbox, prompt):
    delta, reason, usage = '{"content":"a\\ud83d"}', "x" * 99 + "\\ud83d", '{"deep":' + "[" * 300 + "]" * 300 + "}"
    ends = f'{{"choices":[{{"delta":{delta},"finish_reason":"{reason}"}}],"usage":{usage}}}'
    sandbox.script(prompt, [], raw=["data: " + ends])
    result = relay.ask(prompt).finish()
    assert result.tokens == ["a", "\ufffd"]
    assert result.done["status"] == "complete"
    assert result.done["finish_reason"] == "x" * 64
    assert result.done.get("usage") is None


def test_a_static_key_that_is_refused_is_not_sent_again(start_relay, sandbox, prompt):
    relay = start_relay(GATEWAY_API_KEY="a-key-that-the-gateway-refuses", TRANSCRIPT="off")
    sandbox.script(prompt, TOKENS)
    assert relay.ask(prompt).finish().error["code"] == "gateway_unauthorized"
    assert sandbox.gateway_calls(prompt) == 1


def test_an_answer_without_end_is_ended(asked):
    result = asked("endless")
    assert result.error["code"] == "answer_too_long"
    assert len(result.text) < 1_100_000


def test_a_retry_after_beyond_patience_fails_at_once_and_says_when(asked, sandbox, prompt):
    begin = time.monotonic()
    result = asked("rate_limited", retry_after=61)
    assert time.monotonic() - begin < 5
    assert "61 seconds" in result.error["error"]
    assert sandbox.gateway_calls(prompt) == 1


def test_a_retry_after_beyond_the_turns_deadline_fails_at_once(asked, start_relay, sandbox, prompt):
    result = asked("rate_limited", server=start_relay(GATEWAY_TIMEOUT="5"), retry_after=10)
    assert "10 seconds" in result.error["error"]
    assert sandbox.gateway_calls(prompt) == 1


def test_the_whole_turn_has_a_deadline(start_relay, sandbox, prompt):
    relay = start_relay(GATEWAY_TIMEOUT="1")
    sandbox.script(prompt, ["a "] * 100, interval_ms=100)
    result = relay.ask(prompt).finish()
    assert result.error["code"] == "turn_timed_out"
    assert 5 <= len(result.tokens) <= 20


def test_an_expired_token_is_renewed_without_counting_as_a_try(asked, sandbox, prompt):
    result = asked("expired")
    assert result.text == TEXT
    assert result.statuses == []
    assert sandbox.gateway_calls(prompt) == 2


def test_a_token_refused_twice_ends_the_turn(asked, sandbox, prompt):
    result = asked("expired", calls=9)
    assert result.error["code"] == "gateway_unauthorized"
    assert sandbox.gateway_calls(prompt) == 2


def test_the_number_of_tries_is_a_setting(asked, start_relay, sandbox, prompt):
    result = asked("error_500", server=start_relay(GATEWAY_MAX_RETRIES="1"), calls=9)
    assert result.error["code"] == "gateway_unavailable"
    assert sandbox.gateway_calls(prompt) == 1


def test_nothing_listening_is_waited_for(start_sandbox, start_relay, prompt):
    sandbox = start_sandbox()
    relay = start_relay(GENESYS_BASE_URL=sandbox.url, GATEWAY_MAX_RETRIES="20")
    sandbox.script(prompt, TOKENS)
    relay.ask(prompt).finish()
    sandbox.fault("gateway", "refused", seconds=1)
    result = relay.ask(prompt).finish()
    assert result.text == TEXT
    assert result.statuses


def test_a_failure_is_logged_with_the_platforms_correlation_id(asked, relay):
    result = asked("bad_request_400")
    assert "correlation=" in relay.logged(result.id, "turn failed")["detail"]


def test_an_answer_without_text_is_complete(relay, sandbox, prompt):
    sandbox.script(prompt, [], finish_reason="content_filter")
    result = relay.ask(prompt).finish()
    assert result.tokens == []
    assert result.done["status"] == "complete"
    assert result.done["finish_reason"] == "content_filter"


def test_the_connection_to_the_gateway_is_used_again(start_relay, sandbox, prompt):
    relay = start_relay()
    sandbox.script(prompt, TOKENS)
    before = sandbox.calls()["gateway"]["connections"]
    for _ in range(5):
        relay.ask(prompt).finish()
    assert sandbox.calls()["gateway"]["connections"] - before == 1


@pytest.mark.parametrize(
    ("fault", "calls", "status"),
    [
        ("error_500", 2, "complete"),
        ("unavailable_503", 2, "complete"),
        ("refused", 1, "complete"),
        ("slow", 1, "complete"),
    ],
)
def test_a_login_that_fails_for_a_moment_is_tried_again(start_relay, sandbox, prompt, fault, calls, status):
    sandbox.script(prompt, TOKENS)
    sandbox.fault("oauth", fault, calls=calls)
    assert start_relay().ask(prompt).finish().done["status"] == status


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("invalid_client", "credentials_rejected"),
        ("not_json", "credentials_rejected"),
        ("no_token", "credentials_rejected"),
        ("error_500", "credentials_unavailable"),
    ],
)
def test_a_login_that_fails_ends_the_turn_and_the_next_one_asks_afresh(start_relay, sandbox, prompt, fault, code):
    relay = start_relay(TRANSCRIPT="off")
    sandbox.script(prompt, TOKENS)
    sandbox.fault("oauth", fault, calls=3 if code == "credentials_unavailable" else 1)
    result = relay.ask(prompt).finish()
    assert result.error["code"] == code
    assert relay.logged(result.id, "turn failed")["code"] == code
    assert relay.ask(prompt).finish().text == TEXT


def test_a_wrong_secret_is_told_without_showing_it(start_relay, prompt):
    relay = start_relay(OAUTH_CLIENT_SECRET="a-wrong-secret-value", TRANSCRIPT="off")
    result = relay.ask(prompt).finish()
    assert "OAUTH_CLIENT_SECRET" in result.error["error"]
    assert "a-wrong-secret-value" not in relay.process.output


def test_the_transcript_of_a_failed_turn_holds_what_the_client_saw(relay, sandbox, prompt, conversation):
    sandbox.script(prompt, TOKENS)
    sandbox.fault("gateway", "cut", prompt=prompt)
    result = relay.ask(prompt, conversation).finish()
    until(lambda: sandbox.text_of(conversation) == result.text, "the transcript")
    assert result.text == "".join(TOKENS[:3])
