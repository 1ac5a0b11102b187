"""The platform REST API's part for messaging conversations, in the shapes of the official SDK.

Every conversation id is that of a webmessaging conversation between a customer and an agent, until an order ends it.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from aiohttp import web

from .calls import Calls
from .connection import reset, while_present
from .conversations import Conversation, Conversations, Message
from .errors import CORRELATION, Refusal, api_error, bad_request, make_correlation
from .faults import FaultPlan, Order, retry_after_header
from .oauth import Tokens, bearer
from .rate import RateLimit
from .shapes import agent_legs, communication_id, message_data, messaging_conversation, whole_conversation

SCOPE = "conversation:write"
PERMISSION = "conversation:message:create"
MAX_TEXT = 2000  # characters of a textBody, as the SDK's AdditionalMessage says
MAX_BULK = 1000  # message ids in one request
MAX_BODY = 256 * 1024  # bytes
ENDLESS = b'{"padding": "' + b"x" * 65_536


class Platform:
    def __init__(
        self, tokens: Tokens, conversations: Conversations, faults: FaultPlan, calls: Calls, rate: RateLimit
    ) -> None:
        self._tokens = tokens
        self._conversations = conversations
        self._faults = faults
        self._calls = calls
        self._rate = rate

    def routes(self) -> list[web.RouteDef]:
        whole, messaging = "/api/v2/conversations/{id}", "/api/v2/conversations/messages/{id}"
        communication = messaging + "/communications/{communication}"
        return [
            web.get(whole, self._serve("read", self._read_whole)),
            web.get(messaging, self._serve("read", self._read_messaging)),
            web.get(messaging + "/messages/{message}", self._serve("read", self._read_message)),
            web.post(messaging + "/messages/bulk", self._serve("read", self._read_bulk)),
            web.post(communication + "/messages", self._serve("message", self._add_message)),
            web.post(communication + "/typing", self._serve("typing", self._add_typing)),
        ]

    def _serve(self, call: str, answer: Callable[[web.Request, Conversation, bytes], web.Response]) -> Any:
        async def handler(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            order = self._faults.take("platform", conversation=request.match_info["id"], call=call)
            try:
                response = await self._admit(request, order) or self._obey(request, order, body, answer)
            except Refusal as refusal:
                response = refusal.response()
            except ConnectionResetError:
                self._calls.platform(call, None, order)
                return web.Response()
            response.headers.update(self._rate.headers())
            response.headers.setdefault(CORRELATION, make_correlation())
            self._calls.platform(call, response.status, order)
            return response

        return handler

    async def _admit(self, request: web.Request, order: Order | None) -> web.Response | None:
        """An ordered answer, if there is one. Raises Refusal, or ConnectionResetError for no answer at all."""
        match order.fault if order else "":
            case "reset":
                reset(request)
                raise ConnectionResetError
            case "slow":
                await while_present(request, asyncio.sleep(order.seconds if order and order.seconds else 1.0))
            case "html":
                return web.Response(text="<html><body>Please sign in</body></html>", content_type="text/html")
            case "endless":
                return await pour(request)
            case "redirect":
                raise Refusal(302, {}, {"Location": "/elsewhere"})
            case fault if fault in ORDERED:
                status, code, message = ORDERED[fault]
                raise api_error(status, code, message, retry_after_header(order))
        wait = self._rate.take()
        if wait:
            message = f"Rate limit exceeded the maximum. Retry the request in [{wait}] seconds"
            raise api_error(429, "too.many.requests", message, {"Retry-After": str(wait)})
        self._check_token(bearer(request))
        return None

    def _check_token(self, token: str) -> None:
        """Raises Refusal in the platform's shape, which is not that of OAuth."""
        try:
            self._tokens.require(token, SCOPE)
        except Refusal as refusal:
            if refusal.status == 403:
                raise api_error(*ORDERED["forbidden_403"]) from None
            raise api_error(*ORDERED["expired"]) from None

    def _obey(
        self,
        request: web.Request,
        order: Order | None,
        body: bytes,
        answer: Callable[[web.Request, Conversation, bytes], web.Response],
    ) -> web.Response:
        conversation = self._conversations.get(request.match_info["id"])
        match order.fault if order else "":
            case "ended":
                conversation.ended_at = conversation.ended_at or time.time()
            case "transferred":
                conversation.transfers += 1
            case "alerting":
                conversation.is_alerting = True
            case "answered":
                conversation.is_alerting = False
        response = answer(request, conversation, body)
        if order is not None and order.fault == "reply_lost":
            reset(request)
            raise ConnectionResetError
        return response

    def _read_whole(self, _: web.Request, conversation: Conversation, __: bytes) -> web.Response:
        return web.json_response(whole_conversation(conversation))

    def _read_messaging(self, _: web.Request, conversation: Conversation, __: bytes) -> web.Response:
        return web.json_response(messaging_conversation(conversation))

    def _read_message(self, request: web.Request, conversation: Conversation, _: bytes) -> web.Response:
        wanted = request.match_info["message"]
        found = next((message for message in conversation.messages if message.id == wanted), None)
        if found is None:
            raise api_error(404, "not.found", "The requested message was not found")
        return web.json_response(message_data(conversation, found))

    def _read_bulk(self, _: web.Request, conversation: Conversation, body: bytes) -> web.Response:
        wanted = parse(body)
        if not isinstance(wanted, list) or len(wanted) > MAX_BULK:
            raise bad_request(f"The body is a list of at most {MAX_BULK} message ids")
        found = [message for message in conversation.messages if message.id in wanted]
        return web.json_response({"entities": [message_data(conversation, message) for message in found]})

    def _add_message(self, request: web.Request, conversation: Conversation, body: bytes) -> web.Response:
        text = read_text(body)
        self._check_open(request, conversation)
        message = Message(text, time.time(), None, str(uuid.uuid4()))
        conversation.add(message)
        return web.json_response(message_data(conversation, message))

    def _add_typing(self, request: web.Request, conversation: Conversation, body: bytes) -> web.Response:
        event = parse(body)
        typing = event.get("typing") if isinstance(event, dict) else None
        if not isinstance(typing, dict) or typing.get("type") != "On":
            raise bad_request('The body holds `typing` with the `type` "On"')
        self._check_open(request, conversation)
        conversation.typing += 1
        return web.Response(status=204)

    def _check_open(self, request: web.Request, conversation: Conversation) -> None:
        """Raises Refusal when nothing can be said on this communication."""
        wanted = request.match_info["communication"]
        states = {communication_id(conversation, leg): state for leg, state in agent_legs(conversation)}
        if wanted not in states:
            raise api_error(404, "not.found", "The requested communication was not found")
        if states[wanted] != "connected":
            raise bad_request(f"The communication is {states[wanted]}")


