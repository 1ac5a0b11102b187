"""Those who ask and read through nginx, each in a thread of its own, as patient as EventSource."""

import contextlib
import json
import socket
import time
import uuid
from http.client import HTTPException, HTTPSConnection
from urllib.parse import parse_qs, urlsplit

from ..conftest import question as body_of
from .records import Event, Reading

LATER = (429, 502, 503, 504)  # to be tried again
SILENCE = 40.0  # seconds without a byte, not even a ping, that are too long
DEAF = 12.0  # seconds for which a reader who never reads stays
SLOW = 10.0  # seconds of a connection in which a slow reader reads slowly; an endless answer has a million characters
SMALL_BUFFER = 4096  # bytes that a slow reader's kernel takes
PAUSE = 0.2  # seconds until the next try


class Line(HTTPSConnection):
    """A connection for one request."""

    def __init__(self, world, is_slow=False):
        super().__init__("localhost", world.nginx.port, timeout=SILENCE, context=world.tls)
        self.is_slow = is_slow

    def connect(self):
        self.sock = socket.socket()
        if self.is_slow:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        self.sock.settimeout(self.timeout)
        self.sock.connect(("127.0.0.1", self.port))
        self.sock = self._context.wrap_socket(self.sock, server_hostname="localhost")


class Patience:
    """Until when a round's clients try again."""

    def __init__(self, seconds):
        self._ends = time.monotonic() + seconds

    @property
    def is_over(self):
        return time.monotonic() > self._ends


class Troubled(Exception):
    """Something that must not happen to a client; the text says what."""


def call(world, patience, method, path, headers, body=None, is_slow=False):
    """The answer, with its connection, to a request that is repeated until it is served."""
    while not patience.is_over:
        line = Line(world, is_slow)
        try:
            line.request(method, path, body, headers)
            answer = line.getresponse()
            if answer.status < 400:
                return line, answer
            text = answer.read().decode(errors="replace")
        except TimeoutError:
            line.close()
            raise Troubled(f"{method} is not answered within {SILENCE} s") from None
        except (OSError, HTTPException):
            line.close()
            time.sleep(PAUSE)
            continue
        line.close()
        world.said.append(f"{answer.status} {answer.headers} {text}")
        if answer.status not in LATER:
            raise Troubled(f"{method} is answered {answer.status}: {text.strip()}")
        time.sleep(PAUSE)
    raise Troubled(f"{method} is not served in the end")


class Asker:
    """Asks one question; what it begins is a turn, however often it has to ask."""

    def __init__(self, world, patience, question):
        self._world = world
        self._patience = patience
        self.question = question
        self.id = self.url = None
        self.opened = None  # the direct reader's connection and answer

    @property
    def bearer(self):
        return {"Authorization": f"Bearer {self._world.key.key}"}

    def ask(self):
        """Raises Troubled."""
        headers = self.bearer | {"Content-Type": "application/json", "Idempotency-Key": uuid.uuid4().hex}
        body = json.dumps(body_of(self.question.prompt, self.question.conversation))
        path = "/stream-llm" if self.question.is_direct else "/streams"
        line, answer = call(self._world, self._patience, "POST", path, headers, body)
        if self.question.is_direct:
            self.id, self.opened = answer.headers["X-Stream-Id"], (line, answer)
            return
        while True:
            try:
                begun = json.loads(answer.read())
                break
            except (OSError, HTTPException):
                line.close()
                line, answer = call(self._world, self._patience, "POST", path, headers, body)
        line.close()
        self.id, self.url = begun["id"], begun["url"]
        self._world.tickets.update(parse_qs(urlsplit(self.url).query)["ticket"])

    def cancel(self):
        call(self._world, self._patience, "DELETE", f"/streams/{self.id}", self.bearer)[0].close()

    def state(self):
        headers = self.bearer | {"Accept": "application/json"}
        line, answer = call(self._world, self._patience, "GET", f"/streams/{self.id}", headers)
        with contextlib.closing(line):
            return json.loads(answer.read())

    def read(self, reader, opened=None):
        """All that this reader gets; `opened` is a connection on which the stream comes already."""
        reading = Reading(reader)
        breaks = list(reader.breaks)
        try:
            while not self._patience.is_over:
                line, answer = opened or self._open(reader, reading)
                opened = None
                with contextlib.closing(line), contextlib.suppress(ConnectionError, OSError, HTTPException):
                    if self._is_over(reading, answer, breaks):
                        return reading
                time.sleep(reader.away if reader.manner == "returns" else PAUSE)
            reading.trouble = "did not come to the end"
        except Troubled as trouble:
            reading.trouble = str(trouble)
        return reading

    def _open(self, reader, reading):
        cursor = {"Last-Event-ID": str(reading.events[-1].id)} if reading.events else {}
        headers = {"Accept": "text/event-stream"} | cursor
        has_ticket = reader.has_ticket and self.url is not None
        path = self.url if has_ticket else f"/streams/{self.id}"
        is_slow = reader.manner in ("slow", "deaf")
        return call(
            self._world, self._patience, "GET", path, headers if has_ticket else headers | self.bearer, is_slow=is_slow
        )

    def _is_over(self, reading, answer, breaks):
        """Reads one connection; whether the reader is through with the stream."""
        reader = reading.reader
        if answer.status == 204:
            return True
        if reader.manner == "deaf":
            time.sleep(DEAF)
            return True
        for event in events_of(answer, reader.pause):
            reading.events.append(event)
            if event.kind == "done":
                return True
            if breaks and len(reading.events) >= breaks[0]:
                breaks.pop(0)
                return reader.manner == "leaves"
        return False


def events_of(answer, pause):
    """The events with an id on one connection (WHATWG HTML, 9.2.6). Raises Troubled after too long a silence."""
    buffer = b""
    slow_until = time.monotonic() + SLOW
    while True:
        if time.monotonic() > slow_until:
            pause = 0.0
        time.sleep(pause)
        try:
            piece = answer.read1(512 if pause else 65536)
        except TimeoutError:
            raise Troubled(f"nothing came for {SILENCE} s, not even a ping") from None
        if not piece:
            return
        *blocks, buffer = (buffer + piece).split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if not line.startswith(":"))
            if "id" in fields and "data" in fields:
                data = json.loads(fields["data"])
                kind = fields.get("event") or ("token" if "token" in data else "error")
                yield Event(int(fields["id"]), kind, data)
