"""Behind a real nginx, set up with the least that it takes: what passes, and what a stranger can make of that."""

import os
import shutil
import socket
import subprocess
from urllib.parse import urlsplit

import pytest
import requests

from .conftest import Answer, RelayServer, question, until
from .test_hardening import AMBIGUOUS, BAD_CHUNKS, CHUNKED, HEAD, SMUGGLED
from .wire import HOST, get, speak, statuses

NGINX = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
NAME = "relay.example"
CONFIG = """
daemon off;
master_process off;
pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_header_timeout 1s;  # some of what the tests send never ends
    client_body_timeout 1s;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream relay {{
        server {relay};
        keepalive 1;  # strangers share a connection: what one of them leaves on it, another meets
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://relay;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_read_timeout 60s;
        }}
        location = /metrics {{ return 403; }}
    }}
}}
"""


class Nginx:
    """Stands before a relay."""

    def __init__(self, relay, folder, config=CONFIG):
        self.relay = relay
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        file = folder / "nginx.conf"
        file.write_text(config.format(relay=urlsplit(relay.url).netloc, port=self.port))
        self._process = subprocess.Popen([NGINX, "-p", folder, "-c", file, "-e", "stderr"], stderr=subprocess.DEVNULL)
        until(self._listens, "nginx listens")

    def _listens(self):
        assert self._process.poll() is None, "nginx ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def ask(self, prompt, host=NAME):
        headers = {"Host": host}
        body = question(prompt, "c-nginx")
        return Answer(requests.post(f"{self.url}/stream-llm", json=body, headers=headers, stream=True, timeout=10))

    def stop(self):
        self._process.terminate()
        self._process.wait(10)


@pytest.fixture(scope="module")
def shared_nginx(shared_sandbox, tmp_path_factory):
    relay = RelayServer(shared_sandbox.url, ALLOWED_HOSTS=NAME, DISCONNECT_GRACE="0")
    nginx = Nginx(relay, tmp_path_factory.mktemp("nginx"))
    yield nginx
    nginx.stop()
    relay.stop()


@pytest.fixture
def nginx(shared_nginx, sandbox):
    return shared_nginx


def test_each_token_comes_through_at_once(nginx, sandbox, prompt):
    sandbox.script(prompt, ["a", "b"], gate=True)
    answer = nginx.ask(prompt)
    assert answer.next_token() == "a"
    sandbox.receipt(prompt, 2)
    assert answer.next_token() == "b"
    assert answer.finish_with_jump().done["status"] == "complete"


def test_a_client_that_leaves_the_proxy_is_noticed(nginx, sandbox, prompt):
    sandbox.script(prompt, ["a", "b"], gate=True)
    answer = nginx.ask(prompt)
    answer.next_token()
    answer.close()
    assert nginx.relay.logged(answer.id, "turn ended")["status"] == "cancelled"


def test_the_name_that_was_asked_for_passes_and_another_does_not(nginx, sandbox, prompt):
    assert nginx.ask(prompt).finish().done["status"] == "complete"
    refused = nginx.ask(prompt, "evil.example").response
    assert refused.status_code == 421
    assert refused.json()["code"] == "host_not_allowed"
    assert sandbox.gateway_calls(prompt) == 1


def test_a_request_that_hides_behind_another_is_not_served_and_no_one_else_gets_its_answer(nginx):
    """What nginx and gunicorn could read in two ways: then the smuggled one would be answered to whoever comes next."""
    inside = HEAD + b"Content-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED + get(b"/healthz")
    attempts = {
        "in a body": inside,
        "in a body that no one reads": inside.replace(b"POST /streams", b"GET /healthz"),
        **AMBIGUOUS,
        **{name: CHUNKED + b"\r\n" + chunks for name, chunks in BAD_CHUNKS.items()},
    }
    del attempts["an endless trailer"]  # nginx refuses it, and reads on
    for name, data in attempts.items():
        received = speak(nginx.url, data + SMUGGLED)
        assert b"relay_" not in received, name
        assert set(statuses(received)) <= {200, 400, 403, 405, 408, 413, 501}, name
        for _ in range(2):
            answer = requests.get(f"{nginx.url}/healthz", headers={"Host": NAME}, timeout=10)
            assert answer.json()["status"] == "ok", name
    until(lambda: "GET /healthz" in nginx.relay.process.output, "the access log")
    assert "/metrics" not in nginx.relay.process.output, "nginx keeps that to itself, and it never got round it"


def test_a_length_that_is_too_short_ends_with_its_own_request(nginx, prompt):
    received = speak(
        nginx.url, HEAD + b"Content-Length: 2\r\n\r\n{}" + prompt.encode() + b" / HTTP/1.1\r\n" + HOST + b"\r\n"
    )
    assert prompt.encode() not in received
    assert prompt not in nginx.relay.process.output


def test_no_stranger_says_from_where_a_request_came_or_what_its_path_is(nginx, prompt):
    forged = [b"X-Forwarded-For: 203.0.113.9", b"X-Real-IP: 203.0.113.9", b"Forwarded: for=203.0.113.9"]
    path = f"/{prompt.split()[1]}".encode()
    assert statuses(speak(nginx.url, get(path, *forged, b"SCRIPT_NAME: /x", b"PATH_INFO: /metrics"))) == [404]
    until(lambda: f'127.0.0.1 \\"GET {path.decode()}\\" 404' in nginx.relay.process.output, "the access log")
    assert "203.0.113.9" not in nginx.relay.process.output
