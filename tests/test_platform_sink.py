"""The transcript by the public platform API: what arrives, what is parked, and what it costs the answer."""

import contextlib
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import requests

from sandbox.faults import PLATFORM
from server.journal.engines import open_journal
from server.journal.memory import MemoryJournal
from server.journal.outbox import Parcel
from server.journal.tail import Tail
from server.relay import make_credentials
from server.settings import Settings
from server.sse import Done, Token
from server.transcript.api import MAX_MESSAGE_CHARS
from server.transcript.conversation import Conversation, SinkLost
from server.transcript.line import Line
from server.transcript.platform import Platform

from .conftest import RelayServer, until
from .transcripts import faults_of_posts, parsed

TAKEOVER = 5.0  # seconds from the loss of the holder until another goes on
SETTINGS = {
    "TRANSCRIPT": "platform",
    "TRANSCRIPT_REQUESTS_PER_MINUTE": "6000",  # tests of the pace set their own
    "GATEWAY_IDLE_TIMEOUT": "60",
    "DISCONNECT_GRACE": "-1",
}
PARKED = "transcript parked: `relay transcript retry` once the cause is gone"


def check_output(relay, sandbox):
    """No token, no question and no answer of this file stands in what was printed; nothing failed without words."""
    for token in sandbox.tokens():
        assert token not in relay.process.output
    assert not re.search(r"question [0-9a-f]{32}|\bq\d+\.\d+ |sandbox-secret|Traceback", relay.process.output)


@pytest.fixture(scope="module")
def shared_relay(shared_sandbox):
    relay = RelayServer(shared_sandbox.url, **SETTINGS)
    yield relay
    relay.stop()
    check_output(relay, shared_sandbox)


@pytest.fixture
def start_relay(start_relay, sandbox):
    started = []

    def start(**settings):
        started.append(start_relay(**(SETTINGS | settings)))
        return started[-1]

    yield start
    for relay in started:
        check_output(relay, sandbox)


@pytest.fixture
def pair(shared_store, start_relay):
    """Two machines with one store."""
    return start_relay(STORE_URL=shared_store), start_relay(STORE_URL=shared_store)


def lines_of(question, count, words=5):
    """Tokens of so many sentences, each a line."""
    lines = [[f"q{question}.{number} " for number in range(line * words, (line + 1) * words)] for line in range(count)]
    return [token for line in lines for token in [*line, "\n"]]


def ask(relay, sandbox, prompt, conversation, question=0, lines=6, **script):
    sandbox.script(f"{prompt} {question}", lines_of(question, lines), **script)
    return relay.begin(f"{prompt} {question}", conversation)


def transcript_state(relay, stream):
    return relay.state(stream)["transcript"]


def delivered(relay, sandbox, conversation, *streams, patience=20):
    """Waits until the outbox says so; returns what the sandbox shows."""
    for stream in streams:
        until(lambda s=stream: transcript_state(relay, s)["state"] == "delivered", "delivered", patience)
    return sandbox.conversation(conversation)


def parked(relay, stream):
    """Waits until it is; returns the reason."""
    return until(lambda: transcript_state(relay, stream).get("reason"), "parked")


def arrives(sandbox, conversation, text):
    until(lambda: text in sandbox.text_of(conversation), f"{text!r} arrives")


def texts_of(relay, *streams):
    return [relay.state(stream)["text"] for stream in streams]


def messages_of(shown):
    return [message["text"] for message in shown["messages"]]


def platform_calls(sandbox):
    return [call for call in sandbox.calls()["log"] if call["place"] == "platform"]


def metric(relay, name):
    text = requests.get(f"{relay.url}/metrics", timeout=10).text
    return float(re.search(rf"^relay_transcript_{name} (\S+)$", text, re.MULTILINE)[1])


def lines_logged(relay, message, **fields):
    return [e for e in relay.log if message in e["message"] and fields.items() <= e.items()]


# What arrives


