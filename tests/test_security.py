"""SECURITY.md keeps its word: each attack names tests, and they are there."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from .conftest import ROOT

TEXT = (ROOT / "SECURITY.md").read_text()
TEST = re.compile(r"`(test_\w+)::(test_\w+)`")


def test_every_test_that_is_named_exists():
    for file, name in TEST.findall(TEXT):
        assert f"def {name}(" in (ROOT / f"tests/{file}.py").read_text(), f"{file}::{name}"


def test_each_attack_names_a_test():
    attacks = [line for line in TEXT.splitlines() if line.startswith("|") and not line.startswith(("|--", "| attack"))]
    assert attacks
    assert all(TEST.search(line.rpartition(" | ")[2]) for line in attacks)


@pytest.fixture
def elsewhere():
    """A gateway that redirects to a place of its own, and notes what comes there."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            self.send_response(307)
            self.send_header("Location", "/stolen")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self):
            self.do_POST()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_gateway_that_redirects_is_sent_no_token(elsewhere, start_relay, prompt):
    url, asked = elsewhere
    relay = start_relay(GENESYS_GATEWAY_URL=f"{url}/chat")
    assert relay.ask(prompt).finish().error["code"] == "gateway_rejected"
    assert asked == ["/chat"]


def test_a_login_that_redirects_is_sent_no_secret(elsewhere, start_relay, prompt):
    url, asked = elsewhere
    relay = start_relay(GENESYS_OAUTH_URL=f"{url}/token", TRANSCRIPT="off")
    assert relay.ask(prompt).finish().error["code"].startswith("credentials_")
    assert set(asked) == {"/token"}
