"""Looking in and giving orders: everything under /sandbox, and the pages."""

import asyncio
import json
from pathlib import Path
from typing import Any

from aiohttp import web

from .answers import Answer, Answers
from .calls import Calls
from .conversations import Conversations
from .faults import KNOWN, FaultPlan, UnknownFault, parse_order
from .listener import Listener
from .oauth import Tokens
from .rate import WINDOW, RateLimit
from .transcript import Transcript

PAGES = Path(__file__).parent / "pages"
PING_INTERVAL = 15.0  # seconds of silence until a watcher gets a comment
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Control:
    def __init__(
        self,
        answers: Answers,
        faults: FaultPlan,
        calls: Calls,
        tokens: Tokens,
        conversations: Conversations,
        transcript: Transcript,
        rate: RateLimit,
        listener: Listener,
    ) -> None:
        self._answers = answers
        self._faults = faults
        self._calls = calls
        self._tokens = tokens
        self._conversations = conversations
        self._transcript = transcript
        self._rate = rate
        self._listener = listener

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.page),
            web.get("/sandbox/conversations/{id}/page", self.page),
            web.get("/sandbox/pages/{name}", self.file),
            web.get("/sandbox/healthz", self.health),
            web.get("/sandbox/calls", self.report),
            web.get("/sandbox/conversations", self.list_conversations),
            web.get("/sandbox/conversations/{id}", self.show_conversation),
            web.get("/sandbox/conversations/{id}/events", self.watch_conversation),
            web.post("/sandbox/answers", self.add_script),
            web.post("/sandbox/receipts", self.add_receipt),
            web.get("/sandbox/faults", self.list_faults),
            web.post("/sandbox/faults", self.add_fault),
            web.delete("/sandbox/faults", self.clear_faults),
            web.post("/sandbox/rate-limit", self.set_rate_limit),
            web.post("/sandbox/reset", self.reset),
            web.get("/sandbox/tokens", self.list_tokens),
            web.post("/sandbox/expire-tokens", self.expire_tokens),
        ]

    async def page(self, request: web.Request) -> web.StreamResponse:
        name = "conversation.html" if "id" in request.match_info else "index.html"
        return web.FileResponse(PAGES / name, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"})

    async def file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in {"conversation.js", "index.js", "sandbox.css"}:
            raise web.HTTPNotFound
        return web.FileResponse(PAGES / name, headers={"Cache-Control": "no-cache"})

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def report(self, _: web.Request) -> web.Response:
        return web.json_response(self._calls.report(self._transcript.open_links))

    async def list_conversations(self, _: web.Request) -> web.Response:
        return web.json_response(self._conversations.listed())

    async def show_conversation(self, request: web.Request) -> web.Response:
        return web.json_response(self._conversations.get(request.match_info["id"]).shown())

    async def watch_conversation(self, request: web.Request) -> web.StreamResponse:
        """The messages so far, then each as it comes, as Server-Sent Events; ids count from 1."""
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "Access-Control-Allow-Origin": "*"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        last = request.headers.get("Last-Event-ID", "")
        shown = int(last) if last.isascii() and last.isdigit() else 0
        conversation = self._conversations.get(request.match_info["id"])
        try:
            await response.write(b"retry: 500\n\n")
            while True:
                changed = conversation.changed
                shown = min(shown, len(conversation.messages))
                for message in conversation.messages[shown:]:
                    shown += 1
                    await response.write(b"id: %d\ndata: %b\n\n" % (shown, json.dumps(message.shown()).encode()))
                try:
                    await asyncio.wait_for(changed.wait(), PING_INTERVAL)
                except TimeoutError:
                    await response.write(b": ping\n\n")
        except ConnectionResetError:
            return response

    async def add_script(self, request: web.Request) -> web.Response:
        body = await read_object(request)
        prompt, tokens = body.get("prompt"), body.get("tokens", [])
        if not isinstance(prompt, str) or not isinstance(tokens, list):
            raise refuse("`prompt` is a text and `tokens` a list of texts and deltas")
        interval = body.get("interval_ms", self._answers.pace * 1000)
        raw = body.get("raw")
        answer = Answer(
            tokens=tuple(token if isinstance(token, dict) else str(token) for token in tokens),
            interval=float(interval) / 1000,
            finish_reason=str(body.get("finish_reason", "stop")),
            raw=None if raw is None else tuple(map(str, raw)),
            gate=prompt if body.get("gate") else None,
        )
        self._answers.add_script(prompt, answer)
        return web.json_response({"prompt": prompt, "tokens": len(answer.tokens)}, status=201)

    async def add_receipt(self, request: web.Request) -> web.Response:
        body = await read_object(request)
        prompt, count = body.get("prompt"), body.get("count")
        if not isinstance(prompt, str) or not isinstance(count, int):
            raise refuse("`prompt` is a text and `count` a whole number")
        self._answers.receipts(prompt).raise_to(count)
        return web.json_response({"prompt": prompt, "count": count}, status=201)

    async def list_faults(self, _: web.Request) -> web.Response:
        return web.json_response({"ordered": self._faults.remaining(), "known": KNOWN})

    async def add_fault(self, request: web.Request) -> web.Response:
        try:
            order = parse_order(await read_object(request))
        except UnknownFault as error:
            raise refuse(str(error)) from None
        if order.fault == "refused" and order.seconds is not None:
            await self._listener.outage(order.seconds, request.protocol)
        else:
            self._faults.add(order)
        return web.json_response({"at": order.at, "fault": order.fault}, status=201)

    async def clear_faults(self, _: web.Request) -> web.Response:
        self._faults.clear()
        return web.Response(status=204)

    async def set_rate_limit(self, request: web.Request) -> web.Response:
        body = await read_object(request)
        requests, seconds = body.get("requests"), body.get("seconds", WINDOW)
        if not isinstance(requests, int) or not isinstance(seconds, int | float) or requests < 0 or seconds <= 0:
            raise refuse("`requests` is a whole number from 0 and `seconds` a number above 0")
        self._rate.set(requests, seconds)
        return web.json_response({"requests": requests, "seconds": seconds}, status=201)

    async def reset(self, _: web.Request) -> web.Response:
        """As if freshly started, but for tokens and open links."""
        for part in (self._answers, self._faults, self._calls, self._conversations, self._rate):
            part.clear()
        return web.Response(status=204)

    async def list_tokens(self, _: web.Request) -> web.Response:
        """Every token that was issued, so that a test can look for them where they must not be."""
        return web.json_response(self._tokens.issued())

    async def expire_tokens(self, _: web.Request) -> web.Response:
        return web.json_response({"expired": self._tokens.expire_all()})


async def read_object(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except ValueError:
        raise refuse("The body is not valid JSON") from None
    if not isinstance(body, dict):
        raise refuse("The body is a JSON object")
    return body


def refuse(sentence: str) -> web.HTTPBadRequest:
    return web.HTTPBadRequest(text=json.dumps({"error": sentence}), content_type="application/json")
