"""One holder a conversation in the whole fleet: whoever runs its turns, whatever happens to its holder."""

import contextlib
import os
import signal
import time

import pytest

from .conftest import until
from .proxy import Wire
from .transcripts import faults_of, tokens_of

TAKEOVER = 5.0  # seconds from the loss of the holder until another goes on


@pytest.fixture
def pair(shared_store, start_relay):
    """Two machines with one store."""
    shared = {"STORE_URL": shared_store, "GATEWAY_IDLE_TIMEOUT": "60", "DISCONNECT_GRACE": "-1"}
    return start_relay(**shared), start_relay(**shared)


def ask(relay, sandbox, prompt, conversation, question, count=20, **script):
    sandbox.script(f"{prompt} {question}", tokens_of(question, count), **script)
    return relay.begin(f"{prompt} {question}", conversation)


def delivered(relay, sandbox, conversation, streams, patience=30):
    """Waits until the outbox says so; returns what the sandbox shows."""
    for stream in streams:
        until(lambda s=stream: relay.state(s)["transcript"]["state"] == "delivered", "delivered", patience)
    return sandbox.conversation(conversation)


def texts_of(relay, streams):
    return [relay.state(stream)["text"] for stream in streams]


def holds(relay, sandbox, conversation):
    """Makes this relay the conversation's holder: it asks the first question."""
    stream = ask(relay, sandbox, conversation, conversation, 0, 3)
    delivered(relay, sandbox, conversation, [stream])
    return stream


def test_turns_on_two_machines_share_one_link_and_keep_their_order(pair, sandbox, prompt, conversation):
    streams = [ask(pair[n % 2], sandbox, prompt, conversation, n, interval_ms=10) for n in range(6)]
    shown = delivered(pair[0], sandbox, conversation, streams)
    assert shown["text"] == "".join(texts_of(pair[0], streams))
    assert shown["links"] == {"opened": 1, "open": 1, "most_at_once": 1}


def test_a_turn_elsewhere_comes_to_the_transcript_while_it_runs(pair, sandbox, prompt, conversation):
    here, there = pair
    holds(here, sandbox, conversation)
    sandbox.script(prompt, ["q1.0 ", "q1.1 "], gate=True)
    there.begin(prompt, conversation)
    until(lambda: sandbox.text_of(conversation).endswith("q1.0 "), "the first token", patience=3)
    sandbox.receipt(prompt, 1)
    until(lambda: sandbox.text_of(conversation).endswith("q1.1 "), "the second token", patience=3)


def kill_whole(relay):
    for pid in (relay.process.process.pid, *relay.workers):
        os.kill(pid, signal.SIGKILL)


def test_another_machine_goes_on_when_the_holder_is_killed(pair, sandbox, prompt, conversation):
    here, there = pair
    first = holds(here, sandbox, conversation)
    stream = ask(there, sandbox, prompt, conversation, 1, count=400, interval_ms=20)
    until(lambda: "q1.20 " in sandbox.text_of(conversation), "it is on its way")
    kill_whole(here)
    killed = time.time()
    until(lambda: len({m["link"] for m in sandbox.conversation(conversation)["messages"]}) == 2, "another link")
    shown = delivered(there, sandbox, conversation, [stream])
    second_link = shown["messages"][-1]["link"]
    assert next(m["at"] for m in shown["messages"] if m["link"] == second_link) - killed < TAKEOVER
    assert faults_of(shown, texts_of(there, [first, stream])) == []
    assert shown["links"]["most_at_once"] == 1


def test_a_worker_that_wakes_up_late_sends_nothing_more(pair, sandbox, prompt, conversation):
    here, there = pair
    first = holds(here, sandbox, conversation)
    stream = ask(there, sandbox, prompt, conversation, 1, count=300, interval_ms=30)
    until(lambda: "q1.20 " in sandbox.text_of(conversation), "it is on its way")
    (sleeper,) = here.workers
    os.kill(sleeper, signal.SIGSTOP)
    links = until(lambda: {m["link"] for m in sandbox.conversation(conversation)["messages"]}, "the link")
    until(lambda: {m["link"] for m in sandbox.conversation(conversation)["messages"]} > links, "another goes on")
    os.kill(sleeper, signal.SIGCONT)
    shown = delivered(there, sandbox, conversation, [stream])
    assert faults_of(shown, texts_of(there, [first, stream])) == []
    assert shown["links"]["opened"] == 2
    until(lambda: sandbox.conversation(conversation)["links"]["open"] == 1, "the sleeper has closed its link")


