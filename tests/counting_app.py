"""The relay, with a route that counts and measures what a test wants."""

import os

from flask import request

from server import create_app, metrics

app = create_app()


@app.post("/count/<int:worker>")
def count(worker):
    """Counts and measures, in this worker alone."""
    if worker == os.getpid():
        metrics.transcript_turns_delivered.inc(int(request.args.get("turns", 0)))
        metrics.transcript_retries["silent"].inc(int(request.args.get("retries", 0)))
        metrics.transcript_links.set(int(request.args.get("links", 0)))
        metrics.transcript_lag.set(float(request.args.get("lag", 0)))
    return str(os.getpid())