def test_an_answer_arrives_in_whole_sentences(relay, sandbox, prompt, conversation):
    tokens = ["Good", " day", ".", " It", " is 3.", "5 kg", ".", " Take", " care"]
    sandbox.script(prompt, tokens, gate=True)
    stream = relay.begin(prompt, conversation)
    sandbox.receipt(prompt, 3)  # a space comes next
    until(lambda: sandbox.text_of(conversation) == "Good day.", "the first sentence")
    sandbox.receipt(prompt, 7)
    until(lambda: sandbox.text_of(conversation) == "Good day. It is 3.5 kg.", "the second sentence")
    sandbox.receipt(prompt, len(tokens))
    shown = delivered(relay, sandbox, conversation, stream)
    assert messages_of(shown) == ["Good day.", " It is 3.5 kg.", " Take care"]


def test_what_was_written_last_leaves_with_the_turns_end(relay, sandbox, prompt, conversation):
    sandbox.script(prompt, ["No full stop", " comes"], gate=True)
    stream = relay.begin(prompt, conversation)
    until(lambda: relay.state(stream)["text"] == "No full stop", "the first token")
    assert not sandbox.text_of(conversation)
    sandbox.receipt(prompt, 2)
    shown = delivered(relay, sandbox, conversation, stream)
    assert messages_of(shown) == ["No full stop comes"]
    assert shown["messages"][0]["at"] - relay.state(stream)["ended"] < 1


def test_typing_is_shown_while_a_sentence_gathers(relay, sandbox, prompt, conversation):
    sandbox.script(prompt, ["Let me", " see."], gate=True)
    stream = relay.begin(prompt, conversation)
    until(lambda: sandbox.conversation(conversation)["typing"], "the typing event")
    assert not sandbox.text_of(conversation)
    sandbox.receipt(prompt, 2)
    assert delivered(relay, sandbox, conversation, stream)["typing"] == 1


def test_a_long_answer_is_cut_at_the_end_of_sentences(relay, sandbox, prompt, conversation):
    stream = ask(relay, sandbox, prompt, conversation, lines=200)
    shown = delivered(relay, sandbox, conversation, stream)
    assert shown["text"] == "".join(lines_of(0, 200))
    assert all(text.endswith("\n") and len(text) <= MAX_MESSAGE_CHARS for text in messages_of(shown))


def test_a_sentence_longer_than_a_message_is_cut_between_words(relay, sandbox, prompt, conversation):
    sandbox.script(prompt, [part for number in range(1000) for part in (f"q0.{number}", " ")])
    shown = delivered(relay, sandbox, conversation, relay.begin(prompt, conversation))
    assert len(messages_of(shown)) >= 4
    assert all(len(text) <= MAX_MESSAGE_CHARS for text in messages_of(shown))
    assert [token for text in messages_of(shown) for token in parsed(text)] == [(0, n) for n in range(1000)]


def test_a_token_longer_than_a_message_is_split(relay, sandbox, prompt, conversation):
    tokens = ["See: ", "👋" * 2500, " Bye."]
    sandbox.script(prompt, tokens)
    shown = delivered(relay, sandbox, conversation, relay.begin(prompt, conversation))
    assert shown["text"] == "".join(tokens)
    assert [len(text) for text in messages_of(shown)] == [5, 1000, 1000, 500, 5]


@pytest.mark.parametrize("tokens", [[], [" ", "\n\n", "\t"]])
def test_what_shows_nothing_counts_as_delivered(relay, sandbox, prompt, conversation, tokens):
    sandbox.script(prompt, tokens)
    shown = delivered(relay, sandbox, conversation, relay.begin(prompt, conversation))
    assert not messages_of(shown)
    assert not [call for call in platform_calls(sandbox) if call["call"] == "message"]


def test_turns_of_one_conversation_come_in_the_order_in_which_they_began(relay, sandbox, prompt, conversation):
    streams = [ask(relay, sandbox, prompt, conversation, n, interval_ms=10) for n in range(3)]
    shown = delivered(relay, sandbox, conversation, *streams)
    assert shown["text"] == "".join(texts_of(relay, *streams))


# What goes well later


