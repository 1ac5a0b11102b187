"""The front for OpenAI's clients: the official one, LangChain's and plain HTTP, against the real server."""

import contextlib
import json
import os
import re
import threading

import httpx
import openai
import pytest
import requests
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

from server.access.keys import make_key

from .conftest import RelayServer, until
from .visitor import Visitor

PATIENCE = 20  # seconds
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
USAGE = {"include_usage": True}


def call_deltas(*pieces):
    """The deltas of one call of the tool `weather`, with its arguments in pieces."""
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}
    more = [{"index": 0, "function": {"arguments": piece}} for piece in pieces]
    return [{"tool_calls": [delta]} for delta in (first, *more)]


def asking(prompt):
    return [{"role": "user", "content": prompt}]


@pytest.fixture(scope="module")
def keys():
    return {name: make_key(name) for name in ("ann", "bob")}


@pytest.fixture(scope="module")
def shared_server(shared_sandbox, keys):
    """A relay that asks for a key."""
    relay = RelayServer(
        shared_sandbox.url,
        ACCESS="keys",
        RELAY_API_KEYS=",".join(key.entry for key in keys.values()),
        GATEWAY_MAX_RETRIES="1",
        GATEWAY_IDLE_TIMEOUT="20",
        LOG_CONTENT="1",
        CORS_ORIGINS="https://shop.example",
    )
    yield relay
    relay.stop()


@pytest.fixture
def server(shared_server, sandbox):
    return shared_server


@pytest.fixture
def open_client():
    """Makes official clients that go to a relay straight, whatever proxies the environment names."""
    with contextlib.ExitStack() as stack:

        def make(relay, key="unused", **options):
            http = stack.enter_context(httpx.Client(trust_env=False))
            options = {"max_retries": 0, "timeout": PATIENCE} | options
            return openai.OpenAI(base_url=f"{relay.url}/v1", api_key=key, http_client=http, **options)

        yield make


@pytest.fixture
def client(server, keys, open_client):
    return open_client(server, keys["ann"].key)


@pytest.fixture
def ann(server, keys):
    return Visitor(server, keys["ann"].key)


def complete(client, prompt, **options):
    return client.chat.completions.create(model="default", messages=asking(prompt), **options)


def refused(error, status):
    """The error object of a refusal, checked."""
    assert error.value.status_code == status
    body = error.value.body
    assert set(body) == {"message", "type", "param", "code"}
    return body


def test_an_answer_is_streamed_as_the_official_client_expects(client, sandbox, prompt):
    sandbox.script(prompt, ["Hel", "lo ", "👋"])
    role, *chunks, last = complete(client, prompt, stream=True)
    assert (role.choices[0].delta.role, role.choices[0].delta.content) == ("assistant", "")
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["Hel", "lo ", "👋"]
    assert last.choices[0].finish_reason == "stop"
    assert {(chunk.id, chunk.model, chunk.object) for chunk in [role, *chunks, last]} == {
        (role.id, "default", "chat.completion.chunk")
    }


def test_each_token_is_there_at_once(client, sandbox, prompt):
    sandbox.script(prompt, ["a", "b", "c"], gate=True)
    stream = complete(client, prompt, stream=True)
    next(stream)
    for count, text in enumerate("abc", 1):
        assert next(stream).choices[0].delta.content == text, "the next one waits for a word that this one is there"
        sandbox.receipt(prompt, count)
    assert next(stream).choices[0].finish_reason == "stop"


def test_the_usage_comes_last_where_it_is_asked_for(client, sandbox, prompt):
    sandbox.script(prompt, ["a", "b"])
    *chunks, last = complete(client, prompt, stream=True, stream_options=USAGE)
    assert (last.choices, last.usage.completion_tokens) == ([], 2)
    assert [chunk.usage for chunk in chunks] == [None] * 4


def test_a_whole_answer_is_one_object_and_its_request_id_leads_to_the_stream(client, ann, sandbox, prompt):
    sandbox.script(prompt, ["Hel", "lo"], finish_reason="length")
    raw = client.chat.completions.with_raw_response.create(model="default", messages=asking(prompt))
    answer = raw.parse()
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Hello", "length")
    assert answer.usage.completion_tokens == 2
    turn_id = raw.headers["x-request-id"]
    assert answer._request_id == turn_id
    assert ann.get(f"/streams/{turn_id}").json()["text"] == "Hello"


