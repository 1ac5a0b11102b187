"""A running relay, asked over HTTP as its clients ask it; a connection that breaks is taken up again."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from random import random
from typing import Any, NamedTuple
from urllib.parse import urljoin

import orjson
import requests
from urllib3.exceptions import HTTPError

from .backoff import full_jitter, retry_after
from .sse_reader import Received, StreamReader
from .telemetry import hide_for_good
from .transcript.api import Bearer

TIMEOUT = (5.0, 45.0)  # seconds to connect, and between two bytes: a server sends a ping each 15
CANCEL_TIMEOUT = 5.0  # seconds for a cancellation to be told
BEGIN_TRIES = 3  # to begin a stream
TRIES = 8  # to go on with one, without an event in between
MAX_WAIT = 10.0  # seconds between two tries
BLOCK_SIZE = 16 * 1024  # bytes a read
MAX_ANSWER = 64 * 1024  # bytes of what is no stream
MAX_SENTENCE = 500  # characters of a refusal
PASSING = ("draining", "too_many_turns", "store_unavailable", "issuer_unavailable")  # refusals that another try may end
HINTS = {
    "conversation_required": " Here: --conversation ID.",
    "unauthorized": " Here: --key KEY, or RELAY_KEY in the environment.",
    "invalid_token": " Here: --key KEY, or RELAY_KEY in the environment.",
}


class Stream(NamedTuple):
    id: str
    address: str  # behind the server's own


class Failed(Exception):
    """There is no answer, or not a whole one: a sentence for people, a code for programs."""

    def __init__(self, sentence: str, code: str) -> None:
        super().__init__(sentence)
        self.code = code


class Lost(Exception):
    """The connection broke, or the server cannot answer just now."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        """`wait` is in seconds, where the server names them."""
        super().__init__(reason)
        self.wait = wait


class Server:
    """A relay, as its clients see it."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url.rstrip("/") + "/"
        self._session = requests.Session()
        self._session.verify = os.environ.get("SSL_CERT_FILE") or True  # REQUESTS_CA_BUNDLE goes first
        if key is not None:
            hide_for_good(key)
            self._session.auth = Bearer(key)

    def begin(self, question: dict[str, str]) -> Stream:
        """Begins a stream. Raises Failed or Lost."""
        headers = {"Idempotency-Key": secrets.token_hex(16)}  # a repeat after a lost answer begins nothing new
        failures = 0
        while True:
            try:
                with self._call("POST", "streams", json=question, headers=headers) as response:
                    said = read_json(response)
                return Stream(str(said["id"]), str(said["url"]).lstrip("/"))
            except KeyError:
                raise Failed("What answers there is no relay. Check the address (--url).", "no_relay") from None
            except Lost as lost:
                failures += 1
                pause(failures, BEGIN_TRIES, lost)

    def follow(self, stream: Stream) -> Iterator[Received]:
        """All events of a stream to its `done`, over as many connections as it takes. Raises Failed or Lost."""
        reader = StreamReader()
        failures = 0
        while True:
            try:
                for event in self._follow_once(stream, reader):
                    failures = 0
                    yield event
                    if event.event == "done":
                        return
                raise Lost("the stream has broken off")
            except Lost as lost:
                failures += 1
                pause(failures, TRIES, lost)

    def cancel(self, stream: Stream) -> bool:
        """Whether the server has cancelled the stream."""
        with suppress(Failed, Lost):
            self._call("DELETE", stream.address, timeout=CANCEL_TIMEOUT).close()
            return True
        return False

    def _follow_once(self, stream: Stream, reader: StreamReader) -> Iterator[Received]:
        reader.restart()
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(reader.last_id)}
        with self._call("GET", stream.address, headers=headers) as response:
            if response.status_code == 204:
                raise Failed("The answer has ended, but its end did not arrive here.", "end_unseen")
            try:
                while piece := response.raw.read1(BLOCK_SIZE, decode_content=True):
                    yield from reader.feed(piece)
            except (HTTPError, OSError) as error:
                raise Lost(type(error).__name__) from None
            except ValueError:
                raise Failed("What came is no stream of a relay. Check the address (--url).", "no_relay") from None

    def _call(self, method: str, path: str, **more: Any) -> requests.Response:
        """Raises Failed for a refusal, Lost where another try may help."""
        options: dict[str, Any] = {"timeout": TIMEOUT, "allow_redirects": False, "stream": True} | more
        try:
            response = self._session.request(method, urljoin(self._url, path), **options)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise Lost(type(error).__name__) from None
        except (requests.RequestException, ValueError):
            raise Failed("Nothing can be asked at that address: --url takes http://HOST:PORT.", "bad_address") from None
        if 200 <= response.status_code < 300:
            return response
        with response:
            raise refusal(response)


def refusal(response: requests.Response) -> Failed | Lost:
    """What a status other than success means."""
    said = read_json(response)
    sentence = str(said.get("error", "What answers there is no relay. Check the address (--url)."))[:MAX_SENTENCE]
    code = str(said.get("code", f"http_{response.status_code}"))[:MAX_SENTENCE]
    if code in PASSING or (not said and response.status_code in (502, 503, 504)):
        return Lost(code, retry_after(response.headers.get("Retry-After"), time.time()))
    return Failed(sentence + HINTS.get(code, ""), code)


def read_json(response: requests.Response) -> dict[str, Any]:
    """The body, empty when it is no JSON object."""
    try:
        said = orjson.loads(response.raw.read(MAX_ANSWER, decode_content=True))
    except (orjson.JSONDecodeError, HTTPError, OSError):
        return {}
    return said if isinstance(said, dict) else {}


def pause(failures: int, tries: int, lost: Lost) -> None:
    """Waits before the next try; raises `lost` when there have been enough."""
    if failures == tries:
        raise lost
    wait = full_jitter(failures, random) if lost.wait is None else lost.wait
    time.sleep(min(wait, MAX_WAIT))
