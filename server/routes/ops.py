"""For those who run the server: is it well?"""

import os

from flask import Blueprint, Response, current_app, jsonify

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
