"""The client of the platform API against a sandbox that fails: what is tried again, what is given up, and why."""

import re
import time

import pytest

from server.credentials import TRIES, Credentials
from server.journal.outbox import MAX_REASON
from server.transcript import api as api_module
from server.transcript.api import (
    MAX_MESSAGE_CHARS,
    CannotSucceed,
    Communication,
    PlatformApi,
    TryAgain,
    read_communication,
)

SCOPE = "ai:llm:gateway conversation:write websocket:subscribe"
TEXT = "Grüße, the parcel is on its way. 👋"


def connect(sandbox, scope=SCOPE):
    return Credentials(f"{sandbox.url}/oauth/token", "sandbox-client", "sandbox-secret", scope)


@pytest.fixture
def credentials(sandbox):
    found = connect(sandbox)
    yield found
    found.close()


@pytest.fixture
def api(sandbox, credentials):
    found = PlatformApi(sandbox.url, credentials)
    yield found
    found.close()


@pytest.fixture
def communication(api, conversation):
    return api.find_communication(conversation).id


def platform_calls(sandbox):
    return [(call["call"], call["status"]) for call in sandbox.calls()["log"] if call["place"] == "platform"]


def test_text_arrives(api, sandbox, conversation, communication):
    api.post_message(conversation, communication, TEXT)
    api.post_message(conversation, communication, "\n\nGoodbye.")
    assert sandbox.text_of(conversation) == f"{TEXT}\n\nGoodbye."


def test_a_typing_event_arrives(api, sandbox, conversation, communication):
    api.show_typing(conversation, communication)
    assert sandbox.conversation(conversation)["typing"] == 1


def test_a_conversation_of_any_name_is_addressed(api, sandbox):
    for name in ("a/b?c#d%e", "東京", "a b", "..a", "\u202e"):
        api.post_message(name, api.find_communication(name).id, "Hi.")
    listed = {one["id"] for one in sandbox.listed_conversations()}
    assert {"a/b?c#d%e", "東京", "a b", "..a", "\u202e"} <= listed


@pytest.mark.parametrize("name", [".", "..", ""])
def test_an_id_that_is_a_path_reaches_nothing(api, sandbox, name):
    with pytest.raises(CannotSucceed, match="no such conversation"):
        api.find_communication(name)
    with pytest.raises(CannotSucceed):
        api.post_message("c", name, "Hi.")
    assert not platform_calls(sandbox)


def test_one_connection_serves_many_calls(api, sandbox, conversation, communication, monkeypatch):
    connections = []
    real = api_module.HTTPAdapter.get_connection_with_tls_context
    monkeypatch.setattr(
        api_module.HTTPAdapter,
        "get_connection_with_tls_context",
        lambda *args, **more: connections.append(real(*args, **more)) or connections[-1],
    )
    for _ in range(5):
        api.post_message(conversation, communication, "Hi.")
    assert {pool.num_connections for pool in connections} == {1}


@pytest.mark.parametrize(
    ("fault", "reason", "look_again"),
    [
        (
            "bad_request_400",
            r"Genesys Cloud refused the text \(HTTP 400, bad\.request, ININ-Correlation-Id \w+\)",
            True,
        ),
        ("too_large_413", r"refused the text \(HTTP 413, request\.entity\.too\.large, ", False),
        ("no_conversation", r"There is no such communication \(HTTP 404, not\.found, ", True),
        ("forbidden_403", r"permission conversation:message:create \(HTTP 403, missing\.any\.permissions, ", False),
        ("ended", r"refused the text \(HTTP 400", True),
    ],
)
def test_text_that_cannot_be_posted(api, sandbox, conversation, communication, fault, reason, look_again):
    sandbox.fault("platform", fault)
    with pytest.raises(CannotSucceed, match=reason) as raised:
        api.post_message(conversation, communication, TEXT)
    assert raised.value.look_again is look_again
    assert TEXT not in str(raised.value)