def test_tool_calls_reasoning_and_text_arrive_unbroken_and_in_order(client, server, sandbox, prompt):
    sandbox.script(
        prompt,
        [{"reasoning_content": "Hm."}, "Let me ", "see.", *call_deltas('{"city":', '"Bern"}')],
        gate=True,
        finish_reason="tool_calls",
    )
    deltas = []
    for chunk in complete(client, prompt, stream=True, tools=[WEATHER]):
        deltas.append(chunk.choices[0].delta.model_dump(exclude_unset=True))
        sandbox.receipt(prompt, len(deltas) - 1)
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm."},
        {"content": "Let me "},
        {"content": "see."},
        *call_deltas('{"city":', '"Bern"}'),
        {},
    ]


def test_a_whole_answer_holds_the_tool_calls_put_together(client, sandbox, prompt):
    sandbox.script(prompt, call_deltas('{"city":', '"Bern"}'), finish_reason="tool_calls")
    choice = complete(client, prompt, tools=[WEATHER]).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert (call.id, call.function.name, call.function.arguments) == ("call_1", "weather", '{"city":"Bern"}')


def test_the_clients_of_our_own_stream_see_the_text_and_ids_without_a_gap(ann, sandbox, prompt):
    sandbox.script(prompt, ["a", *call_deltas("{}"), "b"], finish_reason="tool_calls")
    turn = ann.post("/v1/chat/completions", {"messages": asking(prompt), "stream": True}).headers["X-Stream-Id"]
    followed = ann.get(f"/streams/{turn}", "text/event-stream").text
    fields = [line.partition(": ")[::2] for line in followed.split("\n")]
    assert [int(value) for name, value in fields if name == "id"] == [1, 2, 3, 4, 5]
    data = [json.loads(value) for name, value in fields if name == "data"]
    assert [found.get("token", found.get("finish_reason")) for found in data] == ["a", "b", "tool_calls"]
    assert "id: 2\n\nid: 3\n\n" in followed
    assert ann.get(f"/streams/{turn}").json()["text"] == "ab"


def test_what_comes_beside_the_text_survives_in_the_store(client, server, sandbox, prompt):
    """The same Idempotency-Key later: the answer is read from the journal, not from the gateway."""
    sandbox.script(prompt, ["a", *call_deltas("{}")], finish_reason="tool_calls")
    key = {"Idempotency-Key": prompt}
    first = complete(client, prompt, extra_headers=key)
    again = complete(client, prompt, extra_headers=key)
    assert first == again
    assert again.choices[0].message.tool_calls[0].function.arguments == "{}"
    assert sandbox.gateway_calls(prompt) == 1


def test_an_idempotency_key_is_for_one_conversation(client, sandbox, prompt, conversation):
    headers = {"Idempotency-Key": prompt, "X-Conversation-Id": conversation}
    first = complete(client, prompt, extra_headers=headers)
    assert complete(client, prompt, extra_headers=headers) == first
    for other in ({"X-Conversation-Id": f"{conversation}-2"}, {"X-Conversation-Id": openai.omit}):
        with pytest.raises(openai.UnprocessableEntityError) as error:
            complete(client, prompt, extra_headers=headers | other)
        assert refused(error, 422)["code"] == "idempotency_key_used_otherwise"
    assert sandbox.gateway_calls(prompt) == 1


@pytest.mark.parametrize("name_it", [{"extra_body": "metadata"}, {"extra_headers": "X-Conversation-Id"}])
def test_the_text_goes_into_the_transcript_of_the_conversation_that_is_named(
    client, ann, sandbox, prompt, conversation, name_it
):
    sandbox.script(prompt, ["Let me ", {"reasoning_content": "Hm."}, "see.", *call_deltas("{}")])
    options = (
        {"metadata": {"conversation_id": conversation}}
        if "extra_body" in name_it
        else {"extra_headers": {"X-Conversation-Id": conversation}}
    )
    answer = complete(client, prompt, **options)
    assert until(lambda: sandbox.text_of(conversation) == "Let me see." or None, "the transcript has the text alone")
    turn_id = answer._request_id
    until(lambda: ann.get(f"/streams/{turn_id}").json()["transcript"]["state"] == "delivered", "it is delivered")


