"""A turn belongs to its caller's trace: in what the gateway gets, in the log, and in spans for a collector."""

import http.server
import re
import secrets
import signal
import subprocess
import sys
import threading
import uuid

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from server import spans
from server.tracing import KNOWN_FLAGS, MAX_STATE, TraceContext, read, under

from .conftest import ROOT, question, until

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
GOOD = {
    PARENT: TraceContext(TRACE, SPAN, 1),
    f"00-{TRACE}-{SPAN}-00": TraceContext(TRACE, SPAN, 0),
    f"00-{TRACE}-{SPAN}-ff": TraceContext(TRACE, SPAN, KNOWN_FLAGS),  # flags that no one knows yet are not passed on
    f"cc-{TRACE}-{SPAN}-01": TraceContext(TRACE, SPAN, 1),
    f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like": TraceContext(TRACE, SPAN, 1),
}
BAD = {
    "none": None,
    "empty": "",
    "version ff": f"ff-{TRACE}-{SPAN}-01",
    "version 00 with more": f"{PARENT}-more",
    "a later version with more that is no more": f"cc-{TRACE}-{SPAN}-01.what",
    "a later version without end": f"cc-{TRACE}-{SPAN}-01-{'a' * 1000}",
    "upper case": PARENT.upper(),
    "a trace of zeros": f"00-{'0' * 32}-{SPAN}-01",
    "a span of zeros": f"00-{TRACE}-{'0' * 16}-01",
    "a trace too short": f"00-{TRACE[1:]}-{SPAN}-01",
    "no flags": f"00-{TRACE}-{SPAN}",
    "two": f"{PARENT},{PARENT}",
    "a space before": f" {PARENT}",
    "a line end behind": f"{PARENT}\n",
    "digits of another script": PARENT.replace("0", "\u0660"),
}
STATES = {
    "congo=t61rcWkgMzE": "congo=t61rcWkgMzE",
    "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
    "a=1 ,\tb=2,,": "a=1,b=2",
    "fw529a3039@dt=FfAAAAA": "fw529a3039@dt=FfAAAAA",
    "a=with space=no": "",
    "a=b c": "a=b c",
    "a=1,a=2": "",
    "A=1": "",
    "a=": "",
    "a": "",
    "a=\r\nEvil: 1": "",
    "a=\u00e9": "",
    ",".join(f"k{i}=1" for i in range(32)): ",".join(f"k{i}=1" for i in range(32)),
    ",".join(f"k{i}=1" for i in range(33)): "",
    "a=" + "b" * MAX_STATE: "",
}


@pytest.mark.parametrize("header", GOOD)
def test_a_valid_traceparent_is_read(header):
    assert read(header, None) == GOOD[header]


@pytest.mark.parametrize("header", BAD.values(), ids=BAD)
def test_an_invalid_traceparent_is_none(header):
    assert read(header, "a=1") is None


@pytest.mark.parametrize(("header", "state"), STATES.items())
def test_a_tracestate_is_passed_on_whole_or_not_at_all(header, state):
    assert read(PARENT, header).state == state


@given(st.text(), st.text())
def test_whatever_comes_only_what_is_valid_goes_out(traceparent, tracestate):
    for found in (read(traceparent, tracestate), read(PARENT, tracestate)):
        for value in found.headers.values() if found else ():
            assert value.isascii()
            assert value.isprintable()


HEX = {size: st.binary(min_size=size, max_size=size).filter(any).map(bytes.hex) for size in (8, 16)}


@given(HEX[16], HEX[8], st.integers(0, KNOWN_FLAGS), st.sampled_from(["", "a=1", "a=1,b=2"]))
def test_what_is_sent_is_read_as_the_same(trace_id, span_id, flags, state):
    context = TraceContext(trace_id, span_id, flags, state)
    assert read(context.headers["traceparent"], context.headers.get("tracestate")) == context


