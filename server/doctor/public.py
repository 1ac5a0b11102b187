"""A running server, asked through its public address: what stands between, and what it does to a stream.

One short question is asked, in a conversation that is made up and erased afterwards, unless one is named; its answer
goes into that conversation's transcript.
"""

import json
import os
import secrets
import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

import gevent
import requests
from gevent.socket import create_connection
from urllib3.exceptions import HTTPError

from ..settings import WEB, check_address, is_loopback
from ..sse_reader import StreamReader
from ..tls import tls_context
from ..transcript.api import Bearer
from .arrival import Arrival, Reception, judge
from .finding import Check, Outcome, bad, doubtful, good
from .network import OURS, connection_of, port_of, ways
from .words import MAX_CODE

TIMEOUT = (5.0, 20.0)  # seconds to connect, and between two bytes: pings come each 15
ANSWER_TIMEOUT = 25.0  # seconds for the whole answer
BLOCK_SIZE = 64 * 1024  # bytes a read
MAX_TOKENS = 120  # of the answer
LOOKS = 3  # requests that measure the way to and fro
PLACE = "/openapi.json"  # readable from outside without a key; deploy/nginx.conf keeps /healthz inside
QUESTION = "This is a test of the line. Please count to 30, in digits with spaces between, and say nothing else."


class Unexpected(Exception):
    """There was no stream: what came instead, and what to do."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.found)
        self.outcome = outcome


class Visit:
    """A caller of the public address."""

    def __init__(self, url: str, key: str | None, conversation: str | None) -> None:
        self.url = url.rstrip("/")
        self.conversation = conversation or f"relay-doctor-{secrets.token_hex(8)}"
        self._is_ours = conversation is None
        self._asked = False
        self.reception: Reception | None = None
        self._session = requests.Session()
        self._session.verify = os.environ.get("SSL_CERT_FILE") or True  # REQUESTS_CA_BUNDLE goes first
        if key is not None:
            self._session.auth = Bearer(key)

    def get(self, path: str) -> requests.Response:
        return self._session.get(f"{self.url}{path}", timeout=TIMEOUT, allow_redirects=False)

    def ask(self) -> Reception:
        """Asks the question. Raises Unexpected."""
        self._asked = True
        body = {"conversationId": self.conversation, "prompt": QUESTION, "max_tokens": MAX_TOKENS}
        self.reception = self._receive("POST", "/stream-llm", json=body)
        return self.reception

    def resume(self, stream_id: str, after: int) -> Reception:
        """Follows a stream from behind an event. Raises Unexpected."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        return self._receive("GET", f"/streams/{quote(stream_id, safe='')}", headers=headers)

    def close(self) -> None:
        """Erases what was asked, where no one else can have asked."""
        if self._asked and self._is_ours:
            with suppress(requests.RequestException):
                path = f"/conversations/{quote(self.conversation, safe='')}"
                self._session.delete(f"{self.url}{path}", timeout=TIMEOUT, allow_redirects=False).close()
        self._session.close()

    def _receive(self, method: str, path: str, **more: Any) -> Reception:
        options: dict[str, Any] = {"timeout": TIMEOUT, "allow_redirects": False, "stream": True} | more
        reception, reader = Reception(time.monotonic()), StreamReader()
        try:
            with (
                gevent.Timeout(ANSWER_TIMEOUT, TimeoutError()),
                self._session.request(method, f"{self.url}{path}", **options) as response,
            ):
                reception.headers = response.headers
                if response.status_code != 200 or "text/event-stream" not in response.headers.get("Content-Type", ""):
                    raise Unexpected(no_stream(response))
                while piece := response.raw.read1(BLOCK_SIZE, decode_content=True):
                    reception.arrivals.append(Arrival(time.monotonic(), reader.feed(piece)))
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            kind = type(error).__name__
            raise Unexpected(
                bad(f"the stream broke off ({kind})", "What stands between must let a response last for minutes.")
            ) from None
        return reception


def checks(visit: Visit) -> Iterator[Check]:
    try:
        check_address(visit.url, WEB)
    except ValueError as error:
        outcome = bad(f"--url {error}", "Give the address as clients have it, such as https://relay.example.")
        yield Check("public address", lambda: outcome)
        return
    yield from ways({"public address": visit.url}, OURS)
    way = connection_of(visit.url)
    yield Check("public: health", partial(health, visit), (way,))
    yield Check("public: TLS", partial(tried, transport, visit), ("public: health",))
    yield Check("public: stream", partial(tried, stream, visit), ("public: health",))
    yield Check("public: resuming", partial(tried, resuming, visit), ("public: stream",))
    yield Check("public: /metrics", partial(tried, metrics, visit), ("public: health",))


def tried(look: Callable[[Visit], Outcome], visit: Visit) -> Outcome:
    try:
        return look(visit)
    except Unexpected as unexpected:
        return unexpected.outcome
    except requests.RequestException as error:
        return bad(f"no answer ({type(error).__name__})", "See what stands between, and try again.")


