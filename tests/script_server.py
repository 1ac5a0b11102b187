"""A server that says what a test has written down, and keeps what it was asked."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ScriptServer:
    """Answers the first request with the first of `answers`, and so on; each is the body of an event stream, a status
    with headers, or None for 204. `asked` has the headers of each request."""

    def __init__(self, *answers):
        left, asked = list(answers), []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(dict(self.headers))
                answer = left.pop(0) if left else None
                status, headers = answer if isinstance(answer, tuple) else (200 if answer else 204, {})
                self.send_response(status)
                for name, value in ({"Content-Type": "text/event-stream"} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if isinstance(answer, bytes):
                    self.wfile.write(answer)

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *_):
                pass

        self.asked = asked
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
