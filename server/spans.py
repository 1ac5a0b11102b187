"""Spans of OpenTelemetry, where the optional extra is installed and OTEL_* names a collector; else trace ids alone.

A span a turn, under it one for each try at the gateway. No prompt and no answer is in them. Attributes are named as in
OpenTelemetry's semantic conventions for generative AI, where these have a name.
"""

import logging
import os
from collections.abc import Mapping
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote

import gevent

from . import tracing
from .prompt import Prompt
from .telemetry import hide_for_good, redact
from .tracing import TraceContext
from .version import VERSION

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import SpanKind

log = logging.getLogger(__name__)

HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
SERVICE = "genesys-sse-relay"
PROVIDER = "genesys.cloud"  # none that the conventions name
LAST_EXPORT = 1.0  # seconds for what is left when the worker goes

Value = str | int | float | list[str] | None
Attributes = Mapping[str, Value]  # what is None is left away


class Span(Protocol):
    """Something that takes a while, in a trace."""

    @property
    def context(self) -> TraceContext:
        """For headers of what is asked of others meanwhile."""

    def child(self, name: str, attributes: Attributes) -> "Span":
        """A call to someone else, as a part of this."""

    def note(self, event: str, attributes: Attributes | None = None) -> None:
        """Something that happens at this moment."""

    def set(self, attributes: Attributes) -> None:
        """What has become known of it."""

    def end(self, error: str | None) -> None:
        """It has ended, with an error's code or well. To be called once."""


class Tracer(Protocol):
    def begin(self, parent: TraceContext | None, attributes: Attributes) -> Span:
        """A turn, in the trace of whoever asks, or in one of its own. One that is never ended is told to no one."""

    def flush(self) -> None:
        """The process is about to go: exports what is left; bounded."""


class PlainSpan:
    """Ids to be passed on and logged; nothing is recorded."""

    def __init__(self, context: TraceContext) -> None:
        self.context = context

    def child(self, name: str, attributes: Attributes) -> "PlainSpan":
        return self

    def note(self, event: str, attributes: Attributes | None = None) -> None:
        pass

    def set(self, attributes: Attributes) -> None:
        pass

    def end(self, error: str | None) -> None:
        pass


class PlainTracer:
    """Made in the worker, after its fork: no two have the same numbers."""

    def __init__(self) -> None:
        # An id is no secret (W3C Trace Context, 3.2.2.5), and the kernel's random bytes are a system call each.
        self._random = Random()  # noqa: S311

    def begin(self, parent: TraceContext | None, attributes: Attributes) -> PlainSpan:
        return PlainSpan(tracing.under(parent, self._random_hex))

    def _random_hex(self, size: int) -> str:
        return self._random.randbytes(size).hex()

    def flush(self) -> None:
        pass


class RecordedSpan:
    def __init__(self, tracer: "RecordingTracer", span: "OtelSpan") -> None:
        self._tracer = tracer
        self._span = span

    @property
    def context(self) -> TraceContext:
        own = self._span.get_span_context()
        state = own.trace_state.to_header()
        return TraceContext(f"{own.trace_id:032x}", f"{own.span_id:016x}", int(own.trace_flags), state)

    def child(self, name: str, attributes: Attributes) -> "RecordedSpan":
        return self._tracer.start(name, self._tracer.kinds.CLIENT, self._span, attributes)

    def note(self, event: str, attributes: Attributes | None = None) -> None:
        self._span.add_event(event, known(attributes or {}))

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(known(attributes))

    def end(self, error: str | None) -> None:
        if error is not None:
            self._span.set_status(self._tracer.failed, error)
            self._span.set_attribute("error.type", error)
        self._span.end()


class RecordingTracer:
    """Exports in batches, from a thread that gevent has made a greenlet. Made in the worker, after its fork."""

    def __init__(self) -> None:
        """Raises ImportError without the extra."""
        from opentelemetry import trace  # noqa: PLC0415 - optional, and only in a worker that has patched
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

        hide_for_good(*header_values(os.environ))
        resource = Resource.create({"service.version": VERSION} | own_name())
        self._provider: TracerProvider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer(SERVICE, VERSION)
        self._trace = trace
        self.kinds: type[SpanKind] = trace.SpanKind
        self.failed = trace.StatusCode.ERROR

    def begin(self, parent: TraceContext | None, attributes: Attributes) -> RecordedSpan:
        return self.start("turn", self.kinds.SERVER, None if parent is None else self._remote(parent), attributes)

    def start(self, name: str, kind: "SpanKind", parent: "OtelSpan | None", attributes: Attributes) -> RecordedSpan:
        # Said explicitly: what is current in a greenlet is the host app's, if anyone's.
        context = self._trace.set_span_in_context(parent or self._trace.INVALID_SPAN)
        return RecordedSpan(self, self._tracer.start_span(name, context, kind, known(attributes)))

    def _remote(self, parent: TraceContext) -> "OtelSpan":
        flags, state = self._trace.TraceFlags(parent.flags), self._trace.TraceState.from_header([parent.state])
        ids = int(parent.trace_id, 16), int(parent.span_id, 16)
        return self._trace.NonRecordingSpan(self._trace.SpanContext(*ids, True, flags, state))

    def flush(self) -> None:
        with gevent.Timeout(LAST_EXPORT, False):
            self._provider.force_flush(int(LAST_EXPORT * 1000))


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Whether OTEL_* names a collector, and does not switch traces off."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(environment.get(name) for name in ENDPOINTS)


def header_values(environment: Mapping[str, str]) -> list[str]:
    """What the collector lets us in by; whole pairs as well, for OpenTelemetry quotes those that it cannot read."""
    pairs = ",".join(environment.get(name, "") for name in HEADERS).split(",")
    values = [pair.partition("=")[2] for pair in pairs]
    return [text.strip() for text in (*pairs, *values, *map(unquote, values))]


def own_name() -> dict[str, str]:
    """What the service is called, unless OTEL_* says it."""
    is_said = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return {} if is_said else {"service.name": SERVICE}


def known(attributes: Attributes) -> dict[str, str | int | float | list[str]]:
    return {name: value for name, value in attributes.items() if value is not None}


@cache
def tracer() -> Tracer:
    """The process's one. To be called first in the worker, once it has been forked."""
    if not is_wanted(os.environ):
        return PlainTracer()
    try:
        return RecordingTracer()
    except ImportError:
        log.warning("no spans: OTEL_* names a collector, but the extra `otel` is not installed")
    except Exception as error:  # noqa: BLE001 - whatever OpenTelemetry makes of its settings: answers matter more
        log.error("no spans: OTEL_* cannot be right: %s", redact(str(error)))  # noqa: TRY400 - no trace needed
    return PlainTracer()


def of_prompt(turn_id: str, conversation_id: str | None, prompt: Prompt, default_model: str | None) -> Attributes:
    return {
        "relay.turn": turn_id,
        "gen_ai.operation.name": "chat",
        "gen_ai.conversation.id": conversation_id,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": prompt.model or default_model,
        "gen_ai.request.temperature": prompt.temperature,
        "gen_ai.request.max_tokens": prompt.max_tokens,
    }