@pytest.mark.parametrize("call", ["read", "message"])
@pytest.mark.parametrize(
    ("fault", "order"),
    [
        ("rate_limited", {"retry_after": 1}),
        ("error_500", {}),
        ("unavailable_503", {"retry_after": 1}),
        ("conflict_409", {}),
        ("reset", {}),
        ("slow", {"seconds": 1}),
        ("expired", {}),
        ("expired", {"calls": 2}),
        ("html", {}),
        ("redirect", {}),
    ],
)
def test_a_passing_fault_costs_nothing(relay, sandbox, prompt, conversation, fault, order, call):
    sandbox.fault("platform", fault, conversation=conversation, call=call, **order)
    stream = ask(relay, sandbox, prompt, conversation, interval_ms=10)
    shown = delivered(relay, sandbox, conversation, stream)
    assert shown["text"] == "".join(lines_of(0, 6)), "nothing is missing, nothing comes twice"
    assert [c["call"] for c in platform_calls(sandbox) if c["fault"]] == [call] * order.get("calls", 1)


@pytest.mark.parametrize("fault", ["error_500", "expired", "forbidden_403", "no_conversation", "reset", "html"])
def test_a_typing_event_that_fails_is_left_for_the_text_to_find_out(relay, sandbox, prompt, conversation, fault):
    sandbox.fault("platform", fault, conversation=conversation, call="typing", calls=2)
    sandbox.script(prompt, ["Let me", " see."], gate=True)
    stream = relay.begin(prompt, conversation)
    until(lambda: [call for call in platform_calls(sandbox) if call["fault"]], "the typing event has failed")
    sandbox.receipt(prompt, 2)
    assert delivered(relay, sandbox, conversation, stream)["text"] == "Let me see."
    assert not lines_logged(relay, "transcript link lost", conversation=conversation)


def test_a_fault_in_mid_answer_costs_nothing(relay, sandbox, prompt, conversation):
    stream = ask(relay, sandbox, prompt, conversation, lines=12, interval_ms=15)
    arrives(sandbox, conversation, "q0.4 ")
    sandbox.fault("platform", "error_500", conversation=conversation, call="message", calls=2)
    shown = delivered(relay, sandbox, conversation, stream)
    assert shown["text"] == "".join(lines_of(0, 12))


def test_a_fault_within_a_split_token_repeats_no_part(relay, sandbox, prompt, conversation):
    token = "abcdefgh " * 1000
    sandbox.script(prompt, [token])
    sandbox.fault("platform", "slow", call="message", seconds=0.01, calls=3)
    sandbox.fault("platform", "error_500", call="message")
    shown = delivered(relay, sandbox, conversation, relay.begin(prompt, conversation))
    assert shown["text"] == token


def test_a_token_that_expires_in_mid_answer_is_renewed(relay, sandbox, prompt, conversation):
    stream = ask(relay, sandbox, prompt, conversation, lines=12, interval_ms=15)
    arrives(sandbox, conversation, "q0.4 ")
    sandbox.expire_tokens()
    shown = delivered(relay, sandbox, conversation, stream)
    assert shown["text"] == "".join(lines_of(0, 12))
    assert sandbox.calls()["platform"]["statuses"]["401"]


def test_only_a_lost_answer_makes_text_come_twice(relay, sandbox, prompt, conversation):
    stream = ask(relay, sandbox, prompt, conversation, lines=12, interval_ms=15)
    arrives(sandbox, conversation, "q0.4 ")
    sandbox.fault("platform", "reply_lost", conversation=conversation, call="message")
    shown = delivered(relay, sandbox, conversation, stream)
    assert faults_of_posts(shown, texts_of(relay, stream)) == []
    begins = [parsed(text)[0] for text in messages_of(shown)]
    assert len(begins) == len(set(begins)) + 1


def test_the_next_agent_gets_the_rest(relay, sandbox, prompt, conversation):
    stream = ask(relay, sandbox, prompt, conversation, lines=12, interval_ms=15)
    arrives(sandbox, conversation, "q0.4 ")
    sandbox.fault("platform", "transferred", conversation=conversation, call="message")
    shown = delivered(relay, sandbox, conversation, stream)
    assert shown["text"] == "".join(lines_of(0, 12))
    assert not lines_logged(relay, "transcript link lost", conversation=conversation)


