"""Ask, stream, mirror: the main job, end to end, under gunicorn."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import requests

from .conftest import until


def test_the_stream_has_the_shape_that_is_promised(relay, sandbox, prompt):
    sandbox.script(prompt, ["Hel", "lo ", "wörld 👋"])
    answer = relay.ask(prompt)
    headers = answer.response.headers
    assert answer.response.status_code == 200
    assert headers["Content-Type"].startswith("text/event-stream")
    assert headers["Cache-Control"] == "no-cache, no-transform"
    assert headers["X-Accel-Buffering"] == "no"
    assert headers["Access-Control-Expose-Headers"] == "X-Stream-Id"
    result = answer.finish()
    assert result.tokens == ["Hel", "lo ", "wörld 👋"]
    assert result.done["status"] == "complete"
    assert result.done["finish_reason"] == "stop"
    assert result.done["usage"]["total_tokens"] > 0
    assert [e["id"] for e in result.events] == ["1", "2", "3", "4"]


def test_the_stream_begins_with_the_retry_time(relay, sandbox, prompt):
    sandbox.script(prompt, ["a"])
    body = {"conversationId": "c-retry", "prompt": prompt}
    answer = requests.post(f"{relay.url}/stream-llm", json=body, timeout=10)
    assert answer.content.startswith(b"retry: 1000\n\nid: 1\ndata: ")


def test_each_token_arrives_before_the_next_one_was_sent(relay, sandbox, prompt):
    tokens = [f"t{i} " for i in range(40)]
    sandbox.script(prompt, tokens, gate=True)
    answer = relay.ask(prompt)
    for count, token in enumerate(tokens, 1):
        assert answer.next_token() == token
        sandbox.receipt(prompt, count)
    assert answer.finish().done["status"] == "complete"


def test_the_transcript_gets_each_token_before_the_next_one_was_sent(relay, sandbox, prompt, conversation):
    tokens = [f"t{i} " for i in range(5)]
    sandbox.script(prompt, tokens, gate=True)
    answer = relay.ask(prompt, conversation)
    for count in range(1, len(tokens) + 1):
        expected = "".join(tokens[:count])
        until(lambda e=expected: sandbox.text_of(conversation) == e, f"the transcript shows {expected!r}")
        sandbox.receipt(prompt, count)
    answer.finish()


def test_two_hundred_turns_in_fifty_conversations_agree_with_their_transcripts(relay, sandbox, prompt):
    conversations = [f"{prompt[-8:]}-{i}" for i in range(50)]

    def four_turns(conversation):
        asked = [relay.ask(f"{conversation} turn {turn}: count to {20 + turn}", conversation) for turn in range(4)]
        return "".join(answer.finish().text for answer in asked)

    with ThreadPoolExecutor(50) as pool:
        texts = dict(zip(conversations, pool.map(four_turns, conversations), strict=True))
    for conversation, text in texts.items():
        assert text == "".join(f"{n} " for turn in range(4) for n in range(1, 21 + turn))
        until(lambda c=conversation, t=text: len(sandbox.text_of(c)) >= len(t), f"the transcript of {conversation}")
        found = sandbox.conversation(conversation)
        assert found["text"] == text
        assert found["links"]["opened"] == 1
        assert found["links"]["most_at_once"] == 1
        assert {message["link"] for message in found["messages"]} == {found["messages"][0]["link"]}


def test_a_hundred_cold_requests_make_one_oauth_call(sandbox, start_relay, prompt):
    relay = start_relay()
    sandbox.script(prompt, ["a", "b"])
    sandbox.fault("oauth", "slow", seconds=0.5)
    before = sandbox.calls()["oauth"]["calls"]
    with ThreadPoolExecutor(100) as pool:
        results = list(pool.map(lambda _: relay.ask(prompt).finish(), range(100)))
    assert [result.text for result in results] == ["ab"] * 100
    assert sandbox.calls()["oauth"]["calls"] - before == 1


def test_no_request_fails_or_waits_while_tokens_expire(start_sandbox, start_relay, prompt):
    sandbox = start_sandbox(SANDBOX_TOKEN_LIFE="2")
    relay = start_relay(GENESYS_BASE_URL=sandbox.url)
    sandbox.script(prompt, ["a"])
    relay.ask(prompt).finish()
    end = time.monotonic() + 5
    while time.monotonic() < end:
        assert relay.ask(prompt, "c-one").finish().done["status"] == "complete"
    calls = sandbox.calls()
    assert 3 <= calls["oauth"]["calls"] <= 6, "each token is renewed once, ahead of its end"
    assert set(calls["gateway"]["statuses"]) == {"200"}, "no request has met an expired token"


def test_a_token_revoked_in_mid_life_is_renewed_and_the_request_repeated_once(start_relay, sandbox, prompt):
    relay = start_relay(TRANSCRIPT="off")
    sandbox.script(prompt, ["a", "b"])
    relay.ask(prompt).finish()
    sandbox.expire_tokens()
    before = sandbox.calls()["oauth"]["calls"]
    assert relay.ask(prompt).finish().text == "ab"
    assert sandbox.gateway_calls(prompt) == 3
    assert sandbox.calls()["oauth"]["calls"] - before == 1


def seeds_client(url, body):
    """The seed's own reading loop: lines, `data: `, JSON, `token` or `error`."""
    collected = []
    with requests.post(url, json=body, stream=True, timeout=30) as response:
        for line in response.iter_lines():
            if not line:
                continue
            text = line.decode("utf-8")
            if text.startswith("data: "):
                data = json.loads(text[6:])
                if "token" in data:
                    collected.append(data["token"])
                elif "error" in data:
                    collected.append(f"[{data['error']}]")
    return "".join(collected)