def health(visit: Visit) -> Outcome:
    try:
        response = visit.get(PLACE)
        said = response.json()
    except (requests.RequestException, ValueError) as error:
        return bad(
            f"no relay answers there ({type(error).__name__})", "Point the proxy at BIND, and give the right --url."
        )
    if response.status_code == 421:
        return bad(
            "the server does not go by that name",
            f"Set ALLOWED_HOSTS={urlsplit(visit.url).hostname}, and have the proxy pass the name (`proxy_set_header "
            "Host $host`).",
        )
    if response.status_code != 200 or not isinstance(said, dict) or "/stream-llm" not in (said.get("paths") or {}):
        return bad(f"no relay answers there (HTTP {response.status_code})", "Point the proxy at BIND.")
    return good(f"it answers within {response.elapsed.total_seconds() * 1000:.0f} ms")


def transport(visit: Visit) -> Outcome:
    """TLS, what browsers are told of it, and the HTTP that is spoken."""
    parts = urlsplit(visit.url)
    response = visit.get(PLACE)
    if response.raw.version < 11:
        return doubtful("HTTP/1.0 is spoken: no stream can be told from one that broke off", "Have it speak HTTP/1.1.")
    if parts.scheme != "https":
        if is_loopback(parts.hostname or ""):
            return good("plain HTTP, on this machine")
        return doubtful("plain HTTP: keys and answers can be read on the way", "Put TLS in front, and ask by https://.")
    version = spoken(parts.hostname or "", port_of(parts))
    if "Strict-Transport-Security" not in response.headers:
        return doubtful(
            f"{version}, but no Strict-Transport-Security: a browser's first visit can be led astray",
            'In nginx: add_header Strict-Transport-Security "max-age=31536000" always;',
        )
    if version != "HTTP/2":
        return good(f"{version}: a browser opens six streams at most there (`http2 on;` in nginx lifts that)")
    return good(version)


def spoken(host: str, port: int) -> str:
    """The newest HTTP that is offered over TLS (RFC 7301)."""
    context = tls_context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        with (
            create_connection((host, port), TIMEOUT[0]) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            return "HTTP/2" if connection.selected_alpn_protocol() == "h2" else "HTTP/1.1"
    except (OSError, ssl.SSLError):  # there is a proxy on the way out
        return "HTTP/1.1"


def stream(visit: Visit) -> Outcome:
    way = statistics.median(visit.get(PLACE).elapsed.total_seconds() for _ in range(LOOKS))
    return judge(visit.ask(), way)


def resuming(visit: Visit) -> Outcome:
    """Takes the stream up in its middle, as EventSource does."""
    assert visit.reception is not None
    ids = [event.id for event in visit.reception.events if event.id is not None]
    stream_id = visit.reception.headers.get("X-Stream-Id", "")
    if not stream_id or len(ids) < 2:
        return bad("the header X-Stream-Id was taken away", "Have the proxy pass X-Stream-Id on.")
    middle = ids[len(ids) // 2 - 1]
    again = visit.resume(stream_id, middle)
    seen = [event.id for event in again.events if event.id is not None]
    if seen != [number for number in ids if number > middle]:
        first = seen[0] if seen else "nothing"
        return bad(
            f"asked for what follows event {middle}, and got {first}",
            "Have the proxy pass the header Last-Event-ID on, and cache nothing (`proxy_cache off`).",
        )
    return good(f"taken up behind event {middle} of {ids[-1]}")


def metrics(visit: Visit) -> Outcome:
    response = visit.get("/metrics")
    if response.status_code == 200 and is_loopback(urlsplit(visit.url).hostname or ""):
        return good("readable here, without a key: keep it from the outside")
    if response.status_code == 200:
        return doubtful(
            "/metrics can be read through this address, without a key",
            "Keep it inside: `location = /metrics { deny all; }` in nginx.",
        )
    return good(f"kept inside (HTTP {response.status_code})")


def no_stream(response: requests.Response) -> Outcome:
    """What a refusal of the question means."""
    status = response.status_code
    said = read_refusal(response)
    fix = "Point the proxy at the server, for every path, and pass bodies and headers on unchanged."
    if status == 401:
        fix = "Give a key that this server knows: --key KEY, or RELAY_KEY in the environment."
    elif status == 403:
        fix = "Name a conversation that the token is good for: --conversation ID."
    elif status == 429:
        fix = "Wait for as long as it says; or use a key whose allowance is not spent."
    elif status >= 500:
        fix = "See the server's log for this code, and `When something breaks` in its README."
    return bad(f"no stream came (HTTP {status}){said}", fix)


def read_refusal(response: requests.Response) -> str:
    """Its code: the sentence beside it tells a client what to do, not an operator."""
    with suppress(HTTPError, OSError, ValueError, RecursionError):
        said = json.loads(response.raw.read(BLOCK_SIZE, decode_content=True))
        if isinstance(said, dict) and isinstance(said.get("code"), str):
            return f": {said['code'][:MAX_CODE]}"
    return ""
