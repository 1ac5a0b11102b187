"""The link over TLS: the platform's certificate is checked, against the bundle that the environment names."""

import contextlib
import select
import socket
import ssl
import threading
from urllib.parse import urlsplit

import pytest

from server.tls import VARIABLES

from .certificates import make_certificate
from .conftest import until

NO_BUNDLE = dict.fromkeys(VARIABLES, "")  # whatever the machine's own environment says
TOKENS = ["eins ", "zwei ", "drei"]


@pytest.fixture
def certificate(tmp_path):
    """For localhost, signed by itself: the files of certificate and key."""
    return make_certificate(tmp_path)


@contextlib.contextmanager
def tls_in_front_of(url, certificate):
    """Yields the port on which TLS is spoken for the server at `url`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    target = urlsplit(url).hostname, urlsplit(url).port

    def serve(client):
        with (
            contextlib.suppress(OSError),
            context.wrap_socket(client, server_side=True) as inside,
            socket.create_connection(target) as server,
        ):
            other = {inside: server, server: inside}  # one thread: OpenSSL does not take two at a time
            while all(pass_on(source, other[source]) for source in select.select([*other], [], [])[0]):
                pass

    def pass_on(source, sink):
        data = source.recv(65536)
        sink.sendall(data)
        return bool(data)

    def accept():
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_certificate_of_the_bundle_is_trusted(start_relay, sandbox, prompt, conversation, certificate, variable):
    sandbox.script(prompt, TOKENS)
    with tls_in_front_of(sandbox.url, certificate) as port:
        place = f"wss://localhost:{port}/v2/conversations/websockets"
        relay = start_relay(GENESYS_TRANSCRIPT_URL=place, **NO_BUNDLE | {variable: str(certificate[0])})
        relay.ask(prompt, conversation).finish()
        until(lambda: sandbox.text_of(conversation) == "".join(TOKENS), "the transcript")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_another_certificate_or_another_name_is_not(start_relay, sandbox, prompt, conversation, certificate, host):
    sandbox.script(prompt, TOKENS)
    trusted = {"SSL_CERT_FILE": str(certificate[0])} if host == "127.0.0.1" else {}
    with tls_in_front_of(sandbox.url, certificate) as port:
        place = f"wss://{host}:{port}/v2/conversations/websockets"
        relay = start_relay(GENESYS_TRANSCRIPT_URL=place, **NO_BUNDLE | trusted)
        assert relay.ask(prompt, conversation).finish().text == "".join(TOKENS), "the client has its answer"
        (line, *_) = until(lambda: [e for e in relay.log if "link lost" in e["message"]], "the log line")
        assert line["detail"] == "handshake failed: SSLCertVerificationError"
        assert sandbox.text_of(conversation) == ""
