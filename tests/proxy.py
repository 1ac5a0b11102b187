"""A network that fails: between browser and server, or server and store, cutting connections when told."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit


class Proxy:
    """Passes bytes on, and knows which connections carry an event stream.

    `budget`: bytes that each event stream gets through until it is cut, None for all. `instead`: what an event stream
    is answered in place of the server's own answer. `swallow`: how many answers to a POST are lost on their way.
    """

    def __init__(self, url):
        self._target = (urlsplit(url).hostname, urlsplit(url).port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._streams = set()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked = []  # first line of each request for an event stream
        self.budget = None
        self.instead = None
        self.swallow = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        """Breaks off every event stream that is open."""
        while self._streams:
            hang_up(self._streams.pop())

    def close(self):
        self._listener.close()
        self.cut()

    def _accept(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        server = socket.create_connection(self._target)
        state = {"left": None, "swallow": False}
        threading.Thread(target=self._answer, args=(client, server, state), daemon=True).start()
        with contextlib.suppress(OSError):
            while request := client.recv(65536):
                if request.startswith(b"POST /streams ") and self.swallow:
                    self.swallow -= 1
                    state["swallow"] = True
                if request.startswith(b"GET /streams/") and b"text/event-stream" in request:
                    self.asked.append(request.split(b"\r\n", 1)[0].decode())
                    if self.instead is not None:
                        client.sendall(self.instead)
                        break
                    state["left"] = self.budget
                    self._streams.add(client)
                server.sendall(request)
        client.close()
        server.close()

    def _answer(self, client, server, state):
        with contextlib.suppress(OSError):
            while answer := server.recv(65536):
                if state["swallow"]:
                    break
                if state["left"] is not None:
                    answer = answer[: state["left"]]
                    state["left"] -= len(answer)
                client.sendall(answer)
                if state["left"] == 0:
                    break
        self._streams.discard(client)
        hang_up(client)


def hang_up(connection):
    with contextlib.suppress(OSError):  # it may be gone already
        connection.shutdown(socket.SHUT_RDWR)


class Wire:
    """A way to a port that can be cut without a word: what is sent on it arrives nowhere."""

    def __init__(self, port):
        self._port = port
        self._passes = threading.Event()
        self._passes.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        self._passes.clear()

    def mend(self):
        self._passes.set()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._port))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._passes.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self):
        self._passes.set()
        self._listener.close()
