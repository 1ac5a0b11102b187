"""The connections to the gateway, where it takes raw sockets to make them go wrong; and the way through proxies."""

import gc
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
import time
from base64 import b64encode
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import gevent
import pytest

from server import connections, tls
from server.connections import Connections
from server.dial import Proxy, proxy_for
from server.settings import SettingsError

from .certificates import make_certificate
from .conftest import ROOT, until

CHAT = "/api/v2/ai/llm/gateway/chat"
ANSWER = b'data: {"choices":[{"delta":{"content":"Hello"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Listener:
    """A server of raw sockets; `serve(sock, number)` has each connection in a thread, `number` counts them from 1."""

    def __init__(self, serve, receive_buffer=None):
        self._serve = serve
        self._listener = socket.socket()
        if receive_buffer:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.address = "{}:{}".format(*self._listener.getsockname())
        self.url = f"http://{self.address}"
        self.accepted = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.accepted.append(sock)
                threading.Thread(target=self._run, args=(sock, len(self.accepted)), daemon=True).start()

    def _run(self, sock, number):
        with suppress(OSError):
            self._serve(sock, number)

    def close(self):
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self.accepted:
            sock.close()


@pytest.fixture
def listen():
    """Starts Listeners; closes them after the test."""
    started = []

    def start(serve, **options):
        started.append(Listener(serve, **options))
        return started[-1]

    yield start
    for listener in started:
        listener.close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def read_request(sock):
    """The head and body of the next request; b"" when there is none."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = sock.recv(65536)
        if not piece:
            return b""
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while len(body) < int(lengths[0] if lengths else 0):
        body += sock.recv(65536)
    return head + b"\r\n\r\n" + body


def answer_all(sock, number):
    while read_request(sock):
        sock.sendall(OK)


def ask(pool):
    """One question and its whole answer."""
    answer = pool.post({}, b"{}")
    body = b"".join(iter(answer.read_some, b""))
    answer.release()
    return body


def test_a_connection_is_used_again(listen):
    gateway = listen(answer_all)
    pool = Connections(gateway.url, keep=10)
    assert [ask(pool) for _ in range(3)] == [ANSWER] * 3
    assert len(gateway.accepted) == 1


def test_a_connection_is_used_again_above_descriptor_1023(listen):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1300:
        pytest.skip("this system does not allow so many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1300), hard))
    gc.collect()  # else what earlier tests left gives room below, later
    spare = []

    def answers_high_up():
        """False where the threads of an earlier test have given room below meanwhile."""
        while not spare or spare[-1] < 1050:
            spare.append(os.open(os.devnull, os.O_RDONLY))
        gateway = listen(answer_all)
        pool = Connections(gateway.url, keep=10)
        assert [ask(pool) for _ in range(3)] == [ANSWER] * 3
        assert len(gateway.accepted) == 1
        return gateway.accepted[0].fileno() > 1023

    try:
        until(answers_high_up, "a connection is above")
    finally:
        for fileno in spare:
            os.close(fileno)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_connection_that_lay_idle_too_long_is_not_used_again(listen, monkeypatch):
    monkeypatch.setattr(connections, "IDLE_LIFE", 0.1)
    gateway = listen(answer_all)
    pool = Connections(gateway.url, keep=10)
    ask(pool)
    time.sleep(0.2)
    ask(pool)
    assert len(gateway.accepted) == 2
    until(lambda: gateway.accepted[0].recv(1, socket.MSG_PEEK) == b"", "the first one is closed")


def test_a_connection_that_the_gateway_has_closed_is_not_used_again(listen):
    def serve(sock, number):
        read_request(sock)
        sock.sendall(OK)
        sock.close()

    gateway = listen(serve)
    pool = Connections(gateway.url, keep=10)
    ask(pool)
    time.sleep(0.1)
    assert ask(pool) == ANSWER


def test_a_failure_after_the_first_byte_is_not_repeated(listen):
    def serve(sock, number):
        read_request(sock)
        sock.sendall(OK)
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-")
        sock.shutdown(socket.SHUT_RDWR)

    gateway = listen(serve)
    pool = Connections(gateway.url, keep=10)
    ask(pool)
    with pytest.raises((OSError, connections.HTTPParseError)):
        ask(pool)
    assert len(gateway.accepted) == 1


def test_what_follows_an_answer_unasked_answers_no_question(listen):
    def serve(sock, number):
        while read_request(sock):
            sock.sendall(OK + (OK.replace(b"Hello", b"Wrong") if number == 1 else b""))

    gateway = listen(serve)
    pool = Connections(gateway.url, keep=10)
    assert [ask(pool), ask(pool)] == [ANSWER] * 2
    assert len(gateway.accepted) == 2


def test_an_early_refusal_is_heard_though_the_request_was_not_read(listen):
    refusal = b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

    def serve(sock, number):
        sock.recv(100)
        sock.sendall(refusal)
        sock.shutdown(socket.SHUT_WR)
        time.sleep(0.5)

    pool = Connections(listen(serve, receive_buffer=4096).url, keep=10)
    assert pool.post({}, b"x").status_code == 413


def test_the_kernel_is_told_to_find_out_about_silent_deaths(listen):
    answer = Connections(listen(answer_all).url, keep=10).post({}, b"{}")
    assert answer._sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert answer._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 15_000


def test_a_header_that_would_break_out_of_its_line_is_not_sent(listen):
    gateway = listen(answer_all)
    with pytest.raises(ValueError, match="control characters"):
        Connections(gateway.url, keep=10).post({"Authorization": "Bearer a\r\nHost: other"}, b"{}")
    assert not gateway.accepted


@pytest.mark.parametrize("stuck", ["sending", "waiting"])
def test_a_turn_that_is_ended_while_it_asks_leaves_no_connection_behind(listen, stuck):
    def serve(sock, number):
        if number == 1:
            closed.wait(20)
        answer_all(sock, number)

    closed = threading.Event()
    gateway = listen(serve, receive_buffer=4096)
    pool = Connections(gateway.url, keep=1)
    body = b"x" * (16 * 1024 * 1024 if stuck == "sending" else 1)
    asking = gevent.spawn(pool.post, {}, body)
    gevent.sleep(0.5)
    asking.kill()  # throws GreenletExit, as a cancelled turn does
    assert open_connections(gateway) == 0
    assert ask(pool) == ANSWER
    closed.set()


def open_connections(gateway):
    """Those that this process has towards the gateway."""
    table = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    port = f"{int(gateway.address.rpartition(':')[2]):04X}"
    return sum(row[2].endswith(f":{port}") and row[3] == "01" for row in table)  # 01: established


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "https://gateway.test/chat", None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "https://gateway.test/chat", Proxy("proxy", 3128, None, None)),
        ({"HTTPS_PROXY": "http://proxy"}, "https://gateway.test/chat", Proxy("proxy", 80, None, None)),
        ({"HTTPS_PROXY": "proxy:8080"}, "https://gateway.test/chat", Proxy("proxy", 8080, None, None)),
        ({"HTTPS_PROXY": "http://u:p%40ss@proxy"}, "https://gateway.test/chat", Proxy("proxy", 80, "u", "p@ss")),
        ({"HTTPS_PROXY": "http://[::1]:3128"}, "https://gateway.test/chat", Proxy("::1", 3128, None, None)),
        ({"HTTP_PROXY": "http://proxy"}, "https://gateway.test/chat", None),
        ({"ALL_PROXY": "http://proxy"}, "https://gateway.test/chat", Proxy("proxy", 80, None, None)),
        ({"HTTPS_PROXY": "http://proxy", "NO_PROXY": ".test"}, "https://gateway.test/chat", None),
        ({"HTTPS_PROXY": "http://proxy"}, "wss://socket.test/v2", Proxy("proxy", 80, None, None)),
        ({"HTTP_PROXY": "http://proxy"}, "ws://socket.test/v2", Proxy("proxy", 80, None, None)),
    ],
)
def test_the_environment_says_which_proxy_holds_for_an_address(monkeypatch, environment, url, proxy):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url) == proxy


@pytest.mark.parametrize("proxy", ["https://user:hunter2@proxy", "socks5h://proxy:1080", "http://proxy:x", "http://"])
def test_a_proxy_that_cannot_be_used_is_refused_at_the_start(proxy):
    environment = {"PATH": os.environ["PATH"], "HTTPS_PROXY": proxy, "GATEWAY_API_KEY": "key", "TRANSCRIPT": "off"}
    environment["ACCESS"] = "open"
    command = [sys.executable, "-c", "import server; server.create_app()"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode
    assert "The proxy for acme.mypurecloud.com" in ended.stderr.splitlines()[-1]
    assert "HTTPS_PROXY" in ended.stderr.splitlines()[-1]
    assert "hunter2" not in ended.stderr


def test_a_proxys_password_is_not_shown():
    assert "hunter2" not in repr(Proxy("proxy", 80, "user", "hunter2"))
    with pytest.raises(SettingsError) as refused, environment_of(HTTPS_PROXY="socks5://user:hunter2@proxy"):
        proxy_for("https://gateway.test")
    assert "hunter2" not in str(refused.value)


@contextmanager
def environment_of(**variables):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def test_a_proxy_without_a_tunnel_gets_the_whole_address_and_the_credentials(listen, start_relay):
    heads = []

    def serve(sock, number):
        heads.append(read_request(sock))
        sock.sendall(OK)

    proxy = listen(serve)
    relay = start_relay(
        GENESYS_GATEWAY_URL="http://gateway.test:8080/chat?a=b",
        HTTP_PROXY=f"http://user:p%40ss@{proxy.address}",
        GATEWAY_API_KEY="key",
        TRANSCRIPT="off",
    )
    assert relay.ask("Hello").finish().text == "Hello"
    assert heads[0].startswith(b"POST http://gateway.test:8080/chat?a=b HTTP/1.1\r\nHost: gateway.test:8080\r\n")
    assert b"\r\nProxy-Authorization: Basic " + b64encode(b"user:p@ss") in heads[0]


@pytest.fixture
def certificate(tmp_path):
    """For gateway.test, signed by itself: the files of certificate and key."""
    return make_certificate(tmp_path, "gateway.test")


class TunnelProxy:
    """A CONNECT proxy; behind it, where gateway.test would be, TLS in front of the sandbox."""

    def __init__(self, sandbox_url, certificate):
        self.heads = []
        self._sandbox = urlsplit(sandbox_url)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate)

    def __call__(self, sock, number):
        self.heads.append(read_request(sock))
        sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        inside = self._context.wrap_socket(sock, server_side=True)
        with socket.create_connection((self._sandbox.hostname, self._sandbox.port)) as gateway:
            while request := read_request(inside):
                gateway.sendall(request)
                received = b""
                while not received.endswith(b"0\r\n\r\n"):
                    piece = gateway.recv(65536)
                    received += piece
                    inside.sendall(piece)


def test_the_gateway_is_reached_through_a_tunnel_and_its_certificate_is_checked(
    listen, start_relay, sandbox, prompt, certificate
):
    serve = TunnelProxy(sandbox.url, certificate)
    settings = {
        "GENESYS_GATEWAY_URL": f"https://gateway.test{CHAT}",
        "HTTPS_PROXY": f"http://user:pass@{listen(serve).address}",
        "GATEWAY_MAX_RETRIES": "1",
    }
    sandbox.script(prompt, ["eins ", "zwei"])
    relay = start_relay(**settings, REQUESTS_CA_BUNDLE=str(certificate[0]))
    assert [relay.ask(prompt).finish().text for _ in range(3)] == ["eins zwei"] * 3
    assert len(serve.heads) == 1, "the tunnel is used again"
    assert serve.heads[0].startswith(b"CONNECT gateway.test:443 HTTP/1.1\r\nHost: gateway.test:443\r\n")
    assert b"\r\nProxy-Authorization: Basic " + b64encode(b"user:pass") in serve.heads[0]

    result = start_relay(**settings).ask(prompt).finish()
    assert result.error["code"] == "gateway_unavailable", "an unknown certificate is not trusted"


@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", b"", b"\r\n\r\n", b"x" * 100_000]
)
def test_a_proxy_that_refuses_is_a_gateway_out_of_reach(listen, start_relay, reply):
    def serve(sock, number):
        read_request(sock)
        sock.sendall(reply)
        sock.close()

    relay = start_relay(
        GENESYS_GATEWAY_URL="https://gateway.test/chat",
        HTTPS_PROXY=listen(serve).url,
        GATEWAY_API_KEY="key",
        TRANSCRIPT="off",
        GATEWAY_MAX_RETRIES="1",
    )
    result = relay.ask("Hello").finish()
    assert result.error["code"] == "gateway_unavailable"
    assert relay.logged(result.id, "turn failed")["detail"] == "ProxyRefused"


def test_without_a_bundle_of_the_system_the_one_of_requests_is_used(monkeypatch, tmp_path):
    for name in tls.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    nothing = ssl.DefaultVerifyPaths(None, str(tmp_path), "", "", "", "")
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: nothing)
    assert tls.tls_context().cert_store_stats()["x509_ca"] > 50


def test_the_bundle_that_is_named_is_the_only_one(monkeypatch, certificate):
    for name in tls.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    assert tls.tls_context().cert_store_stats()["x509"] == 1
