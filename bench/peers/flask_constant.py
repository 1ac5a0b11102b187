"""No relay: Flask on gunicorn's gevent worker, which asks no one and answers at once. What is below this cannot be
saved by an app in Flask, however it relays.
"""

import json
import time

from flask import Flask, Response, request

app = Flask(__name__)


@app.post("/stream-llm")
def stream_llm() -> Response:
    count = int(request.get_json()["prompt"].split()[0].removeprefix("tokens="))  # as bench/wire/client.c asks
    token = f"~{time.monotonic_ns():016x} "
    return Response(iter([f"data: {json.dumps({'token': token})}\n\n"] * count), mimetype="text/event-stream")
