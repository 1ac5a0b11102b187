"""The judge of `make chaos` finds each violation: records of a turn that went well, with one thing wrong in each."""

from dataclasses import replace

import pytest

from .chaos.breaker import Breaker
from .chaos.judge import LAST_MOMENT, leaks_of, of_conversation, violations
from .chaos.plan import KINDS, make_plan
from .chaos.records import Event, Question, Reader, Reading, Turn

QUESTION = Question("c", 0, 0.0, "a prompt", 4, 0, {}, (Reader("stays"), Reader("returns")), False, None)
CUT = replace(QUESTION, fault={"fault": "cut", "after": 2})
LIMITED = replace(QUESTION, fault={"fault": "rate_limited", "after": 1, "calls": 2})
DEAD = Event(50, "error", {"error": "It died.", "code": "interrupted"})
INTERRUPTED = Event(51, "done", {"status": "interrupted"})


def tokens(*numbers, first=1):
    return [Event(at, "token", {"token": QUESTION.tokens[number]}) for at, number in enumerate(numbers, first)]


def done(at, status="complete"):
    return Event(at, "done", {"status": status})


def text(count):
    return "".join(QUESTION.tokens[:count])


WHOLE = [*tokens(0, 1, 2, 3), done(5)]


def turn(events=WHOLE, status="complete", kept=4, question=QUESTION, meanwhile=(), code=None, **reading):
    """One that ended with `status`, of which the journal has `kept` tokens and a reader got `events`."""
    state = {"status": status, "text": text(kept), "transcript": {"state": "delivered"}}
    state |= {"code": code} if code else {}
    readings = (Reading(Reader(reading.pop("manner", "returns")), list(events), **reading),)
    return Turn("t", question, readings, state, frozenset(meanwhile))


KEPT_PROMISES = {
    "all went well": turn(),
    "who left has the beginning": turn(tokens(0, 1), manner="leaves"),
    "it failed as its gateway did": turn(
        [*tokens(0, 1), Event(3, "error", {"code": "answer_cut"}), done(4, "failed")],
        "failed",
        2,
        CUT,
        code="answer_cut",
    ),
    "a login failed meanwhile": turn(
        [Event(1, "error", {"code": "credentials_rejected"}), done(2, "failed")],
        "failed",
        0,
        meanwhile=["login"],
        code="credentials_rejected",
    ),
    "an outage took the other tries": turn(
        [Event(1, "error", {"code": "rate_limited"}), done(2, "failed")],
        "failed",
        0,
        LIMITED,
        meanwhile=["outage"],
        code="rate_limited",
    ),
    "its worker was killed": turn([*tokens(0, 1), DEAD, INTERRUPTED], "interrupted", 2, meanwhile=["kill"]),
    "its worker was killed before it kept the last token": turn(
        [*tokens(0, 1, 2), DEAD, INTERRUPTED], "interrupted", 2, meanwhile=["kill"]
    ),
    "who left heard of the death and no more": turn(
        [*tokens(0, 1), DEAD], "interrupted", 2, meanwhile=["kill"], manner="leaves"
    ),
    "its worker was killed before it kept the end": turn(
        WHOLE, "interrupted", 2, meanwhile=["kill", "its worker's end"]
    ),
    "it was cancelled": turn([*tokens(0), done(2, "cancelled")], "cancelled", 1, replace(QUESTION, cancel_after=1.0)),
    "nobody was left who reads it": turn(
        tokens(0), "cancelled", 2, replace(QUESTION, readers=(Reader("leaves"), Reader("deaf"))), manner="leaves"
    ),
}
VIOLATIONS = {
    "a token twice": (turn([*tokens(0, 1, 1, 2), done(5)]), "belongs, after"),
    "a token lost": (turn([*tokens(0, 2, 3), done(4)]), "belongs, after"),
    "tokens out of order": (turn([*tokens(0, 2, 1, 3), done(5)]), "belongs, after"),
    "another answer's token": (turn([Event(1, "token", {"token": "q7.0 "}), done(2)]), "belongs, after"),
    "an event again under its own id": (turn([*tokens(0, 1), *WHOLE[1:]]), "id 2 (token) after 2"),
    "a gap in the ids": (turn([*tokens(0, 1), *tokens(2, 3, first=4), done(6)]), "id 4 (token) after 2"),
    "a jump without a death": (turn([*tokens(0, 1, 2, 3), done(50)]), "id 50 (done) after 4"),
    "a jump before another failure": (
        turn([*tokens(0, 1), Event(50, "error", {"code": "answer_cut"}), done(51, "failed")], "failed", 2, CUT),
        "id 50 (error) after 2",
    ),
    "a jump among the tokens of a turn whose worker died": (
        turn([*tokens(0), *tokens(1, first=9), DEAD, INTERRUPTED], "interrupted", 2, meanwhile=["kill"]),
        "id 9 (token) after 1",
    ),
    "a second done": (turn([*WHOLE, done(6)]), "done came 2 times"),
    "something after done": (turn([*tokens(0, 1, 2), done(4), *tokens(3, first=5)]), "not last"),
    "no done": (turn(tokens(0, 1, 2, 3)), "no done"),
    "a reader that is stuck": (turn(tokens(0), trouble="did not come to the end"), "did not come to the end"),
    "an end too early": (turn([*tokens(0, 1), done(3)], kept=2), "complete with the text"),
    "another end than the journal's": (turn([*tokens(0, 1, 2, 3), done(5, "cancelled")]), "was told cancelled"),
    "less than the journal": (turn([*tokens(0, 1, 2), done(4)]), "the journal"),
    "more than the journal without a death": (
        turn(WHOLE, "cancelled", 3, replace(QUESTION, cancel_after=1.0)),
        "the journal",
    ),
    "less than the journal after a death": (
        turn([*tokens(0), DEAD, INTERRUPTED], "interrupted", 2, meanwhile=["kill"]),
        "the journal",
    ),
    "another end after a death that came before": (
        turn(WHOLE, "interrupted", 2, meanwhile=["kill"]),
        "was told complete",
    ),
    "a turn that runs on": (turn(tokens(0), "running", 1), "runs on"),
    "interrupted by what must not": (
        turn([*tokens(0), DEAD, INTERRUPTED], "interrupted", 1, meanwhile=["hup", "term", "clock"]),
        "interrupted, though no worker died",
    ),
    "cancelled under a reader's eyes": (turn([done(1, "cancelled")], "cancelled", 0), "someone read it"),
    "failed for nothing": (
        turn([Event(1, "error", {}), done(2, "failed")], "failed", 0, code="gateway_unavailable"),
        "failed with gateway_unavailable",
    ),
    "failed though it had tries left": (
        turn([Event(1, "error", {}), done(2, "failed")], "failed", 0, LIMITED, meanwhile=["kill"], code="rate_limited"),
        "failed with rate_limited",
    ),
    "failed otherwise than its gateway": (
        turn([Event(1, "error", {}), done(2, "failed")], "failed", 0, CUT, code="internal_error"),
        "failed with internal_error",
    ),
}