@pytest.mark.parametrize(
    ("fault", "fields", "reason"),
    [
        ("error_500", {}, r"could not do it now \(HTTP 500, internal\.server\.error, ININ-Correlation-Id \w+\)"),
        ("unavailable_503", {}, "HTTP 503"),
        ("timeout_408", {}, "HTTP 408"),
        ("conflict_409", {}, "HTTP 409"),
        ("redirect", {}, "HTTP 302"),
        ("reset", {}, r"could not be reached \(ConnectionError\)"),
        ("reply_lost", {}, r"could not be reached \(ConnectionError\)"),
        ("html", {}, "not the platform API"),
        ("endless", {}, "longer than 4096 KiB"),
        ("expired", {"calls": 2}, "the access token, and a new one as well"),
    ],
)
def test_what_may_go_well_later(api, sandbox, conversation, communication, fault, fields, reason):
    sandbox.fault("platform", fault, **fields)
    with pytest.raises(TryAgain, match=reason) as raised:
        api.post_message(conversation, communication, TEXT)
    assert raised.value.retry_after is None and not raised.value.is_rate_limit
    api.post_message(conversation, communication, TEXT)


def test_a_slow_answer_is_given_up(api, sandbox, conversation, communication, monkeypatch):
    monkeypatch.setattr(api_module, "TIMEOUT", (5.0, 0.2))
    sandbox.fault("platform", "slow", seconds=5)
    began = time.monotonic()
    with pytest.raises(TryAgain, match=r"could not be reached \(ReadTimeout\)"):
        api.post_message(conversation, communication, TEXT)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("fault", ["rate_limited", "unavailable_503"])
def test_the_platform_says_when_to_come_back(api, sandbox, conversation, communication, fault):
    sandbox.fault("platform", fault, retry_after=7)
    with pytest.raises(TryAgain) as raised:
        api.post_message(conversation, communication, TEXT)
    assert raised.value.retry_after == 7
    assert raised.value.is_rate_limit is (fault == "rate_limited")


def test_the_limit_of_requests_is_told_apart(api, sandbox, conversation):
    sandbox.limit_rate(1, 30)
    api.find_communication(conversation)
    with pytest.raises(
        TryAgain, match=r"limit of requests a minute is reached \(HTTP 429, too\.many\.requests"
    ) as raised:
        api.find_communication(conversation)
    assert raised.value.is_rate_limit and 0 < raised.value.retry_after <= 30


def test_an_expired_token_is_renewed_once(api, sandbox, conversation, communication):
    sandbox.expire_tokens()
    api.post_message(conversation, communication, TEXT)
    assert sandbox.text_of(conversation) == TEXT
    assert platform_calls(sandbox)[-2:] == [("message", 401), ("message", 200)]


@pytest.mark.parametrize(
    ("fault", "code"), [("invalid_client", "rejected"), ("not_json", "rejected"), ("unavailable_503", "unavailable")]
)
def test_without_a_token_it_is_tried_again_later(sandbox, conversation, fault, code):
    credentials = connect(sandbox)
    api = PlatformApi(sandbox.url, credentials)
    sandbox.fault("oauth", fault, calls=TRIES if code == "unavailable" else 1)
    with pytest.raises(TryAgain, match=rf"There is no access token \(credentials_{code}\)"):
        api.find_communication(conversation)
    assert api.find_communication(conversation)
    api.close()
    credentials.close()


def test_a_token_without_the_scope_cannot_succeed(sandbox, conversation):
    credentials = connect(sandbox, scope="ai:llm:gateway")
    api = PlatformApi(sandbox.url, credentials)
    with pytest.raises(CannotSucceed, match="permission"):
        api.find_communication(conversation)
    api.close()
    credentials.close()


def test_a_redirect_is_not_followed(api, sandbox, conversation):
    sandbox.fault("platform", "redirect")
    with pytest.raises(TryAgain):
        api.find_communication(conversation)
    assert platform_calls(sandbox) == [("read", 302)]


def test_a_password_of_netrc_does_not_replace_the_token(
    api, sandbox, conversation, communication, monkeypatch, tmp_path
):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login wrong password wrong\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert api.find_communication(conversation)
    assert {status for _, status in platform_calls(sandbox)} == {200}