def test_an_answer_without_text_counts_as_delivered_to_the_transcript(client, ann, sandbox, prompt, conversation):
    sandbox.script(prompt, call_deltas("{}"), finish_reason="tool_calls")
    turn_id = complete(client, prompt, metadata={"conversation_id": conversation})._request_id
    until(lambda: ann.get(f"/streams/{turn_id}").json()["transcript"]["state"] == "delivered", "it is delivered")


def test_without_a_conversation_the_answer_is_in_no_transcript(client, ann, prompt):
    turn_id = complete(client, prompt)._request_id
    state = ann.get(f"/streams/{turn_id}").json()
    assert (state["conversationId"], state["transcript"]) == (None, None)


def test_the_model_is_the_one_asked_for_and_the_list_names_the_default(client, server, prompt):
    assert client.chat.completions.create(model="gpt-x", messages=asking(prompt)).model == "gpt-x"
    assert [model.id for model in client.models.list()] == ["default"]


def test_the_list_names_the_gateways_model(start_relay, open_client, prompt):
    relay = start_relay(GATEWAY_MODEL="acme-large", TRANSCRIPT="off")
    assert [model.id for model in open_client(relay).models.list()] == ["acme-large"]
    answer = requests.post(f"{relay.url}/v1/chat/completions", json={"messages": asking(prompt)}, timeout=PATIENCE)
    assert answer.json()["model"] == "acme-large"


def test_a_model_is_there_by_its_name_and_another_is_not(client):
    assert client.models.retrieve("default") == client.models.list().data[0]
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("acme/none")
    assert refused(error, 404)["code"] == "model_not_found"


def test_what_is_not_here_is_refused_in_the_same_shape(client, ann):
    with pytest.raises(openai.NotFoundError) as error:
        client.embeddings.create(model="default", input="Hello")
    body = refused(error, 404)
    assert body["code"] == "not_found"
    assert "/v1/chat/completions" in body["message"]
    wrong = ann.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert wrong.json()["error"]["code"] == "method_not_allowed"
    options = requests.options(f"{ann.relay.url}/v1/models", timeout=PATIENCE)
    assert options.headers["Allow"] == "GET, OPTIONS"


def test_a_wrong_key_is_an_authentication_error(server, open_client, prompt):
    for call in (lambda c: complete(c, prompt), lambda c: complete(c, prompt, stream=True), lambda c: c.models.list()):
        with pytest.raises(openai.AuthenticationError) as error:
            call(open_client(server, "relay_wrong"))
        assert refused(error, 401)["code"] == "invalid_api_key"


def test_another_callers_answer_is_not_there(client, server, keys, prompt):
    turn_id = complete(client, prompt)._request_id
    bob = Visitor(server, keys["bob"].key)
    assert bob.get(f"/streams/{turn_id}").status_code == 404


@pytest.mark.parametrize("options", [{"n": 2}, {"temperature": 7}, {"metadata": {"conversation_id": " "}}])
def test_what_cannot_be_asked_is_a_bad_request(client, prompt, options):
    with pytest.raises(openai.BadRequestError) as error:
        complete(client, prompt, **options)
    assert refused(error, 400)["type"] == "invalid_request_error"
    assert next(iter(options)) in error.value.message


