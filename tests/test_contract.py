"""The server does what its OpenAPI document says, whatever is sent: thousands of requests that Schemathesis makes up.

`--hypothesis-profile=thorough` makes up ten times as many.
"""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from server.access.keys import make_key
from server.routes.openapi import document

from .conftest import RelayServer, Sandbox, until
from .visitor import JSON, SSE, Visitor, path_of

pytestmark = pytest.mark.timeout(1200)  # seconds; a thorough run takes minutes
CASES = 4 * settings().max_examples  # of each operation that takes something
TAKEN = ["2xx", 404, 422]  # 404: made up; 422: an Idempotency-Key that came before
CONFIG = schemathesis.Config.from_dict(
    {
        "checks": {
            "positive_data_acceptance": {"expected-statuses": TAKEN},
            "negative_data_rejection": {"expected-statuses": [400, 401, 404, 405, 413, 415, 422]},
        },
        "operations": [
            {
                "include-path": "/streams/{stream_id}",
                "checks": {
                    # A cursor that can be may still be none of this stream.
                    "positive_data_acceptance": {"expected-statuses": [*TAKEN, 400]},
                    # Of two cursors the header counts, and JSON takes none.
                    "negative_data_rejection": {"enabled": False},
                    # A wrong ticket is answered with 404: see test_access.
                    "ignored_auth": {"enabled": False},
                },
            }
        ],
        "generation": {"with-security-parameters": False},  # the key below; a check tries without and with others
        "output": {"sanitization": {"enabled": False}},
    }
)
schema = schemathesis.openapi.from_dict(document(), config=CONFIG)


class Server:
    """A relay that asks for a key, the key, and a stream that has ended."""

    def __init__(self, sandbox):
        key = make_key("ann")
        self.authorization = f"Bearer {key.key}"
        self.relay = RelayServer(
            sandbox.url,
            ACCESS="keys",
            RELAY_API_KEYS=key.entry,
            DEFAULT_CONVERSATION_ID="c-default",
            LOG_LEVEL="INFO",
        )
        ann = Visitor(self.relay, key.key)
        stream = ann.begin("Hello")
        until(lambda: ann.get(path_of(stream)).json()["status"] == "complete", "the answer is complete")
        self.stream_id = stream["id"]


@pytest.fixture(scope="module")
def server():
    sandbox = Sandbox(SANDBOX_PACE_MS="0")
    server = Server(sandbox)
    yield server
    server.relay.stop()
    sandbox.process.stop()


many = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck))


@schema.parametrize()
@many
def test_every_answer_is_as_the_document_says(case, server):
    check(case, server)


@given(
    case=st.one_of([schema["/streams/{stream_id}"]["GET"].as_strategy(mode) for mode in schemathesis.GenerationMode]),
    accept=st.sampled_from([SSE, JSON, "*/*", "text/html", "?"]),
)
@many
def test_a_stream_that_is_there_is_answered_as_the_document_says(case, server, accept):
    case.path_parameters["stream_id"] = server.stream_id
    case.headers["Accept"] = accept
    check(case, server)


def check(case, server):
    headers = {"Authorization": server.authorization}
    answer = case.call_and_validate(
        base_url=server.relay.url,
        headers=headers,
        timeout=30,
        excluded_checks=[] if is_printable(case.body) else [positive_data_acceptance],
    )
    assert answer.status_code < 500


def is_printable(body):
    """What JSON Schema has no words for, and the server demands of these."""
    fields = body if isinstance(body, dict) else {}
    metadata = fields.get("metadata") if isinstance(fields.get("metadata"), dict) else {}
    named = [fields.get("conversationId"), fields.get("model"), metadata.get("conversation_id")]
    return all(str(value).isprintable() for value in named)
