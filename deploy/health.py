"""Asks the relay beside it whether it takes requests: a container's health check. Exits 0, or 1 with one line.

It knows BIND alone and loads nothing of the server, since it runs every few seconds.
"""

import http.client
import os
import socket
import sys
from typing import NoReturn

TIMEOUT = 3.0  # seconds
DEFAULT_BIND = "127.0.0.1:8000"
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "::1"}  # noqa: S104 - listening there is reached from here


class Local(http.client.HTTPConnection):
    """HTTP to a BIND: HOST:PORT or unix:PATH."""

    def __init__(self, bind: str) -> None:
        self._path = bind.removeprefix("unix:") if bind.startswith("unix:") else None
        host, _, port = bind.rpartition(":")
        host = EVERYWHERE.get(host, host.strip("[]"))
        super().__init__("localhost" if self._path else host, None if self._path else int(port), timeout=TIMEOUT)

    def connect(self) -> None:
        if self._path is None:
            super().connect()
            return
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)


def main() -> NoReturn:
    bind = os.environ.get("BIND", DEFAULT_BIND)
    try:
        connection = Local(bind)
        connection.request("GET", "/healthz", headers={"Host": "localhost"})
        status = connection.getresponse().status
    except (OSError, ValueError, http.client.HTTPException) as error:
        sys.exit(f"{bind} does not answer: {error}")
    sys.exit(None if status == http.client.OK else f"{bind} answers {status}")


if __name__ == "__main__":
    main()
