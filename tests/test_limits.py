"""What one caller may ask of real servers: exact over workers and machines, whatever comes at once."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from server.access.keys import make_key
from server.prompt import MAX_MESSAGES, MAX_PROMPT_CHARS
from server.turn import MAX_ANSWER_CHARS

from .conftest import question, until
from .visitor import Visitor, path_of

ANN, BOB = make_key("ann"), make_key("bob")
KEYS = {"ACCESS": "keys", "RELAY_API_KEYS": f"{ANN.entry},{BOB.entry}", "TRANSCRIPT": "off", "DISCONNECT_GRACE": "-1"}
CLIENTS = 12
WINDOW = 1.0  # seconds
MOST = 5  # turns in them
HAMMER = 4.0  # seconds


@pytest.fixture(params=["two workers and SQLite", "two servers and Redis", "one worker and memory"])
def start_fleet(request, start_relay, tmp_path):
    """Starts what shares a store; returns its servers."""

    def start(**settings):
        settings = KEYS | settings
        match request.param:
            case "two workers and SQLite":
                return [start_relay(WEB_CONCURRENCY="2", **settings)]
            case "two servers and Redis":
                url = request.getfixturevalue("start_redis")().url
                return [start_relay(STORE_URL=url, **settings) for _ in range(2)]
        return [start_relay(STORE_URL="memory://", **settings)]

    return start


class Accepted:
    """What was accepted, each between two moments of the client's own clock."""

    def __init__(self):
        self.spans = []
        self.refused = 0
        self.seen = set()
        self._lock = threading.Lock()

    def ask(self, visitor, prompt):
        sent = time.monotonic()
        answer = visitor.ask(prompt, place="/streams")
        received = time.monotonic()
        with self._lock:
            if answer.status_code == 201:
                self.spans.append((sent, received))
            else:
                assert answer.status_code == 429, answer.text
                self.refused += 1
        return answer

    def check(self, most, window):
        """No more than `most` began in any window.

        Each began somewhere between its two moments, so that whatever this finds is certain, and it misses only what
        lies within an answer's time of the window's end. To that `test_allowance` is exact.
        """
        sent, received = sorted(span[0] for span in self.spans), sorted(span[1] for span in self.spans)
        for first in range(len(sent) - most):
            assert received[first + most] - sent[first] >= window, f"{most + 1} began within {window} s"


def hammer(fleet, key, prompt, seconds):
    """Many clients at once, each asking again as soon as it has its answer; on a connection of its own each time."""
    accepted = Accepted()
    deadline = time.monotonic() + seconds

    def client(number):
        visitor = Visitor(fleet[number % len(fleet)], key.key)
        while time.monotonic() < deadline:
            accepted.ask(visitor, prompt)

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, range(CLIENTS)))
    return accepted


def test_never_more_than_the_rate_begin_in_any_window(start_fleet, sandbox, prompt):
    fleet = start_fleet(RATE_LIMIT=f"{MOST}/second")
    sandbox.script(prompt, ["one"])
    accepted = hammer(fleet, ANN, prompt, HAMMER)
    accepted.check(MOST, WINDOW)
    assert accepted.refused > len(accepted.spans), "more was asked than allowed"
    begin, end = min(span[0] for span in accepted.spans), max(span[1] for span in accepted.spans)
    assert len(accepted.spans) <= MOST * math.ceil((end - begin) / WINDOW)
    assert len(accepted.spans) >= MOST * (HAMMER / WINDOW - 2), "what is allowed is let through"
    until(lambda: sandbox.gateway_calls(prompt) >= len(accepted.spans), "all that began is asked")
    assert sandbox.gateway_calls(prompt) == len(accepted.spans), "nothing that was refused has cost anything"


def test_of_many_that_come_at_once_exactly_as_many_begin_as_are_allowed(start_fleet, sandbox, prompt):
    fleet = start_fleet(RATE_LIMIT="17/hour")
    sandbox.script(prompt, ["one"])
    accepted = hammer(fleet, ANN, prompt, 2.0)
    assert len(accepted.spans) == 17
    assert accepted.refused > 17
    assert Visitor(fleet[0], BOB.key).begin(prompt), "another caller is not held up"


