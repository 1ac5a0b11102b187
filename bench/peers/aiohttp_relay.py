"""The leanest relay in Python, to compare with: aiohttp's server and client on uvloop.

It passes tokens on, and with TRANSCRIPT=websocket sends each on a WebSocket of the conversation's. It keeps nothing,
and knows no ids, retries, limits, resuming or confirmation.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator

import uvloop
from aiohttp import ClientSession, TCPConnector, web

BASE = os.environ["GENESYS_BASE_URL"]
TRANSCRIPT = os.environ["TRANSCRIPT"] == "websocket"
SESSION = web.AppKey("session", ClientSession)


async def answer(session: ClientSession, prompt: str) -> AsyncIterator[str]:
    body = {"messages": [{"role": "user", "content": prompt}], "stream": True}
    async with session.post(f"{BASE}/api/v2/ai/llm/gateway/chat", json=body) as response:
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                break
            choices = json.loads(data).get("choices")
            token = choices and choices[0]["delta"].get("content")
            if token:
                yield token


async def mirror(session: ClientSession, conversation: str, tokens: asyncio.Queue[str | None]) -> None:
    async with session.ws_connect(f"{BASE}/v2/conversations/websockets?access_token=bench", heartbeat=20) as link:
        while (token := await tokens.get()) is not None:
            message = {"conversationId": conversation, "type": "message", "text": token, "role": "agent"}
            await link.send_str(json.dumps(message))


async def stream_llm(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    session, tokens = request.app[SESSION], asyncio.Queue()
    link = asyncio.create_task(mirror(session, asked["conversationId"], tokens)) if TRANSCRIPT else None
    async for token in answer(session, asked["prompt"]):
        if link:
            tokens.put_nowait(token)
        await response.write(b'data: {"token": %s}\n\n' % json.dumps(token).encode())
    await response.write_eof()
    if link:
        tokens.put_nowait(None)
        await link
    return response


async def hold_session(app: web.Application) -> AsyncIterator[None]:
    async with ClientSession(connector=TCPConnector(limit=0)) as app[SESSION]:
        yield


if __name__ == "__main__":
    uvloop.install()
    app = web.Application()
    app.cleanup_ctx.append(hold_session)
    app.router.add_post("/stream-llm", stream_llm)
    web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=None)