@pytest.mark.parametrize("call", ["read", "message"])
def test_an_agent_who_answers_late_gets_everything(relay, sandbox, prompt, conversation, call):
    sandbox.fault("platform", "alerting", conversation=conversation, call=call)
    stream = ask(relay, sandbox, prompt, conversation, interval_ms=10)
    (lost, *_) = until(lambda: lines_logged(relay, "transcript link lost", conversation=conversation), "a line")
    assert lost["detail"] == "The agent has not taken the conversation yet"
    sandbox.fault("platform", "answered", conversation=conversation)
    shown = delivered(relay, sandbox, conversation, stream)
    assert shown["text"] == "".join(lines_of(0, 6))


def test_a_backlog_arrives_in_whole_sentences(relay, sandbox, prompt, conversation):
    sandbox.fault("platform", "unavailable_503", conversation=conversation, retry_after=1)
    tokens = ["a", "b", "c", ".", "\n"] * 300
    sandbox.script(prompt, tokens)
    shown = delivered(relay, sandbox, conversation, relay.begin(prompt, conversation))
    assert shown["text"] == "".join(tokens)
    assert all(text.endswith(".\n") for text in messages_of(shown))


# What cannot succeed


@pytest.mark.parametrize(
    ("fault", "call", "reason"),
    [
        ("forbidden_403", "message", r"permission conversation:message:create \(HTTP 403, missing\.any\.permissions, "),
        ("forbidden_403", "read", r"permission conversation:message:create \(HTTP 403, "),
        ("no_conversation", "read", r"There is no such conversation \(HTTP 404, not\.found, ININ-Correlation-Id \w+"),
        ("no_conversation", "message", r"There is no such communication \(HTTP 404, "),
        ("bad_request_400", "message", r"Genesys Cloud refused the text \(HTTP 400, bad\.request, "),
        ("too_large_413", "message", r"Genesys Cloud refused the text \(HTTP 413, "),
        ("ended", "read", "The conversation has ended"),
        ("ended", "message", "The conversation has ended"),
    ],
)
def test_what_cannot_succeed_is_parked_with_a_reason_for_people(
    relay, sandbox, prompt, conversation, fault, call, reason
):
    before = metric(relay, "turns_parked_total")
    sandbox.fault("platform", fault, conversation=conversation, call=call)
    stream = ask(relay, sandbox, prompt, conversation, interval_ms=10)
    assert re.search(reason, parked(relay, stream))
    assert transcript_state(relay, stream)["state"] == "parked"
    line = relay.logged(stream, PARKED)
    assert line["level"] == "ERROR" and line["conversation"] == conversation
    assert line["detail"] == transcript_state(relay, stream)["reason"]
    until(lambda: relay.state(stream)["status"] == "complete", "the answer goes on")
    assert len(lines_logged(relay, "transcript parked", turn=stream)) == 1
    assert metric(relay, "turns_parked_total") == before + 1
    assert not lines_logged(relay, "transcript link lost", conversation=conversation)


def test_a_conversation_that_ends_in_mid_answer_keeps_what_it_has(relay, sandbox, prompt, conversation):
    stream = ask(relay, sandbox, prompt, conversation, lines=12, interval_ms=15)
    arrives(sandbox, conversation, "q0.4 ")
    sandbox.fault("platform", "ended", conversation=conversation, call="message")
    assert parked(relay, stream) == "The conversation has ended"
    assert transcript_state(relay, stream)["cursor"] >= 5
    assert "".join(lines_of(0, 12)).startswith(sandbox.text_of(conversation))


def test_a_later_turn_tries_once_more_and_retry_delivers_all_in_order(relay, sandbox, prompt, conversation):
    sandbox.fault("platform", "forbidden_403", conversation=conversation, call="message", calls=1000)
    first = ask(relay, sandbox, prompt, conversation, 0)
    parked(relay, first)
    second = ask(relay, sandbox, prompt, conversation, 1)
    parked(relay, second)
    until(lambda: len(lines_logged(relay, PARKED, turn=first)) == 2, "it is parked again")
    assert len(lines_logged(relay, PARKED, turn=second)) == 1
    assert [call["status"] for call in platform_calls(sandbox) if call["call"] == "message"] == [403, 403]
    sandbox.forget_faults()
    assert retry(relay, conversation) == [first, second]
    shown = delivered(relay, sandbox, conversation, first, second)
    assert shown["text"] == "".join(texts_of(relay, first, second))