def test_as_many_run_at_once_as_are_allowed_and_no_more(start_fleet, sandbox, prompt):
    fleet = start_fleet(RATE_LIMIT="off", MAX_TURNS_PER_CALLER="4")
    sandbox.script(prompt, ["one ", "two"], gate=True)
    accepted = hammer(fleet, ANN, prompt, 1.5)
    assert len(accepted.spans) == 4
    assert accepted.refused > 4
    ann = Visitor(fleet[-1], ANN.key)
    refused = ann.ask(prompt)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_turns_at_once")
    assert int(refused.headers["Retry-After"]) > 0
    assert "RateLimit-Limit" not in refused.headers
    assert Visitor(fleet[0], BOB.key).begin(prompt), "another caller is not held up"
    assert sandbox.gateway_calls(prompt) <= 5


def test_a_place_is_free_again_when_a_turn_has_ended(start_relay, sandbox, prompt, conversation):
    relay = start_relay(**KEYS, MAX_TURNS_PER_CALLER="1")
    ann = Visitor(relay, ANN.key)
    sandbox.script(prompt, ["one ", "two"], gate=True)
    for _ in range(3):
        stream = ann.begin(prompt, conversation)
        assert ann.ask(prompt, conversation).status_code == 429
        assert ann.delete(path_of(stream)).status_code == 204
        until(lambda stream=stream: ann.get(path_of(stream)).json()["status"] == "cancelled", "the end")
        until(lambda: ann.ask(prompt, conversation, **{"Idempotency-Key": "k"}).status_code == 201, "the place")
        ann.delete(f"/conversations/{conversation}")


@pytest.mark.parametrize("place", ["/streams", "/stream-llm"])
def test_who_comes_back_after_retry_after_is_let_in(start_relay, sandbox, prompt, place):
    relay = start_relay(**KEYS, RATE_LIMIT="2/second")
    ann = Visitor(relay, ANN.key)
    sandbox.script(prompt, ["one"])
    for _ in range(2):
        while (answer := ann.ask(prompt, place=place)).status_code != 429:
            assert answer.ok
        assert answer.json()["code"] == "too_many_requests"
        wait = int(answer.headers["Retry-After"])
        assert 1 <= wait <= 1 + WINDOW
        time.sleep(wait)
        assert ann.ask(prompt, place=place).ok


