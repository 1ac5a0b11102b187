"""What is counted and measured, for Prometheus: `GET /metrics` shows it.

Names end with their unit, those of counters with `_total`; no label's value comes from outside. Read by workers alone,
once they have patched the standard library.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from .metrics_folder import VARIABLE, own_slot

# Why a link, or the try to open one, failed.
RetryCause = Literal[
    "unreachable",  # no connection, or no answer to the handshake
    "refused",  # the handshake was answered with another status, or a request to the platform API
    "rate_limited",  # the platform API has had too many requests
    "credentials",  # there is no access token to open it with
    "lost",  # it broke, or was closed at the other end
    "silent",  # no pong came
    "unexpected",
]

# An Accept header without a version that prometheus_client would stumble over (Prometheus' content negotiation).
READABLE = re.compile(r"(?:(?!version=)[ -~]|version=\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w.]))*", re.ASCII)

registry = CollectorRegistry()
if own_slot() is not None:
    values.ValueClass = values.MultiProcessValue(own_slot)


class Tally:
    """A counter of what comes with each token: adds up here what `flush` then counts.

    A count in the file that all workers share takes ten times as long, 0.7 µs, and there are two for each token.
    """

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._waiting = 0

    def inc(self, amount: int) -> None:
        self._waiting += amount

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, 0
        self._counter.inc(waiting)


def counter(name: str, meaning: str) -> Counter:
    return Counter(f"relay_{name}", meaning, registry=registry)


def counters(name: str, meaning: str, label: str, names: Iterable[Any]) -> dict[Any, Counter]:
    """One for each value of the label, looked up once; all are there from the beginning, with 0."""
    family = Counter(f"relay_{name}", meaning, [label], registry=registry)
    return {value: family.labels(value) for value in names}


def gauge(name: str, meaning: str, over_workers: Literal["livesum", "livemax"]) -> Gauge:
    return Gauge(f"relay_{name}", meaning, registry=registry, multiprocess_mode=over_workers)


transcript_lag = gauge(
    "transcript_lag_seconds", "Age of the oldest text that the transcript does not have for certain.", "livemax"
)
transcript_links = gauge("transcript_links", "Open links.", "livesum")
transcript_retries: Mapping[RetryCause, Counter] = counters(
    "transcript_retries", "Links that were lost or could not be opened.", "cause", get_args(RetryCause)
)
transcript_messages = Tally(counter("transcript_messages", "Messages sent."))
transcript_characters = Tally(counter("transcript_characters", "Characters of text sent."))
transcript_turns_delivered = counter("transcript_turns_delivered", "Turns whose text has arrived whole.")
transcript_turns_parked = counter("transcript_turns_parked", "Turns set aside, their text undelivered.")
transcript_turns_expired = counter("transcript_turns_expired", "Turns given up before their text had arrived whole.")


def flush() -> None:
    """Counts what was added up in this process. To be called a few times a second."""
    transcript_messages.flush()
    transcript_characters.flush()


def exposition(accept: str) -> tuple[bytes, str]:
    """The metrics of all workers, in the format that a client which sends this Accept header reads; and its type."""
    flush()
    encode, content_type = choose_encoder(accept if READABLE.fullmatch(accept) else "")
    shown = registry
    if VARIABLE in os.environ:
        shown = CollectorRegistry()
        MultiProcessCollector(shown)
    return encode(shown), content_type
