"""Each way in which the transcript's link can fail: the client notices nothing, and no text is missing."""

import pytest

from .conftest import until

TOKENS = [f"t{i} " for i in range(30)]
TEXT = "".join(TOKENS)


def holds_all_in_order(messages, tokens):
    """Whether all tokens are there in order; after a loss, a part may have been sent again."""
    position = 0
    for token in "".join(message["text"] for message in messages).split():
        number = int(token[1:])
        if number > position:
            return False
        position = max(position, number + 1)
    return position == len(tokens)


def links_lost(relay, conversation):
    return [e for e in relay.log if e.get("conversation") == conversation and "link lost" in e["message"]]


@pytest.mark.parametrize(
    ("fault", "order"),
    [
        ("refused_401", {}),
        ("refused_403", {"calls": 2}),
        ("refused_503", {"retry_after": 1}),
        ("closed_at_once", {"calls": 2}),
        ("closed_after", {"after": 4}),
        ("gone", {"after": 4, "calls": 3}),
        ("no_pongs", {}),
        ("mute", {"after": 4}),
    ],
)
def test_a_lost_link_is_opened_again_and_no_text_is_missing(relay, sandbox, prompt, conversation, fault, order):
    sandbox.script(prompt, TOKENS, interval_ms=10)
    sandbox.fault("transcript", fault, **order)
    result = relay.ask(prompt, conversation).finish()
    assert result.text == TEXT
    assert result.done["status"] == "complete"
    # A dead link is noticed by the pong that does not come, after 20 s.
    (first, *_) = until(lambda: links_lost(relay, conversation), "the log line", patience=40)
    assert first["detail"]
    until(lambda: holds_all_in_order(sandbox.conversation(conversation)["messages"], TOKENS), "the transcript")


def test_text_that_waits_behind_a_busy_link_leaves_as_one_message(relay, sandbox, prompt, conversation):
    sandbox.script(prompt, ["x" * 200] * 3000)
    sandbox.fault("transcript", "slow_reader", seconds=0.05)
    result = relay.ask(prompt, conversation).finish()
    assert result.done["status"] == "complete"
    until(lambda: sandbox.text_of(conversation) == result.text, "the transcript", patience=60)
    assert len(sandbox.conversation(conversation)["messages"]) < 300


def test_a_mute_link_does_not_delay_the_client(relay, sandbox, prompt, conversation):
    sandbox.script(prompt, TOKENS, interval_ms=5)
    sandbox.fault("transcript", "mute")
    assert relay.ask(prompt, conversation).finish().text == TEXT


def test_a_token_longer_than_a_message_may_be_is_sent_in_pieces(relay, sandbox, prompt, conversation):
    long = "abcdefgh" * 5000
    sandbox.script(prompt, ["a", long, "b"])
    relay.ask(prompt, conversation).finish()
    until(lambda: sandbox.text_of(conversation) == f"a{long}b", "the transcript")


def test_a_platform_that_refuses_every_login_does_not_stop_the_answer(start_relay, sandbox, prompt, conversation):
    relay = start_relay(GATEWAY_API_KEY="any", OAUTH_CLIENT_SECRET="wrong-wrong-wrong")
    result = relay.ask(prompt, conversation).finish()
    assert result.error["code"] == "gateway_unauthorized"
    until(lambda: any("link lost" in e["message"] for e in relay.log), "the log line")