def test_no_reason_holds_a_token(api, sandbox, conversation, communication):
    faults = [fault for fault in sandbox.known_faults("platform") if fault not in ("slow", "answered")]
    reasons = []
    for fault in faults:
        sandbox.fault("platform", fault, conversation=conversation)
        for call in (
            lambda: api.find_communication(conversation),
            lambda: api.post_message(conversation, communication, TEXT),
        ):
            try:
                call()
            except (CannotSucceed, TryAgain) as error:
                reasons.append(error.reason)
                assert str(error) == error.reason
    assert len(reasons) > 20
    for reason in reasons:
        assert not any(token in reason for token in sandbox.tokens())
        assert "parcel" not in reason and len(reason) <= MAX_REASON


# Reading a conversation


def test_no_such_conversation(api, sandbox, conversation):
    sandbox.fault("platform", "no_conversation")
    with pytest.raises(CannotSucceed, match=r"There is no such conversation \(HTTP 404"):
        api.find_communication(conversation)


def test_a_conversation_that_has_ended(api, sandbox, conversation):
    sandbox.fault("platform", "ended")
    with pytest.raises(CannotSucceed, match="The conversation has ended"):
        api.find_communication(conversation)


def test_after_a_transfer_the_next_agents_communication_is_found(api, sandbox, conversation, communication):
    sandbox.fault("platform", "transferred")
    with pytest.raises(CannotSucceed) as raised:
        api.post_message(conversation, communication, TEXT)
    assert raised.value.look_again
    following = api.find_communication(conversation).id
    assert following != communication
    api.post_message(conversation, following, TEXT)


def test_until_the_agent_answers_it_is_tried_again(api, sandbox, conversation):
    sandbox.fault("platform", "alerting")
    with pytest.raises(TryAgain, match="not taken the conversation yet"):
        api.find_communication(conversation)
    sandbox.fault("platform", "answered")
    assert api.find_communication(conversation)


def leg(state="connected", id="k1", **more):
    return {"id": id, "state": state, **more}


def conversation_of(*participants, **more):
    return {"participants": [{"purpose": purpose, "messages": list(legs)} for purpose, *legs in participants], **more}


CUSTOMER = ("customer", leg(id="k0"))


@pytest.mark.parametrize(
    ("conversation", "expected"),
    [
        (conversation_of(CUSTOMER, ("agent", leg())), Communication("k1", MAX_MESSAGE_CHARS)),
        (conversation_of(CUSTOMER, ("user", leg())), Communication("k1", MAX_MESSAGE_CHARS)),
        (conversation_of(CUSTOMER, ("agent", leg(type="sms"))), Communication("k1", 765)),
        (conversation_of(CUSTOMER, ("agent", leg(type=["sms"]))), Communication("k1", MAX_MESSAGE_CHARS)),
        (conversation_of(("agent", leg()), ("agent", leg(id="k2"))), Communication("k2", MAX_MESSAGE_CHARS)),
        (
            conversation_of(("agent", leg()), ("agent", leg("disconnected", "k2"))),
            Communication("k1", MAX_MESSAGE_CHARS),
        ),
        (conversation_of(("agent", leg()), ("agent", leg("alerting", "k2"))), Communication("k1", MAX_MESSAGE_CHARS)),
    ],
)
def test_the_newest_agent_who_is_connected_speaks(conversation, expected):
    assert read_communication(conversation) == expected


@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        ({}, "not one of messages"),
        ({"participants": None}, "not one of messages"),
        ({"participants": [1, {"messages": 2}, {"messages": [3]}]}, "not one of messages"),
        ({"participants": [{"purpose": "agent", "calls": [leg()]}]}, "not one of messages"),
        (conversation_of(CUSTOMER, ("acd", leg())), "No agent has the conversation"),
        (conversation_of(CUSTOMER, ("agent", leg("disconnected"))), "No agent has the conversation"),
        (conversation_of(("customer", leg("disconnected")), ("agent", leg("disconnected"))), "has ended"),
        (conversation_of(CUSTOMER, ("agent", leg()), endTime="2026-01-01T00:00:00.000Z"), "has ended"),
    ],
)
def test_a_conversation_without_a_place_for_text(conversation, reason):
    with pytest.raises(CannotSucceed, match=re.escape(reason)):
        read_communication(conversation)


@pytest.mark.parametrize("state", ["alerting", "parked"])
def test_an_agent_who_is_not_there_yet_may_come(state):
    with pytest.raises(TryAgain):
        read_communication(conversation_of(CUSTOMER, ("agent", leg(state))))