@given(st.none() | st.builds(TraceContext, HEX[16], HEX[8], st.integers(0, KNOWN_FLAGS)), st.binary(min_size=64))
def test_a_span_is_a_new_one_of_its_parents_trace(parent, chance):
    source = iter(chance)
    spare = iter(secrets.token_bytes, b"")  # chance that is all zeros is no id

    def random_hex(size):
        taken = bytes(byte for byte, _ in zip(source, range(size), strict=False))
        return (taken if len(taken) == size else next(spare)[:size]).hex()

    span = under(parent, random_hex)
    assert read(span.headers["traceparent"], None) == span._replace(state="")
    if parent is not None:
        assert (span.trace_id, span.flags) == (parent.trace_id, parent.flags)


@pytest.fixture
def prompt(sandbox):
    prompt = f"question {uuid.uuid4().hex}"
    sandbox.script(prompt, ["Hel", "lo"])
    return prompt


def ask(relay, prompt, **headers):
    body = question(prompt, "")
    answer = requests.post(f"{relay.url}/stream-llm", json=body, headers=headers, timeout=30)
    assert '"status":"complete"' in answer.text
    return answer.headers["X-Stream-Id"]


def calls(sandbox, prompt):
    return [call for call in sandbox.calls()["log"] if call["place"] == "gateway" and prompt in call.get("prompt", "")]


def test_the_gateway_is_asked_in_the_callers_trace_and_the_log_names_it(relay, sandbox, prompt):
    turn = ask(relay, prompt, traceparent=PARENT, tracestate="rojo=1,congo=2")
    (call,) = calls(sandbox, prompt)
    sent = read(call["traceparent"], call["tracestate"])
    assert (sent.trace_id, sent.flags, sent.state) == (TRACE, 1, "rojo=1,congo=2")
    assert sent.span_id != SPAN
    assert relay.logged(turn, "turn ended")["trace"] == TRACE


@pytest.mark.parametrize("headers", [{}, {"traceparent": "00-nonsense", "tracestate": "rojo=1"}])
def test_without_a_valid_traceparent_each_turn_begins_a_trace(relay, sandbox, prompt, headers):
    turns = [ask(relay, prompt, **headers) for _ in range(2)]
    sent = [read(call["traceparent"], call.get("tracestate")) for call in calls(sandbox, prompt)]
    assert len({context.trace_id for context in sent}) == 2
    assert all(context.state == "" for context in sent)
    assert [relay.logged(turn, "turn ended")["trace"] for turn in turns] == [context.trace_id for context in sent]


def test_every_try_is_of_the_same_trace_and_the_retrys_line_names_it(relay, sandbox, prompt):
    sandbox.fault("gateway", "unavailable_503", prompt=prompt, retry_after=0)
    turn = ask(relay, prompt, traceparent=PARENT)
    assert [read(call["traceparent"], None).trace_id for call in calls(sandbox, prompt)] == [TRACE, TRACE]
    assert relay.logged(turn, "gateway failed, trying again")["trace"] == TRACE
    assert relay.logged(turn, "turn ended")["retries"] == 1


class Collector:
    """Takes spans as an OpenTelemetry collector does (OTLP over HTTP)."""

    def __init__(self):
        self.spans = []
        self.services = set()
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def take(self, request):
        for group in request.resource_spans:
            self.services.update(a.value.string_value for a in group.resource.attributes if a.key == "service.name")
            self.spans += [span for scope in group.scope_spans for span in scope.spans]

    def of_trace(self, trace_id):
        return [span for span in list(self.spans) if span.trace_id.hex() == trace_id]

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.stop()


def attributes(span):
    """Numbers and texts; of a list its first."""
    found = {}
    for attribute in span.attributes:
        value = attribute.value
        value = value.array_value.values[0] if value.HasField("array_value") else value
        found[attribute.key] = getattr(value, value.WhichOneof("value"))
    return found


OTEL = {"WEB_CONCURRENCY": "2", "TRANSCRIPT": "off", "LOG_LEVEL": "INFO"}


