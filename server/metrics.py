"""What is counted and measured, for Prometheus: `GET /metrics` shows it.

Names end with their unit, those of counters with `_total`; no label's value comes from outside. Read by workers alone,
once they have patched the standard library.
"""

import os
import platform
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector

from . import errors
from .metrics_folder import VARIABLE, own_slot
from .version import VERSION

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

TokenResult = Literal["ok", "rejected", "unavailable"]  # of a login, all its tries together

# Upper bounds in seconds.
FIRST_TOKEN = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 30, 60)
TOKEN_GAP = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
DURATION = (0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
FLUSH = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
DELAY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)

# An Accept header without a version that prometheus_client would stumble over (Prometheus' content negotiation).
READABLE = re.compile(r"(?:(?!version=)[ -~]|version=\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w.]))*", re.ASCII)

registry = CollectorRegistry()
if own_slot() is not None:
    values.ValueClass = values.MultiProcessValue(own_slot)


class Tally:
    """A counter of what comes with each token or turn: adds up here what `flush` then counts.

    A count in the file that all workers share takes ten times as long, 0.7 µs, and there are two for each token.
    """

    def __init__(self, counter: Counter | Gauge) -> None:
        self._counter = counter
        self._waiting = 0

    def inc(self, amount: int = 1) -> None:
        self._waiting += amount

    def dec(self) -> None:
        self._waiting -= 1

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, 0
        if waiting:
            self._counter.inc(waiting)


class Spread(Histogram):
    """A histogram that takes many values at once, already sorted into its buckets."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """`counts` by bucket, the last for what is above all bounds; `total` is the sum of the values."""
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        self._sum.inc(total)


class SpreadTally:
    """A histogram of what comes with each token or turn: adds up here what `flush` then counts, as Tally does."""

    def __init__(self, name: str, meaning: str, bounds: tuple[float, ...]) -> None:
        self._histogram = Spread(f"relay_{name}", meaning, registry=registry, buckets=bounds)
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float, zeros: int = 0) -> None:
        """One value, and so many that are 0."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._counts[0] += zeros
        self._total += value

    def add_zeros(self, count: int) -> None:
        self._counts[0] += count

    def flush(self) -> None:
        counts, self._counts = self._counts, [0] * len(self._counts)
        total, self._total = self._total, 0.0
        if any(counts):
            self._histogram.add(counts, total)


def counter(name: str, meaning: str) -> Counter:
    return Counter(f"relay_{name}", meaning, registry=registry)


def counters(name: str, meaning: str, label: str, names: Iterable[Any]) -> dict[Any, Counter]:
    """One for each value of the label, looked up once; all are there from the beginning, with 0."""
    family = Counter(f"relay_{name}", meaning, [label], registry=registry)
    return {value: family.labels(value) for value in names}


def gauge(name: str, meaning: str, over_workers: Literal["livesum", "livemax"]) -> Gauge:
    return Gauge(f"relay_{name}", meaning, registry=registry, multiprocess_mode=over_workers)


def histogram(name: str, meaning: str, bounds: tuple[float, ...]) -> Histogram:
    return Histogram(f"relay_{name}", meaning, registry=registry, buckets=bounds)


def codes(*families: type[errors.RelayError]) -> list[str]:
    """Those of the classes, and of all that are made from them."""
    found = {kind.code for kind in families}
    for kind in families:
        found.update(codes(*kind.__subclasses__()))
    return sorted(found)


FAILURES = codes(errors.GatewayError, errors.CredentialsError, errors.TurnTimedOut)  # internal_error comes with them
ENDS = [("complete", ""), ("cancelled", ""), ("interrupted", "interrupted"), *(("failed", code) for code in FAILURES)]

