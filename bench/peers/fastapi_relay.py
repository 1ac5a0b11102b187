"""What most new services in Python are made of, to compare with: FastAPI, httpx and sse-starlette under uvicorn.

It passes tokens on, and does nothing else.
"""

import json
import os
from collections.abc import AsyncIterator

import httpx
import uvicorn
from fastapi import FastAPI, Request
from sse_starlette import EventSourceResponse

BASE = os.environ["GENESYS_BASE_URL"]

app = FastAPI()
client = httpx.AsyncClient(limits=httpx.Limits(max_connections=None), timeout=300)


async def events(prompt: str) -> AsyncIterator[dict[str, str]]:
    body = {"messages": [{"role": "user", "content": prompt}], "stream": True}
    async with client.stream("POST", f"{BASE}/api/v2/ai/llm/gateway/chat", json=body) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            if data == "[DONE]":
                break
            choices = json.loads(data).get("choices")
            token = choices and choices[0]["delta"].get("content")
            if token:
                yield {"data": json.dumps({"token": token})}


@app.post("/stream-llm")
async def stream_llm(request: Request) -> EventSourceResponse:
    return EventSourceResponse(events((await request.json())["prompt"]))


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=False)