def test_the_seeds_client_works_unchanged(relay, sandbox, prompt):
    sandbox.script(prompt, ["Hel", "lo ", "é\n\n", "👋"])
    assert seeds_client(f"{relay.url}/stream-llm", {"conversationId": "c-seed", "prompt": prompt}) == "Hello é\n\n👋"


def test_the_seeds_client_reads_an_error(relay, sandbox, prompt):
    sandbox.fault("gateway", "bad_request_400", prompt=prompt)
    text = seeds_client(f"{relay.url}/stream-llm", {"conversationId": "c-seed", "prompt": prompt})
    assert text.startswith("[The gateway refused")


def test_messages_options_and_the_system_prompt_reach_the_gateway(sandbox, start_relay, prompt):
    relay = start_relay(GATEWAY_SYSTEM_PROMPT="Be brief.", GATEWAY_MODEL="m-1")
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": f"{prompt} count to 50"},
    ]
    result = relay.ask(None, messages=messages, max_tokens=3).finish()
    assert result.text == "1 2 3 "
    assert result.done["finish_reason"] == "length"


def test_a_link_is_kept_for_the_next_turn(relay, sandbox, prompt, conversation):
    sandbox.script(prompt, ["a", "b"])
    for turn in (1, 2, 3):
        relay.ask(prompt, conversation).finish()
        until(lambda n=turn: sandbox.text_of(conversation) == "ab" * n, "the transcript")
    assert sandbox.conversation(conversation)["links"]["opened"] == 1


def test_turns_of_one_conversation_go_out_in_the_order_in_which_they_began(relay, sandbox, prompt, conversation):
    first, second = f"{prompt} first", f"{prompt} second"
    sandbox.script(first, ["1a ", "1b "], gate=True)
    sandbox.script(second, ["2a ", "2b "])
    slow = relay.ask(first, conversation)
    assert slow.next_token() == "1a "
    assert relay.ask(second, conversation).finish().text == "2a 2b "
    sandbox.receipt(first, 2)
    slow.finish()
    until(lambda: sandbox.text_of(conversation) == "1a 1b 2a 2b ", "the transcript, in order")


def test_a_relay_without_transcript_needs_no_conversation(sandbox, start_relay, prompt):
    relay = start_relay(TRANSCRIPT="off")
    sandbox.script(prompt, ["a"])
    answer = requests.post(f"{relay.url}/stream-llm", json={"prompt": prompt}, timeout=10)
    assert answer.status_code == 200
    assert sandbox.calls()["transcript"]["handshakes"] == 0


def test_the_default_conversation_gets_what_names_none(sandbox, start_relay, prompt, conversation):
    relay = start_relay(DEFAULT_CONVERSATION_ID=conversation)
    sandbox.script(prompt, ["a", "b"])
    requests.post(f"{relay.url}/stream-llm", json={"prompt": prompt}, timeout=10)
    until(lambda: sandbox.text_of(conversation) == "ab", "the transcript")


def test_message_ids_name_turn_and_events(sandbox, start_relay, prompt, conversation):
    relay = start_relay(TRANSCRIPT_MESSAGE_ID="1", TRANSCRIPT_INTERVAL_MS="300")
    sandbox.script(prompt, ["a", "b", "c"])
    turn_id = relay.ask(prompt, conversation).finish().id
    until(lambda: sandbox.text_of(conversation) == "abc", "the transcript")
    ids = [message["id"] for message in sandbox.conversation(conversation)["messages"]]
    spans = [tuple(map(int, message_id.removeprefix(f"{turn_id}:").split("-"))) for message_id in ids]
    assert [n for first, last in spans for n in range(first, last + 1)] == [1, 2, 3]


def test_health_says_what_runs(relay):
    health = requests.get(f"{relay.url}/healthz", timeout=5)
    assert health.status_code == 200
    assert health.json()["status"] == "ok"
