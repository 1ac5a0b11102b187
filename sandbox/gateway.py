"""The LLM gateway: POST /api/v2/ai/llm/gateway/chat, OpenAI-shaped, with every fault that can be ordered."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NoReturn

import aiohttp
from aiohttp import web

from .answers import Answer, Answers
from .calls import Calls
from .chunks import FRAME, FRAMES, Chunks, completion
from .connection import ClientLeft, reset, until_gone, while_present
from .errors import CORRELATION, Refusal, api_error, bad_request, make_correlation, oauth_error
from .faults import FaultPlan, Order, retry_after_header
from .oauth import Tokens, bearer
from .settings import Settings

SCOPE = "ai:llm:gateway"
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
ASKING = ("user", "tool", "function")  # whose last message is the prompt
HUGE_LINE = 8 * 1024 * 1024  # bytes
FLOOD = 500  # chunks a write: more than any reader keeps up with
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"  # RFC 8297
MODEL_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=300)


@dataclass(frozen=True, slots=True)
class Question:
    """A checked request."""

    messages: tuple[dict[str, Any], ...]
    stream: bool
    max_tokens: int | None
    model: str

    @property
    def prompt(self) -> str:
        return last_user_message(self.messages)


class Gateway:
    def __init__(self, settings: Settings, tokens: Tokens, answers: Answers, faults: FaultPlan, calls: Calls) -> None:
        self._settings = settings
        self._tokens = tokens
        self._answers = answers
        self._faults = faults
        self._calls = calls

    async def chat(self, request: web.Request) -> web.StreamResponse:
        used_before = self._calls.connection(request.transport)
        body = await request.read()
        prompt = prompt_of(body)
        order = self._faults.take("gateway", prompt or "")
        try:
            if used_before and order is not None and order.fault == "stale":
                reset(request)
                raise ConnectionResetError
            question = await self._admit(request, body, order)
        except Refusal as refusal:
            self._calls.gateway(refusal.status, order, prompt, request.headers)
            return refusal.response()
        except ConnectionResetError:
            self._calls.gateway(None, order, prompt, request.headers)
            return web.Response()
        self._calls.gateway(200, order, prompt, request.headers)
        if order is not None and order.fault == "html":
            return web.Response(text="<html><body>Please sign in</body></html>", content_type="text/html")
        if not question.stream:
            return self._whole(question)
        return await self._stream(request, question, order)

    async def _admit(self, request: web.Request, body: bytes, order: Order | None) -> Question:
        """What was asked. Raises Refusal, or ConnectionResetError when no answer is to be given at all."""
        match order.fault if order else "":
            case "expired":
                raise oauth_error(401, "invalid_token", "The access token has expired")
            case "rate_limited":
                raise api_error(429, "too.many.requests", "Rate limit exceeded", retry_after_header(order))
            case "error_500":
                raise api_error(500, "internal.server.error", "The request could not be completed")
            case "unavailable_503":
                raise api_error(503, "service.unavailable", "The service is unavailable", retry_after_header(order))
            case "bad_request_400":
                raise bad_request("The request was refused by order")
            case "forbidden_403":
                raise oauth_error(403, "insufficient_scope", f"The access token lacks the scope {SCOPE}")
            case "redirect":
                raise Refusal(302, {}, {"Location": "/elsewhere"})
            case "refused":
                reset(request)
                raise ConnectionResetError
            case "slow_first_byte":
                await while_present(request, asyncio.sleep(order.seconds if order and order.seconds else 1.0))
        self._tokens.require(bearer(request), SCOPE)
        return read_question(body, self._settings.model)

    def _whole(self, question: Question) -> web.Response:
        answer = self._answers.to(question.prompt)
        tokens, reason = limited(answer, question.max_tokens)
        text = "".join(token for token in tokens if isinstance(token, str))
        body = completion(question.model, text, reason, words(question), len(tokens))
        self._calls.gateway_figures["completed"] += 1
        return web.json_response(body, headers={CORRELATION: make_correlation()})

    async def _stream(self, request: web.Request, question: Question, order: Order | None) -> web.StreamResponse:
        headers = {"Content-Type": "application/x-ndjson", CORRELATION: make_correlation()}
        response = web.StreamResponse(headers=headers)
        response.enable_chunked_encoding()
        fault = order.fault if order else ""
        if fault == "early_hints" and request.transport is not None:
            request.transport.write(EARLY_HINTS)
        await response.prepare(request)
        stream = Stream(request, response, Chunks(question.model, FRAMES.get(fault, FRAME)), order)
        try:
            await self._say(stream, question)
            await response.write_eof()
        except ClientLeft:
            self._calls.gateway_figures["abandoned"] += 1
        except ConnectionResetError:
            if not stream.broken:
                self._calls.gateway_figures["abandoned"] += 1
        except asyncio.CancelledError:
            self._calls.gateway_figures["abandoned"] += 1
            raise
        else:
            self._calls.gateway_figures["completed"] += 1
        return response

    async def _say(self, stream: "Stream", question: Question) -> None:
        answer = self._answers.to(question.prompt)
        if answer.raw is not None:
            for line in answer.raw:
                await stream.write(line.encode() + b"\n")
            return
        await stream.begin()
        count = 0
        reason = answer.finish_reason
        async for token in self._tokens_for(stream, question, answer):
            if question.max_tokens is not None and count >= question.max_tokens:
                reason = "length"
                break
            await stream.token(token)
            count += 1
        await stream.end(reason, words(question), count)

    async def _tokens_for(
        self, stream: "Stream", question: Question, answer: Answer
    ) -> AsyncIterator[str | dict[str, Any]]:
        if self._settings.model_url and not self._answers.is_scripted(question.prompt):
            async for token in self._real_model(question):
                yield token
            return
        receipts = self._answers.receipts(answer.gate) if answer.gate is not None else None
        for number, token in enumerate(answer.tokens):
            if receipts is not None and receipts.count < number:
                await while_present(stream.request, receipts.wait_for(number))
            elif number and answer.interval:
                await asyncio.sleep(answer.interval)
            yield token

    async def _real_model(self, question: Question) -> AsyncIterator[str]:
        """The answer of the OpenAI-compatible server at SANDBOX_MODEL_URL, token by token."""
        url = f"{self._settings.model_url}/chat/completions"
        body = {"model": self._settings.model, "messages": question.messages, "stream": True}
        headers = {"Authorization": f"Bearer {self._settings.model_key}"} if self._settings.model_key else {}
        try:
            async with (
                aiohttp.ClientSession(timeout=MODEL_TIMEOUT) as session,
                session.post(url, json=body, headers=headers) as answer,
            ):
                if answer.status != 200:
                    yield f"[The model at SANDBOX_MODEL_URL answered with status {answer.status}.]"
                    return
                async for line in answer.content:
                    data = line.strip().removeprefix(b"data:").strip()
                    if not data.startswith(b"{"):
                        continue
                    choices = json.loads(data).get("choices") or [{}]
                    if token := (choices[0].get("delta") or {}).get("content"):
                        yield token
        except (aiohttp.ClientError, ValueError) as error:
            yield f"[The model at SANDBOX_MODEL_URL cannot be read: {type(error).__name__}.]"


class Stream:
    """One streamed answer, and the fault that may befall it."""

    def __init__(self, request: web.Request, response: web.StreamResponse, chunks: Chunks, order: Order | None) -> None:
        self.request = request
        self.broken = False
        self._response = response
        self._chunks = chunks
        self._order = order
        self._fault = order.fault if order else ""
        self._left = order.after if order else -1  # tokens until the fault
        self._glue: list[bytes] = []

    async def write(self, data: bytes) -> None:
        match self._fault:
            case "glued":
                self._glue.append(data)
            case "one_byte":
                for byte in data:
                    await self._response.write(bytes([byte]))
                    await asyncio.sleep(0)
            case "split_utf8" if (cut := inside_character(data)) is not None:
                await self._response.write(data[:cut])
                await asyncio.sleep(0.002)  # long enough for a packet of its own
                await self._response.write(data[cut:])
            case _:
                await self._response.write(data)

    async def begin(self) -> None:
        if self._fault in ("stall_before_first", "cut_before_first"):
            await self._strike()
        await self.write(self._chunks.role())

    async def token(self, token: str | dict[str, Any]) -> None:
        if self._left == 0:
            await self._strike()
        self._left -= 1
        await self.write(self._chunks.token(token) if isinstance(token, str) else self._chunks.delta(token))

    async def end(self, reason: str, prompt_tokens: int, completion_tokens: int) -> None:
        if self._left >= 0:
            self._left = -1
            await self._strike()
        if self._fault == "no_finish":
            return
        await self.write(self._chunks.finish(reason))
        if self._fault == "cut_after_finish":
            await self._cut()
        await self.write(self._chunks.usage(prompt_tokens, completion_tokens))
        if self._fault == "stall_after_finish":
            await until_gone(self.request)
        if self._fault != "no_done":
            await self.write(self._chunks.done())
        if self._glue:
            await self._response.write(b"".join(self._glue))

    async def _strike(self) -> None:
        """What befalls the stream after `after` tokens; faults of the framing do not."""
        match self._fault:
            case "stall" | "stall_before_first":
                await until_gone(self.request)
            case "cut" | "cut_before_first":
                await self._cut()
            case "no_finish":
                await self._response.write_eof()
                raise Ended
            case "malformed":
                await self.write(b'data: {"choices":[{"delta":{"content":"bro\n\n')
            case "error_object":
                error = {"code": 502, "type": "upstream_error", "message": "The model gave up"}
                await self.write(
                    self._chunks.line({"error": error, "choices": [{"finish_reason": "error", "delta": {}}]})
                )
                await self._response.write_eof()
                raise Ended
            case "huge_line":
                await self.write(b'data: {"choices":[{"delta":{"content":"' + b"x" * HUGE_LINE + b'"}}]}\n\n')
            case "endless":
                while True:
                    await self.write(self._chunks.token("on and "))
            case "flood":
                while True:
                    await self.write(self._chunks.role() * FLOOD)
                    await asyncio.sleep(0)

    async def _cut(self) -> NoReturn:
        # Once the client has what was sent: a reset overtakes bytes that are still on their way.
        await asyncio.sleep(0.05)
        self.broken = True
        reset(self.request)
        raise ConnectionResetError


class Ended(ConnectionResetError):
    """The stream was ended on order."""


def inside_character(data: bytes) -> int | None:
    """A place to cut inside the first multi-byte character, None without one."""
    return next((place + 1 for place, byte in enumerate(data) if byte >= 0xC0), None)


def limited(answer: Answer, max_tokens: int | None) -> tuple[tuple[str | dict[str, Any], ...], str]:
    if max_tokens is None or len(answer.tokens) <= max_tokens:
        return answer.tokens, answer.finish_reason
    return answer.tokens[:max_tokens], "length"


def words(question: Question) -> int:
    return sum(len(text_of(message["content"]).split()) for message in question.messages)


def prompt_of(body: bytes) -> str | None:
    """The last user message, as far as the body can be read at all: faults are ordered by it."""
    try:
        return last_user_message(json.loads(body)["messages"])
    except (ValueError, TypeError, KeyError):
        return None


def last_user_message(messages: Any) -> str:
    """A tool's result counts as well: it is what the model is asked to go on with."""
    return next((text_of(message.get("content")) for message in reversed(messages) if message["role"] in ASKING), "")