def test_spans_of_a_turn_and_its_tries_are_exported_by_every_worker(start_relay, sandbox, collector, prompt):
    relay = start_relay(**OTEL, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="100")
    sandbox.fault("gateway", "unavailable_503", prompt=prompt, retry_after=0)
    turn = ask(relay, prompt, traceparent=PARENT, tracestate="rojo=1")
    spans = until(lambda: len(found := collector.of_trace(TRACE)) == 3 and found, "three spans")
    (whole,) = [span for span in spans if span.name == "turn"]
    tries = sorted((span for span in spans if span.name == "chat"), key=lambda span: span.start_time_unix_nano)
    assert whole.parent_span_id.hex() == SPAN
    assert whole.trace_state == "rojo=1"
    assert [event.name for event in whole.events] == ["retry", "first_token"]
    line = relay.logged(turn, "turn ended")
    assert attributes(whole) | {
        "relay.turn": turn,
        "relay.status": "complete",
        "gen_ai.operation.name": "chat",
        "gen_ai.conversation.id": line["conversation"],
        "gen_ai.response.finish_reasons": "stop",
        "gen_ai.usage.output_tokens": line["completion_tokens"],
    } == attributes(whole)
    assert all(span.parent_span_id == whole.span_id for span in tries)
    assert [attributes(span)["http.response.status_code"] for span in tries] == [503, 200]
    assert [attributes(span).get("error.type") for span in tries] == ["gateway_unavailable", None]
    assert attributes(tries[1])["genesys.correlation_id"] == line["correlation"]
    sent = [read(call["traceparent"], None).span_id for call in calls(sandbox, prompt)]
    assert sent == [span.span_id.hex() for span in tries], "each try is the gateway's parent"
    assert collector.services == {"genesys-sse-relay"}
    assert prompt not in str(collector.spans)

    workers = set()
    while workers != set(relay.workers):
        workers.add(relay.logged(ask(relay, prompt), "turn ended")["worker"])
    ended = [line for line in relay.log if line["message"] == "turn ended"]
    until(lambda: all(collector.of_trace(line["trace"]) for line in ended), "spans of both workers")


def test_what_is_left_is_exported_when_a_worker_goes(start_relay, collector, prompt):
    relay = start_relay(**OTEL, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_BSP_SCHEDULE_DELAY="600000")
    ask(relay, prompt, traceparent=PARENT)
    assert not collector.spans
    assert relay.stop(signal.SIGTERM) == 0
    assert len(collector.of_trace(TRACE)) == 2


def test_a_collector_that_is_gone_holds_no_turn_up(start_relay, collector, prompt):
    relay = start_relay(**OTEL, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_BSP_SCHEDULE_DELAY="50")
    for _ in range(3):
        ask(relay, prompt)
    assert relay.stop(signal.SIGTERM) == 0


def test_without_a_collector_nothing_of_opentelemetry_is_imported(relay, prompt):
    ask(relay, prompt)
    for worker in relay.workers:
        with open(f"/proc/{worker}/maps", encoding="utf-8") as maps:  # noqa: PTH123 - not a real file
            assert "google/_upb" not in maps.read(), "protobuf's own library"
    program = (
        "import sys; from server import spans; span = spans.tracer().begin(None, {});"
        "assert span.context.trace_id; assert not any('opentelemetry' in name for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env={"PATH": ""}, check=True)


def test_without_the_extra_a_named_collector_is_warned_of_and_nothing_is_lost(tmp_path):
    (tmp_path / "opentelemetry.py").write_text("raise ImportError")
    program = "from server import spans; assert spans.tracer().begin(None, {}).context.trace_id"
    environment = {"PYTHONPATH": f"{tmp_path}", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    assert re.search("extra `otel` is not installed", done.stderr)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096"),  # more than the queue holds
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "abc"),
    ],
)
def test_a_setting_that_cannot_be_right_costs_the_spans_alone(monkeypatch, caplog, name, value):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    assert spans.tracer.__wrapped__().begin(None, {}).context.trace_id
    (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert line.message.startswith("no spans: OTEL_* cannot be right: ")


def test_the_server_answers_with_such_a_setting_and_quotes_no_header_that_is_written_wrongly(start_relay, prompt):
    relay = start_relay(
        **OTEL,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
        OTEL_EXPORTER_OTLP_HEADERS="x-honeycomb-team:s3cr3tvalue123==,x-other:s3cr3tvalue456",
        OTEL_BSP_MAX_QUEUE_SIZE="0",
    )
    ask(relay, prompt)
    lines = [str(line) for line in relay.log]
    assert any("no spans" in line for line in lines)
    assert any("[hidden]" in line for line in lines), "OpenTelemetry warns of each header"
    assert not any("s3cr3tvalue" in line for line in lines)