@pytest.mark.parametrize("place", ["/streams", "/stream-llm"])
def test_headers_tell_what_is_left(start_relay, sandbox, prompt, place):
    relay = start_relay(**KEYS, RATE_LIMIT="3/hour")
    ann = Visitor(relay, ANN.key)
    sandbox.script(prompt, ["one"])
    answers = [ann.ask(prompt, place=place) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [201 if place == "/streams" else 200] * 3 + [429]
    assert [rate(answer)[:2] for answer in answers] == [(3, 2), (3, 1), (3, 0), (3, 0)]
    assert all(3590 < rate(answer)[2] <= 3600 for answer in answers)
    assert answers[3].headers["Retry-After"] == answers[3].headers["RateLimit-Reset"]


def rate(answer):
    return tuple(int(answer.headers[f"RateLimit-{name}"]) for name in ("Limit", "Remaining", "Reset"))


def test_a_question_that_is_repeated_with_its_key_spends_nothing(start_relay, sandbox, prompt, conversation):
    relay = start_relay(**KEYS, RATE_LIMIT="2/hour")
    ann = Visitor(relay, ANN.key)
    sandbox.script(prompt, ["one"])
    streams = {ann.begin(prompt, conversation, **{"Idempotency-Key": "k"})["id"] for _ in range(5)}
    assert len(streams) == 1
    assert ann.ask(prompt).status_code == 201
    assert ann.ask(prompt).status_code == 429
    assert ann.begin(prompt, conversation, **{"Idempotency-Key": "k"})["id"] in streams, "not even now"


def test_what_is_refused_for_another_reason_spends_nothing(start_relay, sandbox, prompt):
    relay = start_relay(**KEYS, RATE_LIMIT="1/hour")
    ann = Visitor(relay, ANN.key)
    assert ann.post("/streams", {}).status_code == 400
    assert Visitor(relay, "relay_" + 43 * "x").ask(prompt).status_code == 401
    assert ann.ask(prompt).status_code == 201


def test_reading_and_cancelling_are_not_limited(start_relay, sandbox, prompt, conversation):
    relay = start_relay(**KEYS, RATE_LIMIT="1/hour")
    ann = Visitor(relay, ANN.key)
    stream = ann.begin(prompt, conversation)
    for _ in range(5):
        assert ann.get(path_of(stream)).status_code == 200
        assert ann.list(conversation).status_code == 200
        assert ann.delete(path_of(stream)).status_code == 204


def test_with_open_access_everyone_is_one_caller(start_relay, sandbox, prompt):
    relay = start_relay(RATE_LIMIT="2/hour", TRANSCRIPT="off")
    assert [Visitor(relay).ask(prompt).status_code for _ in range(3)] == [201, 201, 429]


def test_without_a_limit_there_are_no_headers(relay, prompt):
    answer = Visitor(relay).ask(prompt)
    assert answer.status_code == 201
    assert not [name for name in answer.headers if name.startswith("RateLimit")]


def test_sixty_a_minute_is_the_default(start_relay, sandbox, prompt):
    relay = start_relay(**KEYS, RATE_LIMIT="")
    assert rate(Visitor(relay, ANN.key).ask(prompt)) == (60, 59, 60)


# Caps. What is beyond one is told so, and what is just within is taken.


def test_a_body_may_be_as_large_as_the_setting_says(start_relay, sandbox, prompt):
    relay = start_relay(MAX_BODY_BYTES="2000", TRANSCRIPT="off")
    sandbox.script(prompt, ["one"])
    for size, status in ((2000, 201), (2001, 413)):
        body = b'{"prompt": "%s"}' % prompt.encode()
        body += b" " * (size - len(body))
        for data in (body, iter([body])):  # with its length told, and in chunks
            answer = requests.post(
                f"{relay.url}/streams", data=data, headers={"Content-Type": "application/json"}, timeout=10
            )
            assert answer.status_code == status, answer.text
            assert status == 201 or answer.json()["code"] == "body_too_large"


@pytest.mark.parametrize("excess", [0, 1])
def test_a_prompt_has_a_longest_length(relay, sandbox, prompt, excess):
    sandbox.script(prompt, ["one"])
    answer = Visitor(relay).ask(prompt.ljust(MAX_PROMPT_CHARS + excess, "x"))
    assert answer.status_code == (413 if excess else 201)
    assert not excess or answer.json()["code"] == "prompt_too_long"


@pytest.mark.parametrize("excess", [0, 1])
def test_a_question_has_a_greatest_number_of_messages(relay, sandbox, prompt, excess):
    sandbox.script(prompt, ["one"])
    messages = [{"role": "user", "content": prompt}] * (MAX_MESSAGES + excess)
    answer = Visitor(relay).post("/streams", question(None, "", messages=messages))
    assert answer.status_code == (413 if excess else 201)
    assert not excess or answer.json()["code"] == "prompt_too_long"


@pytest.mark.parametrize("excess", [0, 1])
def test_an_answer_has_a_greatest_size(start_relay, sandbox, prompt, excess):
    relay = start_relay(TRANSCRIPT="off")
    piece = "x" * 1000
    sandbox.script(prompt, [piece] * (MAX_ANSWER_CHARS // 1000) + ["x"] * excess)
    result = relay.ask(prompt).finish()
    assert result.done["status"] == ("failed" if excess else "complete")
    assert not excess or result.error["code"] == "answer_too_long"
    assert len(result.text) <= MAX_ANSWER_CHARS + excess


def test_an_answer_has_a_longest_duration(start_relay, sandbox, prompt):
    relay = start_relay(GATEWAY_TIMEOUT="1", TRANSCRIPT="off")
    sandbox.script(prompt, ["word "] * 1000, interval_ms=50)
    began = time.monotonic()
    result = relay.ask(prompt).finish()
    assert result.error["code"] == "turn_timed_out"
    assert 1 <= time.monotonic() - began < 3
