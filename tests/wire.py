"""HTTP byte by byte, for what no client library would send."""

import contextlib
import re
import socket
from urllib.parse import urlsplit

HOST = b"Host: localhost\r\n"
LAST = b"Connection: close\r\n\r\n"  # of the last request's headers


def connect(url, patience=10):
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=patience)


def speak(url, data):
    """Sends these bytes; returns all that comes back until the server ends the connection."""
    with connect(url) as client:
        with contextlib.suppress(ConnectionError):  # it may have refused what it has read so far
            client.sendall(data)
        return read_all(client)


def read_all(client):
    received = b""
    with contextlib.suppress(ConnectionResetError):  # closed with bytes of ours unread: what it said has come before
        while piece := client.recv(65536):
            received += piece
    return received


def get(path, *headers):
    return request(b"GET", path, *headers)


def post(path, body, *headers):
    """A question, and nothing behind it."""
    return request(b"POST", path, b"Content-Type: application/json", b"Content-Length: %d" % len(body), *headers) + body


def request(method, path, *headers):
    return b"%s %s HTTP/1.1\r\n" % (method, path) + HOST + b"".join(line + b"\r\n" for line in headers) + LAST


def statuses(received):
    """Of all answers on the connection, in order."""
    return [int(status) for status in re.findall(rb"^HTTP/1\.[01] (\d{3}) ", received, re.MULTILINE)]


def headers(received):
    """The first answer's, as pairs in lower case."""
    head = received.partition(b"\r\n\r\n")[0].decode("latin-1")
    return [(name.lower(), value) for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])]
