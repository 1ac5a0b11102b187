"""The relay that a tutorial would write, to compare with: Flask, requests.iter_lines, one WebSocket a turn.

It does the main job and nothing else: no retries, no ids, no resuming, no confirmation, no end of a turn whose client
has left. Run it as one would: `gunicorn -k gevent bench.peers.flask_relay:app`.
"""

import json
import os
from collections.abc import Iterator

import requests
import websocket
from flask import Flask, Response, request

BASE = os.environ["GENESYS_BASE_URL"]
TRANSCRIPT = os.environ.get("TRANSCRIPT", "websocket") == "websocket"

app = Flask(__name__)
tokens: dict[str, str] = {}


def access_token() -> str:
    if "access_token" not in tokens:
        form = {
            "grant_type": "client_credentials",
            "client_id": os.environ["OAUTH_CLIENT_ID"],
            "client_secret": os.environ["OAUTH_CLIENT_SECRET"],
        }
        tokens.update(requests.post(f"{BASE}/oauth/token", data=form, timeout=10).json())
    return tokens["access_token"]


def ask(prompt: str) -> Iterator[str]:
    """The answer's tokens as the gateway sends them."""
    response = requests.post(
        f"{BASE}/api/v2/ai/llm/gateway/chat",
        json={"messages": [{"role": "user", "content": prompt}], "stream": True},
        headers={"Authorization": f"Bearer {access_token()}"},
        stream=True,
        timeout=300,
    )
    response.raise_for_status()
    for line in response.iter_lines():
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            break
        choices = json.loads(data).get("choices")
        token = choices and choices[0]["delta"].get("content")
        if token:
            yield token


def open_transcript() -> websocket.WebSocket:
    address = BASE.replace("http", "ws", 1)
    return websocket.create_connection(
        f"{address}/v2/conversations/websockets?access_token={access_token()}", timeout=20
    )


@app.post("/stream-llm")
def stream_llm() -> Response:
    body = request.get_json()

    def events() -> Iterator[str]:
        transcript = open_transcript() if TRANSCRIPT else None
        for token in ask(body["prompt"]):
            yield f"data: {json.dumps({'token': token})}\n\n"
            if transcript:
                message = {"conversationId": body["conversationId"], "type": "message", "text": token, "role": "agent"}
                transcript.send(json.dumps(message))
        if transcript:
            transcript.close()

    return Response(events(), mimetype="text/event-stream")