def test_a_body_that_is_no_json_and_one_that_is_too_large_are_refused_in_the_same_shape(ann):
    url = f"{ann.relay.url}/v1/chat/completions"
    for body, mimetype, status in (
        (b"{", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b" " * 2_000_000, "application/json", 413),
    ):
        answer = requests.post(url, body, headers=ann.headers | {"Content-Type": mimetype}, timeout=PATIENCE)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_question_that_fails_has_a_status_even_where_a_stream_was_asked_for(client, sandbox, prompt, stream):
    sandbox.fault("gateway", "unavailable_503", prompt=prompt, calls=9)
    with pytest.raises(openai.InternalServerError) as error:
        complete(client.with_options(max_retries=2), prompt, stream=stream)
    assert refused(error, 503)["code"] == "gateway_unavailable"
    assert error.value.request_id
    assert sandbox.gateway_calls(prompt) == 1, "the client does not try again on top of the server"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "kind", "status", "code", "family"),
    [
        ("rate_limited", openai.RateLimitError, 429, "rate_limited", "rate_limit_error"),
        ("bad_request_400", openai.BadRequestError, 400, "gateway_rejected", "invalid_request_error"),
    ],
)
def test_what_the_gateway_refuses_is_the_error_that_openai_has_for_it(
    client, sandbox, prompt, stream, fault, kind, status, code, family
):
    sandbox.fault("gateway", fault, prompt=prompt, calls=9)
    with pytest.raises(kind) as error:
        complete(client.with_options(max_retries=2), prompt, stream=stream)
    body = refused(error, status)
    assert (body["code"], body["type"]) == (code, family)
    assert error.value.response.headers["X-Should-Retry"] == "false"
    assert sandbox.gateway_calls(prompt) == 1


def test_an_answer_that_breaks_off_is_an_error_in_mid_stream(client, sandbox, prompt):
    sandbox.script(prompt, ["a", "b", "c", "d"])
    sandbox.fault("gateway", "cut", prompt=prompt, after=2)
    said = []
    with pytest.raises(openai.APIError) as error:
        said.extend(chunk.choices[0].delta.content for chunk in complete(client, prompt, stream=True))
    assert said == ["", "a", "b"]
    assert error.value.code == "answer_cut"


def test_a_tool_call_that_breaks_off_is_not_asked_for_again(start_relay, open_client, sandbox, prompt):
    """What the client has seen of it must not come twice; see the promise about tokens."""
    sandbox.script(prompt, call_deltas("{", "}"))
    sandbox.fault("gateway", "cut", prompt=prompt, after=2)
    relay = start_relay(TRANSCRIPT="off")
    with pytest.raises(openai.APIError) as error:
        list(complete(open_client(relay), prompt, stream=True))
    assert error.value.code == "answer_cut"
    assert sandbox.gateway_calls(prompt) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_cancelled_is_an_error(client, ann, server, sandbox, prompt, conversation, stream):
    sandbox.script(prompt, ["a", "b"], gate=True)
    errors = []

    def ask():
        with pytest.raises(openai.APIError) as error:
            list(complete(client, prompt, stream=stream, metadata={"conversation_id": conversation}))
        errors.append(error.value)

    asker = threading.Thread(target=ask)
    asker.start()
    (found,) = until(lambda: ann.list(conversation).json()["streams"], "the turn has begun")
    until(lambda: ann.get(f"/streams/{found['id']}").json()["text"] == "a", "the first token is there")
    assert ann.delete(f"/streams/{found['id']}").status_code == 204
    asker.join(PATIENCE)
    (error,) = errors
    assert error.code == "answer_cancelled"
    assert isinstance(error, openai.ConflictError) != stream


def test_who_asks_too_often_is_told_when_to_come_back(start_relay, keys, open_client, prompt):
    relay = start_relay(ACCESS="keys", RELAY_API_KEYS=keys["ann"].entry, RATE_LIMIT="1/minute", TRANSCRIPT="off")
    client = open_client(relay, keys["ann"].key)
    first = client.chat.completions.with_raw_response.create(model="default", messages=asking(prompt))
    assert first.headers["RateLimit-Remaining"] == "0"
    with pytest.raises(openai.RateLimitError) as error:
        complete(client, prompt)
    assert refused(error, 429)["code"] == "rate_limit_exceeded"
    assert 0 < int(error.value.response.headers["Retry-After"]) <= 60


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_noticed_and_its_turn_ends_after_the_grace(
    client, server, ann, sandbox, prompt, conversation, stream
):
    sandbox.script(prompt, ["a", "b"], gate=True)
    refused_before = refused_as_interrupted(server)
    body = {"messages": asking(prompt), "stream": stream, "metadata": {"conversation_id": conversation}}
    http = requests.Session()
    http.trust_env = False
    with contextlib.suppress(requests.RequestException):
        url = f"{server.url}/v1/chat/completions"
        http.post(url, json=body, headers=ann.headers, stream=True, timeout=PATIENCE if stream else 0.5).close()
    (found,) = until(lambda: ann.list(conversation).json()["streams"], "the turn has begun")
    assert server.logged(found["id"], "turn ended")["reason"] == "no follower"
    assert refused_as_interrupted(server) == refused_before, "no one was refused"