turns_begun = Tally(counter("turns_begun", "Turns that were begun."))
_turns_ended = Counter("relay_turns_ended", "Turns that have ended.", ["status", "code"], registry=registry)
# All are there from the beginning, with 0: else the first failure is no increase.
_ends = {end: Tally(_turns_ended.labels(*end)) for end in ENDS}
turns_running = Tally(gauge("turns_running", "Turns that run.", "livesum"))
turns_limit = gauge("turns_limit", "Turns that may run at once (MAX_TURNS, of all workers together).", "livesum")
turn_duration = SpreadTally("turn_duration_seconds", "Time from a turn's beginning to its end.", DURATION)
first_token = SpreadTally("first_token_seconds", "Time from a turn's beginning to its first text.", FIRST_TOKEN)
tokens = Tally(counter("tokens", "Tokens of text that the gateway has sent."))
token_gap = SpreadTally(
    "token_gap_seconds", "Time between two tokens of a turn; 0 for those that come at once.", TOKEN_GAP
)
gateway_retries: Mapping[str, Counter] = counters(
    "gateway_retries",
    "Tries after which the gateway was asked again.",
    "cause",
    codes(errors.RateLimited, errors.GatewayUnavailable, errors.AnswerCut, errors.GatewayUnauthorized),
)
followers = Tally(gauge("followers", "Responses that follow a turn.", "livesum"))
journal_flush = histogram("journal_flush_seconds", "Time that the store took to keep what had come.", FLUSH)
journal_flush_failures = counter("journal_flush_failures", "Flushes that the store refused; they are repeated.")
journal_failing = gauge("journal_failing", "1 while the store is out of order for a worker, else 0.", "livemax")
token_fetches: Mapping[TokenResult, Counter] = counters(
    "access_token_fetches", "Logins at Genesys Cloud, all tries of one together.", "result", get_args(TokenResult)
)
refused: Mapping[str, Counter] = counters(
    "requests_refused", "Requests refused before a stream began.", "code", codes(errors.RelayError)
)
loop_delay = histogram("loop_delay_seconds", "How much too late a worker's timers fire.", DELAY)
cpu_seconds = counter("cpu_seconds", "CPU time of the workers.")
memory = gauge("memory_resident_bytes", "Resident memory of the workers.", "livesum")
workers = gauge("workers", "Workers that live.", "livesum")
build_info = Gauge(
    "relay_build_info",
    "1; the labels tell what runs.",
    ["version", "python"],
    registry=registry,
    multiprocess_mode="livemax",
)

transcript_lag = gauge(
    "transcript_lag_seconds", "Age of the oldest text that the transcript does not have for certain.", "livemax"
)
transcript_links = gauge("transcript_links", "Open links.", "livesum")
transcript_retries: Mapping[RetryCause, Counter] = counters(
    "transcript_retries", "Links that were lost or could not be opened.", "cause", get_args(RetryCause)
)
transcript_messages = Tally(counter("transcript_messages", "Messages sent."))
transcript_characters = Tally(counter("transcript_characters", "Characters of text sent."))
tallies: tuple[Tally | SpreadTally, ...] = (
    *_ends.values(),
    *(turns_begun, turns_running, followers, turn_duration, first_token, tokens, token_gap),
    *(transcript_messages, transcript_characters),
)
transcript_turns_delivered = counter("transcript_turns_delivered", "Turns whose text has arrived whole.")
transcript_turns_parked = counter("transcript_turns_parked", "Turns set aside, their text undelivered.")
transcript_turns_expired = counter("transcript_turns_expired", "Turns given up before their text had arrived whole.")


def note_end(status: str, code: str) -> None:
    """A turn has ended."""
    end = _ends.get((status, code))
    if end is not None:
        end.inc()
    else:  # of a failure that no one thought of
        _turns_ended.labels(status, code).inc()


def note_refusal(code: str) -> None:
    """A request is refused."""
    (refused.get(code) or refused[errors.InternalError.code]).inc()


def tell_build() -> None:
    """Says what runs, in this process."""
    build_info.labels(VERSION, platform.python_version()).set(1)


def flush() -> None:
    """Counts what was added up in this process. To be called a few times a second."""
    for tally in tallies:
        tally.flush()


def exposition(accept: str) -> tuple[bytes, str]:
    """The metrics of all workers, in the format that a client which sends this Accept header reads; and its type."""
    flush()
    encode, content_type = choose_encoder(accept if READABLE.fullmatch(accept) else "")
    shown = registry
    if VARIABLE in os.environ:
        shown = CollectorRegistry()
        MultiProcessCollector(shown)
    return encode(shown), content_type