def test_a_later_turn_takes_what_was_parked_along(relay, sandbox, prompt, conversation):
    sandbox.fault("platform", "forbidden_403", conversation=conversation, call="message")
    first = ask(relay, sandbox, prompt, conversation, 0)
    parked(relay, first)
    second = ask(relay, sandbox, prompt, conversation, 1)
    shown = delivered(relay, sandbox, conversation, first, second)
    assert shown["text"] == "".join(texts_of(relay, first, second))


def retry(relay, conversation):
    """As `relay transcript retry` does."""
    journal = open_journal(f"sqlite:///{relay.folder.name}/relay.db", "retry", 60, 60)
    try:
        return list(journal.outbox.retry(conversation))
    finally:
        journal.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:9", "no connection to 127.0.0.1"),
        ("{sandbox}/elsewhere", "What answered is not the platform API"),
    ],
)
def test_a_wrong_address_is_told_in_words_and_costs_the_client_nothing(
    start_relay, sandbox, prompt, conversation, url, words
):
    relay = start_relay(GENESYS_API_URL=url.format(sandbox=sandbox.url))
    sandbox.script(prompt, lines_of(0, 20), interval_ms=10)
    answer = relay.ask(prompt, conversation).finish()
    assert answer.text == "".join(lines_of(0, 20))
    (line, *_) = until(lambda: lines_logged(relay, "transcript link lost"), "the log line")
    assert words in line["detail"] and "GENESYS_API_URL" in line["detail"]
    assert transcript_state(relay, answer.id)["state"] == "pending"
    assert len([e for e in relay.log if e["level"] in ("WARNING", "ERROR")]) < 8


# How many requests leave


def test_two_workers_share_what_a_minute_allows(start_relay, sandbox, prompt, conversation):
    per_minute, burst = 360, 36
    sandbox.limit_rate(per_minute, 60)
    relay = start_relay(TRANSCRIPT_REQUESTS_PER_MINUTE=str(per_minute), WEB_CONCURRENCY="2")
    until(lambda: len(relay.workers) == 2, "both workers")
    sandbox.script(prompt, lines_of(0, 25, words=2), interval_ms=30)
    names = [f"{conversation}-{number}" for number in range(20)]
    streams = [relay.begin(prompt, name) for name in names]
    for name, stream in zip(names, streams, strict=True):
        shown = delivered(relay, sandbox, name, stream, patience=40)
        assert shown["text"] == "".join(lines_of(0, 25, words=2))
    calls = platform_calls(sandbox)
    assert {call["status"] for call in calls} <= {200, 204}, "the platform never had to refuse"
    times = [call["at"] for call in calls]
    for index, begin in enumerate(times):
        for count, at in enumerate(times[index:], start=1):
            assert count <= burst + (at - begin + 0.2) * per_minute / 60
    assert sum(call["call"] == "typing" for call in calls) <= burst / 2, "while messages wait, no typing is shown"


@pytest.mark.parametrize("call", ["message", "typing"])
def test_a_refusal_for_one_conversation_gives_the_platform_a_rest(relay, sandbox, prompt, conversation, call):
    names = [f"{conversation}-{number}" for number in range(3)]
    streams = [ask(relay, sandbox, prompt, name, number, 60, interval_ms=10) for number, name in enumerate(names)]
    arrives(sandbox, names[-1], "\n")
    sandbox.script(f"{prompt} refused", ["Let me", " see."], gate=call == "typing")
    sandbox.fault("platform", "rate_limited", conversation=conversation, call=call, retry_after=2)
    refused = relay.begin(f"{prompt} refused", conversation)
    until(lambda: [call for call in platform_calls(sandbox) if call["status"] == 429], "the refusal")
    sandbox.receipt(f"{prompt} refused", 2)
    assert delivered(relay, sandbox, conversation, refused)["text"] == "Let me see."
    for number, (name, stream) in enumerate(zip(names, streams, strict=True)):
        assert delivered(relay, sandbox, name, stream)["text"] == "".join(lines_of(number, 60))
    calls = platform_calls(sandbox)
    (refused,) = [call["at"] for call in calls if call["status"] == 429]
    assert not [call for call in calls if refused + 0.2 < call["at"] < refused + 1.9], "none comes meanwhile"
    assert calls[-1]["at"] > refused + 1.9