def refused_as_interrupted(relay):
    metrics = requests.get(f"{relay.url}/metrics", timeout=PATIENCE).text
    return sum(float(value) for value in re.findall(r'requests_refused_total{code="interrupted"} (\S+)', metrics))


def test_a_stop_lets_the_answer_come_to_its_end(start_relay, open_client, sandbox, prompt):
    sandbox.script(prompt, ["a", "b"], gate=True)
    relay = start_relay(TRANSCRIPT="off")
    stream = complete(open_client(relay), prompt, stream=True)
    next(stream), next(stream)
    os.kill(relay.process.process.pid, 15)
    until(lambda: not listens(relay), "the worker stops")
    sandbox.receipt(prompt, 1)
    assert [chunk.choices[0].delta.content for chunk in stream] == ["b", None]


def listens(relay):
    try:
        return requests.get(f"{relay.url}/healthz", timeout=5).ok
    except requests.ConnectionError:
        return False


def test_the_log_may_hold_questions_in_parts(client, server, sandbox, prompt):
    parts = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
    answer = client.chat.completions.create(model="default", messages=[{"role": "user", "content": parts}])
    assert prompt in server.logged(answer._request_id, "turn was asked")["content"]
    assert sandbox.gateway_calls(prompt) == 1, "the gateway reads the parts as well"


def test_a_page_of_an_allowed_origin_may_send_what_the_official_client_sends(server, ann):
    headers = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang,x-conversation-id",
    }
    preflight = requests.options(f"{server.url}/v1/chat/completions", headers=headers, timeout=PATIENCE)
    allowed = {name.strip().lower() for name in preflight.headers["Access-Control-Allow-Headers"].split(",")}
    assert {"authorization", "content-type", "x-stainless-lang", "x-conversation-id"} <= allowed
    ann.headers["Origin"] = "https://shop.example"
    exposed = ann.get("/v1/models").headers["Access-Control-Expose-Headers"].split(", ")
    assert {"X-Request-Id", "X-Should-Retry", "Retry-After"} <= set(exposed)


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"21 degrees in {city}"


@pytest.fixture
def chat(server, keys):
    http = httpx.Client(trust_env=False)
    yield ChatOpenAI(
        base_url=f"{server.url}/v1",
        api_key=keys["ann"].key,
        model="default",
        max_retries=0,
        http_client=http,
        http_async_client=httpx.AsyncClient(trust_env=False),
    )
    http.close()


def test_langchain_invokes_and_streams(chat, sandbox, prompt):
    sandbox.script(prompt, ["Hel", "lo"])
    answer = chat.invoke(prompt)
    assert (answer.content, answer.usage_metadata["output_tokens"]) == ("Hello", 2)
    chunks = list(chat.stream(prompt, stream_usage=True))
    assert "".join(chunk.content for chunk in chunks) == "Hello"
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 2


def test_langchain_calls_a_tool_and_goes_on_with_its_result(chat, sandbox, prompt):
    sandbox.script(prompt, call_deltas('{"city":', f'"{prompt}"}}'), finish_reason="tool_calls")
    sandbox.script(f"21 degrees in {prompt}", ["It is ", "warm."])
    model, messages = chat.bind_tools([weather]), [("user", prompt)]
    streamed = None
    for chunk in model.stream(messages):
        streamed = chunk if streamed is None else streamed + chunk
    asked = model.invoke(messages)
    assert streamed.tool_calls == asked.tool_calls
    result = weather.invoke(asked.tool_calls[0])
    assert model.invoke([*messages, asked, result]).content == "It is warm."


@pytest.mark.parametrize("name", ["other", "a/b", "/x", "line%0A", "%0Aline", "%00"])
def test_a_model_that_is_not_here_is_refused_as_openai_does_whatever_its_name(relay, name):
    refused = requests.get(f"{relay.url}/v1/models/{name}", timeout=10)
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"