def text_of(content: Any) -> str:
    """A message's text, be it a string or a list of parts."""
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    return content if isinstance(content, str) else ""


def read_question(body: bytes, model: str) -> Question:
    """Checks the body. Raises Refusal."""
    try:
        fields = json.loads(body)
    except ValueError:
        raise bad_request("The body is not valid JSON") from None
    if not isinstance(fields, dict):
        raise bad_request("The body must be a JSON object")
    return Question(
        messages=read_messages(fields.get("messages")),
        stream=fields.get("stream") is True,
        max_tokens=read_max_tokens(fields),
        model=read_options(fields, model),
    )


def read_messages(messages: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(messages, list) or not messages:
        raise bad_request("messages must be a list with at least one message")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise bad_request(f"each message needs a role of: {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str | list) and message["role"] != "assistant":
            raise bad_request("each message needs a content that is a string or a list of parts")
    return tuple({"role": message["role"], "content": message.get("content")} for message in messages)


def read_max_tokens(fields: dict[str, Any]) -> int | None:
    value = fields.get("max_tokens")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise bad_request("max_tokens must be a whole number from 1")
    return value


def read_options(fields: dict[str, Any], model: str) -> str:
    temperature = fields.get("temperature", 0.7)
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature <= 2:
        raise bad_request("temperature must be a number from 0 to 2")
    wanted = fields.get("model", model)
    if not isinstance(wanted, str):
        raise bad_request("model must be a string")
    return wanted