def test_a_platform_that_is_slow_or_refuses_does_not_slow_the_answer(relay, sandbox, prompt, conversation):
    sandbox.script(prompt, lines_of(0, 40), interval_ms=5)
    faults = {"error_500": {}, "reset": {}, "forbidden_403": {}, "slow": {"seconds": 10}}
    names = [conversation, *(f"{conversation}-{fault}" for fault in faults)]
    healthy = seconds_taken(relay, prompt, [f"{name}-healthy" for name in names])
    for fault, order in faults.items():
        sandbox.fault("platform", fault, conversation=f"{conversation}-{fault}", calls=1000, **order)
    assert max(seconds_taken(relay, prompt, names)) < max(healthy) * 1.5 + 0.5


def seconds_taken(relay, prompt, names):
    """By the answers in these conversations, all asked for at once."""

    def read(name):
        begin = time.monotonic()
        assert relay.ask(prompt, name).finish().text == "".join(lines_of(0, 40))
        return time.monotonic() - begin

    with ThreadPoolExecutor() as readers:
        return list(readers.map(read, names))


def test_a_slow_typing_event_does_not_hold_up_the_text(relay, sandbox, prompt, conversation):
    sandbox.fault("platform", "slow", conversation=conversation, call="typing", seconds=10)
    begin = time.monotonic()
    delivered(relay, sandbox, conversation, ask(relay, sandbox, prompt, conversation, interval_ms=10))
    assert time.monotonic() - begin < 5


# Several machines, and what becomes of a holder


def test_turns_on_two_machines_have_one_poster_and_keep_their_order(pair, sandbox, prompt, conversation):
    streams = [ask(pair[n % 2], sandbox, prompt, conversation, n, interval_ms=10) for n in range(6)]
    shown = delivered(pair[0], sandbox, conversation, *streams)
    assert shown["text"] == "".join(texts_of(pair[0], *streams))
    assert sorted(metric(relay, "messages_total") for relay in pair) == [0, len(shown["messages"])]


def holds(relay, sandbox, conversation):
    """Makes this relay the conversation's holder: it asks the first question."""
    stream = ask(relay, sandbox, conversation, conversation, 0, 1)
    delivered(relay, sandbox, conversation, stream)
    return stream


def test_another_machine_goes_on_when_the_holder_is_killed(pair, sandbox, prompt, conversation):
    here, there = pair
    first = holds(here, sandbox, conversation)
    stream = ask(there, sandbox, prompt, conversation, 1, lines=35, interval_ms=20)
    arrives(sandbox, conversation, "q1.20 ")
    for pid in (here.process.process.pid, *here.workers):
        os.kill(pid, signal.SIGKILL)
    shown = delivered(there, sandbox, conversation, first, stream)
    times = [message["at"] for message in shown["messages"] if parsed(message["text"])[0][0] == 1]
    assert max(later - earlier for earlier, later in pairwise(times)) < TAKEOVER
    assert faults_of_posts(shown, texts_of(there, first, stream)) == []
    assert metric(there, "messages_total")


