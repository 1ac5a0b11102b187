"""For those who run the server: is it well, and how much does it do?"""

import os

from flask import Blueprint, Response, current_app, jsonify, request

from .. import metrics, readiness
from ..relay import Relay

routes = Blueprint("ops", __name__)


@routes.get("/healthz")
def healthz() -> tuple[Response, int]:
    """200 while this worker takes requests, 503 while it stops."""
    relay = Relay.of(current_app)
    draining = relay.turns.draining
    state = {
        "status": "draining" if draining else "ok",
        "worker": os.getpid(),
        "turns": len(relay.turns),
        "links": relay.transcript.open if relay.transcript is not None else 0,
    }
    return jsonify(state), 503 if draining else 200


@routes.get("/readyz")
def readyz() -> tuple[Response, int]:
    """200 while this worker can answer questions; 503 with what to do while it cannot."""
    state = readiness.as_json(Relay.of(current_app).readiness.checks())
    return jsonify(state), 200 if state["ready"] else 503


@routes.get("/metrics")
def show_metrics() -> Response:
    """The metrics of all workers, for Prometheus."""
    body, content_type = metrics.exposition(request.headers.get("Accept", ""))
    return Response(body, content_type=content_type, headers={"Cache-Control": "no-store"})
