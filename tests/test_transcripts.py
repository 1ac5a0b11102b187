"""The judge of transcripts finds what is wrong."""

import pytest

from .transcripts import faults_of


def conversation(*messages, pongs=()):
    """Messages as (link, text), one a second from 0 on."""
    shown = [{"link": link, "text": text, "at": float(at)} for at, (link, text) in enumerate(messages)]
    return {"messages": shown, "pongs": dict(pongs)}


WHOLE = ["q0.0 q0.1 q0.2 ", "q1.0 q1.1 "]


@pytest.mark.parametrize(
    "messages",
    [
        [(1, "q0.0 q0.1 q0.2 "), (1, "q1.0 "), (1, "q1.1 ")],
        [(1, "q0.0 q0.1 "), (2, "q0.1 q0.2 "), (2, "q1.0 q1.1 ")],
        [(1, "q0.0 q0.1 q0.2 q0.3 "), (2, "q1.0 q1.1 ")],
    ],
)
def test_all_text_in_order_is_right(messages):
    assert faults_of(conversation(*messages), WHOLE) == []


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([(1, "q0.0 q0.1 "), (1, "q1.0 q1.1 ")], "missing: [(0, 2)]"),
        ([(1, "q0.0 q0.2 q0.1 "), (1, "q1.0 q1.1 ")], "(0, 2) after (0, 0)"),
        ([(1, "q0.0 q0.1 "), (1, "q0.1 q0.2 q1.0 q1.1 ")], "(0, 1) after (0, 1)"),
        ([(1, "q0.0 q0.1 q0.2 q1.0 "), (2, "q1.1 "), (1, "q1.1 ")], "links 1 and 2 at once"),
        ([(1, "q1.0 q1.1 q0.0 q0.1 q0.2 ")], "(0, 0) after (1, 1)"),
    ],
)
def test_what_is_wrong_is_named(messages, fault):
    assert fault in faults_of(conversation(*messages), WHOLE)


def test_what_a_pong_had_long_confirmed_must_not_come_again():
    messages = (1, "q0.0 q0.1 "), (1, "q0.2 "), (2, "q0.1 q0.2 q1.0 q1.1 ")
    assert faults_of(conversation(*messages, pongs={"1": [0.5, 1.9]}), WHOLE) == []
    assert faults_of(conversation(*messages, pongs={"1": [0.5, 2.1]}), WHOLE) == ["(0, 1) came again"]