@pytest.mark.parametrize("record", KEPT_PROMISES.values(), ids=KEPT_PROMISES.keys())
def test_a_kept_promise_is_no_violation(record):
    assert violations(record) == []


@pytest.mark.parametrize(("record", "said"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
def test_a_violation_is_found_and_said(record, said):
    assert any(said in fault for fault in violations(record)), violations(record)


def conversation(*pieces):
    """Of the sandbox: (link, text) of each message, a second apart; each link's pongs come at once."""
    messages = [{"text": text, "at": float(at), "link": link} for at, (link, text) in enumerate(pieces)]
    pongs = {link: [message["at"] for message in messages if message["link"] == link] for link, _ in pieces}
    return {"messages": messages, "pongs": pongs, "text": "".join(text for _, text in pieces)}


def test_a_whole_transcript_is_no_violation_also_where_a_lost_link_repeats_something():
    first, rest = text(2), text(4)[len(text(2)) :]
    assert of_conversation(conversation((1, first), (1, rest)), [turn()]) == []
    assert of_conversation(conversation((1, first), (2, text(4))), [turn()]) == []


@pytest.mark.parametrize(
    "pieces",
    [
        [(1, text(3))],  # the end is missing
        [(1, text(1)), (1, text(4)[len(text(2)) :])],  # a gap
        [(1, text(4)), (1, text(4))],  # twice on one link
        [(1, text(2)), (2, text(2)), (1, text(4))],  # two links at once
    ],
)
def test_a_transcript_that_is_not_the_journals_text_is_found(pieces):
    assert of_conversation(conversation(*pieces), [turn()])


def test_what_a_slow_reader_took_once_its_link_was_gone_is_no_second_link():
    slow = conversation((1, text(1)), (2, text(4)[len(text(1)) :]), (1, QUESTION.tokens[1]))
    assert of_conversation(slow, [turn()]) == ["transcript: links 1 and 2 at once"]
    slow["messages"][-1]["late"] = True
    assert of_conversation(slow, [turn()]) == []


def test_what_arrived_may_come_again_where_its_arrival_could_not_be_stored():
    again = conversation((1, text(1)), (1, QUESTION.tokens[1]), (1, QUESTION.tokens[2]), (2, text(4)))
    assert of_conversation(again, [turn()]) == ["transcript: (0, 0) came again"]
    assert of_conversation(again, [turn()], [(3.0, 9.0)]) == ["transcript: (0, 0) came again"]
    assert of_conversation(again, [turn()], [(0.5, 1.0)]) == []


def test_text_that_waits_for_its_delivery_is_found():
    record = turn()
    record.state["transcript"]["state"] = "pending"
    assert of_conversation(conversation((1, text(4))), [record]) == ["not delivered: ['t']"]


@pytest.mark.parametrize(("told", "is_last"), [(9.0, False), (9.8, True), (10.0, True), (10.4, True), (10.6, False)])
@pytest.mark.parametrize("death", [("kill", 10.0, 10.01), ("stop", 10.0, 15.0)])
def test_a_death_takes_along_the_end_of_a_turn_that_was_told_at_the_same_time_alone(death, told, is_last):
    breaker = Breaker(None, None)
    breaker._at_work = [death]
    assert (LAST_MOMENT in breaker.meanwhile(1.0, told, told)) == is_last


def test_a_secret_is_found_and_not_shown():
    found = leaks_of({"gunicorn": "a line with k3y", "metrics": "relay 0"}, {"API key": "k3y", "ticket 0": "t1cket"})
    assert found == ["API key is in gunicorn"]


def test_a_seed_is_a_plan_and_an_hour_has_every_kind_of_fault():
    assert make_plan(7, 60) == make_plan(7, 60)
    assert make_plan(7, 60) != make_plan(8, 60)
    assert {fault.kind for fault in make_plan(7, 3600).faults} == set(KINDS)