def test_a_deploy_in_mid_answer_costs_no_text(start_relay, sandbox, prompt, conversation):
    relay = start_relay(GATEWAY_IDLE_TIMEOUT="60", DISCONNECT_GRACE="-1", WEB_CONCURRENCY="2")
    streams = [ask(relay, sandbox, prompt, conversation, n, count=60, interval_ms=20) for n in range(2)]
    until(lambda: "q0.10 " in sandbox.text_of(conversation), "it is on its way")
    relay.process.process.send_signal(signal.SIGHUP)
    streams += [ask(relay, sandbox, prompt, conversation, n, count=30, interval_ms=20) for n in range(2, 4)]
    shown = delivered(relay, sandbox, conversation, streams)
    assert shown["text"] == "".join(texts_of(relay, streams)), "nothing is missing, nothing comes twice"
    assert shown["links"]["most_at_once"] == 1


def test_a_holder_that_stops_leaves_turns_of_others_to_them(pair, sandbox, prompt, conversation):
    here, there = pair
    first = holds(here, sandbox, conversation)
    stream = ask(there, sandbox, prompt, conversation, 1, count=300, interval_ms=20)
    until(lambda: "q1.20 " in sandbox.text_of(conversation), "it is on its way")
    begin = time.monotonic()
    assert here.process.stop(signal.SIGTERM) == 0
    assert time.monotonic() - begin < TAKEOVER, "it does not wait for what others can do"
    shown = delivered(there, sandbox, conversation, [stream])
    assert shown["text"] == "".join(texts_of(there, [first, stream])), "a farewell repeats nothing"
    assert shown["links"]["most_at_once"] == 1


def test_what_was_not_delivered_is_delivered_after_a_restart(start_relay, shared_store, sandbox, prompt, conversation):
    first = start_relay(STORE_URL=shared_store)
    sandbox.fault("transcript", "refused_503", calls=1000, retry_after=5)
    stream = ask(first, sandbox, prompt, conversation, 0)
    until(lambda: first.state(stream)["status"] == "complete", "the answer")
    until(lambda: [e for e in first.log if "link lost" in e["message"]], "the link is refused")
    begin = time.monotonic()
    assert first.process.stop(signal.SIGTERM) == 0
    assert time.monotonic() - begin < 10, "a platform that is down does not hold up a deploy"
    sandbox.reset()
    second = start_relay(STORE_URL=shared_store)
    shown = delivered(second, sandbox, conversation, [stream])
    assert shown["text"] == "".join(tokens_of(0, 20))


def test_redis_away_for_the_holder_alone_lets_another_go_on(start_redis, start_relay, sandbox, prompt, conversation):
    redis = start_redis()
    with contextlib.closing(Wire(redis.port)) as wire:
        shared = {"GATEWAY_IDLE_TIMEOUT": "60", "DISCONNECT_GRACE": "-1"}
        here = start_relay(STORE_URL=f"redis://127.0.0.1:{wire.port}/0", **shared)
        there = start_relay(STORE_URL=redis.url, **shared)
        first = holds(here, sandbox, conversation)
        stream = ask(there, sandbox, prompt, conversation, 1, count=300, interval_ms=30)
        until(lambda: "q1.20 " in sandbox.text_of(conversation), "it is on its way")
        wire.cut()
        links = {m["link"] for m in sandbox.conversation(conversation)["messages"]}
        until(lambda: {m["link"] for m in sandbox.conversation(conversation)["messages"]} > links, "another goes on")
        shown = delivered(there, sandbox, conversation, [stream])
        assert faults_of(shown, texts_of(there, [first, stream])) == []
        assert shown["links"]["most_at_once"] == 1, "the old link was closed before the lease had ended"
