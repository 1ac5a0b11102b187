"""The official SDK of Genesys Cloud, pointed at the sandbox: the imitation is read by those who wrote the original."""

import json
from datetime import datetime
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from server.regions import REGIONS


@pytest.fixture(scope="module")
def sdk(tmp_path_factory):
    """The SDK, without the configuration file of whoever runs the tests, and the thread that would watch it."""
    home = tmp_path_factory.mktemp("home")
    (home / ".genesyscloudpython").mkdir()
    (home / ".genesyscloudpython/config").write_text("[general]\nlive_reload_config = false\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        import PureCloudPlatformClientV2  # noqa: PLC0415 - it takes seconds, which only these tests shall wait

        yield PureCloudPlatformClientV2


@pytest.fixture
def client(sdk, sandbox):
    """An ApiClient with a token, all of whose addresses are the sandbox's."""
    place = urlsplit(sandbox.url)
    client = sdk.api_client.ApiClient()
    client.gateway_configuration = sdk.GatewayConfiguration(host=place.hostname, protocol=place.scheme, port=place.port)
    return client.get_client_credentials_token("sandbox-client", "sandbox-secret")


@pytest.fixture
def api(sdk, client):
    return sdk.ConversationsApi(client)


@pytest.fixture
def communication(api, conversation):
    """The agent's."""
    participants = api.get_conversation(conversation).participants
    return next(one for one in participants if one.purpose == "agent").messages[0].id


def refusal(sdk, call, *arguments):
    """The ApiException that a call raises, and its body as the SDK's ErrorBody."""
    with pytest.raises(sdk.rest.ApiException) as raised:
        call(*arguments)
    error = raised.value
    response = SimpleNamespace(data=error.body, getheader=error.headers.get)
    return error, sdk.api_client.ApiClient().deserialize(response, "ErrorBody")


def unread(model):
    """The fields of a model that the answer did not fill."""
    return {name for name, value in model.to_dict().items() if value is None}


def test_the_regions_are_those_that_it_knows(sdk):
    assert {f"https://api.{region}" for region in REGIONS} == {host.value for host in sdk.PureCloudRegionHosts}


def test_it_obtains_a_token_by_http_basic(client, sandbox):
    assert client.access_token


def test_a_wrong_secret_is_refused(sdk, client):
    with pytest.raises(sdk.rest.ApiException) as raised:
        client.get_client_credentials_token("sandbox-client", "wrong")
    assert raised.value.status == 401
    assert json.loads(raised.value.body)["error"] == "invalid_client"


def test_it_reads_a_conversation_with_its_communications(api, conversation):
    found = api.get_conversation(conversation)
    assert found.id == conversation
    assert isinstance(found.start_time, datetime) and found.end_time is None
    customer, agent = found.participants
    assert (customer.purpose, agent.purpose) == ("customer", "agent")
    assert [one.state for one in agent.messages] == ["connected"]
    assert agent.messages[0].type == "webmessaging"
    assert agent.messages[0].peer_id == customer.messages[0].id


def test_it_reads_a_messaging_conversation(api, conversation):
    found = api.get_conversations_message(conversation)
    customer, agent = found.participants
    assert (customer.purpose, customer.state) == ("customer", "connected")
    assert (agent.purpose, agent.state, agent.type) == ("agent", "connected", "webmessaging")


def test_what_it_posts_it_reads_back(sdk, api, sandbox, conversation, communication):
    body = sdk.AdditionalMessage()
    body.text_body = "Grüße aus 東京 👋"
    posted = api.post_conversations_message_communication_messages(conversation, communication, body)
    assert not {"id", "timestamp", "direction", "messenger_type", "status", "normalized_message"} & unread(posted)
    assert posted.direction == "outbound" and posted.conversation_id == conversation
    read = api.get_conversations_message_message(conversation, posted.id)
    assert read.normalized_message.text == body.text_body and read.normalized_message.type == "Text"
    listed = api.post_conversations_message_messages_bulk(conversation, body=[posted.id])
    assert [one.id for one in listed.entities] == [posted.id]
    agent = api.get_conversations_message(conversation).participants[-1]
    assert [one.message_id for one in agent.messages] == [posted.id]
    assert sandbox.text_of(conversation) == body.text_body


def test_a_typing_event_is_counted(sdk, api, sandbox, conversation, communication):
    event = sdk.MessageTypingEventRequest()
    event.typing = sdk.ConversationEventTyping()
    event.typing.type, event.typing.duration = "On", 5000
    assert api.post_conversations_message_communication_typing(conversation, communication, event) is None
    assert sandbox.conversation(conversation)["typing"] == 1


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("no_conversation", 404, "not.found"),
        ("forbidden_403", 403, "missing.any.permissions"),
        ("expired", 401, "bad.credentials"),
        ("rate_limited", 429, "too.many.requests"),
        ("error_500", 500, "internal.server.error"),
        ("unavailable_503", 503, "service.unavailable"),
        ("conflict_409", 409, "conflict"),
    ],
)
def test_its_error_classes_read_our_errors(sdk, api, sandbox, conversation, fault, status, code):
    sandbox.fault("platform", fault)
    error, body = refusal(sdk, api.get_conversations_message, conversation)
    assert (error.status, body.status, body.code) == (status, status, code)
    assert body.message and body.details == [] and body.errors == []
    assert body.context_id == error.headers["ININ-Correlation-Id"]


def test_an_ended_conversation_shows_it_and_takes_no_text(sdk, api, sandbox, conversation, communication):
    sandbox.fault("platform", "ended", conversation=conversation)
    found = api.get_conversation(conversation)
    assert found.end_time is not None
    assert {one.messages[0].state for one in found.participants} == {"disconnected"}
    body = sdk.AdditionalMessage()
    body.text_body = "too late"
    post = api.post_conversations_message_communication_messages
    error, read = refusal(sdk, post, conversation, communication, body)
    assert (error.status, read.message) == (400, "The communication is disconnected")


def test_after_a_transfer_another_communication_is_open(sdk, api, sandbox, conversation, communication):
    sandbox.fault("platform", "transferred", conversation=conversation)
    *_, old, new = api.get_conversation(conversation).participants
    assert [one.messages[0].state for one in (old, new)] == ["disconnected", "connected"]
    assert old.messages[0].id == communication != new.messages[0].id


def test_text_beyond_the_published_length_is_refused(sdk, api, conversation, communication):
    body = sdk.AdditionalMessage()
    body.text_body = "x" * 2001
    post = api.post_conversations_message_communication_messages
    assert refusal(sdk, post, conversation, communication, body)[0].status == 400
    body.text_body = "x" * 2000
    assert post(conversation, communication, body).id


def test_more_requests_than_the_limit_are_told_when_to_come_back(sandbox, api, conversation):
    sandbox.limit_rate(1, 1)
    for _ in range(3):  # the SDK waits as Retry-After says, and asks again
        assert api.get_conversation(conversation).id == conversation
    assert sandbox.calls()["platform"]["statuses"]["429"] >= 2
