"""What is counted and measured, for Prometheus: `GET /metrics` shows it.

Names end with their unit, those of counters with `_total`; no label's value comes from outside. Read by workers alone,
once they have patched the standard library.
"""

import os
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

registry = CollectorRegistry()
if own_slot() is not None:
    values.ValueClass = values.MultiProcessValue(own_slot)


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
transcript_messages = counter("transcript_messages", "Messages sent.")
transcript_characters = counter("transcript_characters", "Characters of text sent.")
transcript_turns_delivered = counter("transcript_turns_delivered", "Turns whose text has arrived whole.")
transcript_turns_parked = counter("transcript_turns_parked", "Turns set aside, their text undelivered.")
transcript_turns_expired = counter("transcript_turns_expired", "Turns given up before their text had arrived whole.")


def exposition(accept: str) -> tuple[bytes, str]:
    """The metrics of all workers, in the format that a client which sends this Accept header reads; and its type."""
    encode, content_type = choose_encoder(accept)
    shown = registry
    if VARIABLE in os.environ:
        shown = CollectorRegistry()
        MultiProcessCollector(shown)
    return encode(shown), content_type