# What an order answers: status, code and message of the platform.
ORDERED = {
    "rate_limited": (429, "too.many.requests", "Rate limit exceeded the maximum"),
    "error_500": (500, "internal.server.error", "The server encountered an unexpected condition"),
    "unavailable_503": (503, "service.unavailable", "Service Unavailable - The server is currently unavailable"),
    "timeout_408": (408, "request.timeout", "The request timed out"),
    "conflict_409": (409, "conflict", "The request conflicts with the current state of the target resource"),
    "bad_request_400": (400, "bad.request", "The request could not be understood by the server"),
    "too_large_413": (413, "request.entity.too.large", "The request is over the size limit"),
    "no_conversation": (404, "not.found", "The requested resource was not found"),
    "expired": (401, "bad.credentials", "Invalid login credentials."),
    "forbidden_403": (
        403,
        "missing.any.permissions",
        "Unable to perform the requested action. You must have at least one of the following permissions assigned: "
        f"[{PERMISSION}]",
    ),
}


def parse(body: bytes) -> Any:
    """Raises Refusal for what is no JSON, or too much."""
    if len(body) > MAX_BODY:
        raise api_error(*ORDERED["too_large_413"])
    try:
        return json.loads(body)
    except ValueError:
        raise bad_request("The request body is not valid JSON") from None


def read_text(body: bytes) -> str:
    """The textBody of an AdditionalMessage. Raises Refusal."""
    message = parse(body)
    text = message.get("textBody") if isinstance(message, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise bad_request("textBody is missing or blank (media and templates are not imitated)")
    if len(text.encode("utf-16-le", "surrogatepass")) // 2 > MAX_TEXT:
        raise bad_request(f"textBody is longer than {MAX_TEXT} characters")
    return text


async def pour(request: web.Request) -> web.Response:
    """Begins an answer that never ends, as long as the client stays."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    while True:
        await response.write(ENDLESS)
        await asyncio.sleep(0.001)  # the rest of the sandbox goes on