def test_a_worker_that_wakes_up_late_posts_nothing_more(start_relay, tmp_path, sandbox, prompt, conversation):
    store = f"sqlite:///{tmp_path}/shared.db"
    here = start_relay(STORE_URL=store, TRANSCRIPT_REQUESTS_PER_MINUTE="24")  # three at once, then one each 2.7 s
    there = start_relay(STORE_URL=store)
    first = holds(here, sandbox, conversation)
    before = sandbox.text_of(conversation)
    sandbox.script(f"{prompt} long", ["abcdefgh " * 600])
    long = there.begin(f"{prompt} long", conversation)
    part = until(lambda: messages_of(sandbox.conversation(conversation))[1:], "a part of the token")
    waiting_since = time.monotonic()
    (sleeper,) = here.workers
    os.kill(sleeper, signal.SIGSTOP)
    delivered(there, sandbox, conversation, first, long)
    until(lambda: time.monotonic() - waiting_since > 3, "the next part's time")
    os.kill(sleeper, signal.SIGCONT)
    assert requests.get(f"{here.url}/healthz", timeout=10).ok, "it is awake"
    last = ask(there, sandbox, prompt, conversation, 1, 2)
    shown = delivered(there, sandbox, conversation, last)
    assert shown["text"] == before + part[0] + "abcdefgh " * 600 + "".join(texts_of(there, last))


def test_who_is_no_longer_sure_to_hold_a_conversation_posts_nothing(sandbox, conversation):
    settings = Settings(
        access="open",
        genesys_base_url=sandbox.url,
        oauth_client_id="sandbox-client",
        oauth_client_secret="sandbox-secret",
    )
    tail = Tail("turn", MemoryJournal("worker", 60, 60))
    tail.append([Token(1, "Hello."), Done(2, "complete")])
    line = Line(conversation, lambda turn, cursor, bell: tail.follow(cursor, is_audience=False, bell=bell), print)
    line.update([Parcel("turn", 0)])
    with (
        contextlib.closing(make_credentials(settings)) as credentials,
        contextlib.closing(Platform(settings, credentials)) as sink,
        pytest.raises(SinkLost, match="no longer sure"),
    ):
        sink.carry(Conversation(line, sink, may_send=lambda: False))
    assert [call["call"] for call in platform_calls(sandbox)] == ["read"]


def test_a_deploy_in_mid_answer_loses_nothing(start_relay, sandbox, prompt, conversation):
    relay = start_relay(WEB_CONCURRENCY="2")
    streams = [ask(relay, sandbox, prompt, conversation, n, 12, interval_ms=20) for n in range(2)]
    arrives(sandbox, conversation, "q0.9 ")
    relay.process.process.send_signal(signal.SIGHUP)
    streams += [ask(relay, sandbox, prompt, conversation, n, interval_ms=20) for n in range(2, 4)]
    shown = delivered(relay, sandbox, conversation, *streams)
    assert shown["text"] == "".join(texts_of(relay, *streams)), "nothing is missing, nothing comes twice"


def test_what_a_dead_platform_did_not_take_is_posted_after_a_restart(
    start_relay, tmp_path, sandbox, prompt, conversation
):
    store = f"sqlite:///{tmp_path}/relay.db"
    first = start_relay(STORE_URL=store)
    sandbox.fault("platform", "unavailable_503", conversation=conversation, calls=1000)
    stream = ask(first, sandbox, prompt, conversation)
    until(lambda: first.state(stream)["status"] == "complete", "the answer")
    until(lambda: lines_logged(first, "link lost"), "the platform is down")
    begin = time.monotonic()
    assert first.process.stop(signal.SIGTERM) == 0
    assert time.monotonic() - begin < 10, "a platform that is down does not hold up a deploy"
    assert not sandbox.text_of(conversation)
    sandbox.forget_faults()
    second = start_relay(STORE_URL=store)
    assert delivered(second, sandbox, conversation, stream)["text"] == "".join(lines_of(0, 6))


def test_no_log_line_holds_a_secret_or_a_text_whatever_fails(relay, sandbox, prompt, conversation):
    streams = []
    for fault in PLATFORM.keys() - {"alerting"}:  # which waits for someone
        name = f"{conversation}-{fault}"
        sandbox.fault("platform", fault, conversation=name, call="message", retry_after=1, seconds=0.1)
        streams.append(ask(relay, sandbox, f"{prompt} {fault}", name, interval_ms=5))
    for stream in streams:
        until(lambda s=stream: transcript_state(relay, s)["state"] != "pending", "its text arrives, or is parked")
    assert len(sandbox.tokens()) >= 2, "one was refused"
    assert f"{conversation}-ended" in relay.process.output
    check_output(relay, sandbox)
