"""What nginx spends on a token and a stream: TLS in front, the paced answers of the sandbox behind, nothing held back.

The clients speak HTTP/1.1. In HTTP/2 a token is a frame of its own in the same TLS record: nine bytes more.
"""

import asyncio
import random
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from urllib.parse import urlsplit

from . import servers
from .load import Stream, request_for
from .servers import Server

RATE = 20  # tokens a second of each stream: a brisk model
ARRIVALS = 75  # streams a second that begin; all at once would measure a queue
SETTLE = 0.3  # seconds after a load until nothing is left to do for it
LATE = 30.0  # seconds that a load may take longer than its pace says
STREAMS = 200
TOKENS = 60  # of each
CHAT = "/api/v2/ai/llm/gateway/chat"
READY = "(start worker process )"
CONFIGURATION = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr notice;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    proxy_http_version 1.1;
    proxy_buffering off;
    proxy_set_header Connection "";
    ssl_protocols TLSv1.2 TLSv1.3;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/tls.crt;
        ssl_certificate_key {folder}/tls.key;
        location / {{ proxy_pass {upstream}; }}
    }}
}}
"""
CERTIFICATE = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"


class NginxCosts(NamedTuple):
    token_us: float  # with what it takes to begin and end a stream of TOKENS
    stream_kb: float


@contextmanager
def nginx(upstream: Server) -> Iterator[Server]:
    port = servers.free_port()
    with TemporaryDirectory(prefix="relay-bench-") as folder:
        files = ["-keyout", f"{folder}/tls.key", "-out", f"{folder}/tls.crt"]
        subprocess.run(["openssl", *CERTIFICATE.split(), *files], check=True, capture_output=True)
        configuration = Path(folder, "nginx.conf")
        configuration.write_text(CONFIGURATION.format(folder=folder, port=port, upstream=upstream.url))
        command = ["nginx", "-e", "stderr", "-p", folder, "-c", str(configuration)]
        with servers.started(command, {}, READY) as server:
            yield Server(f"https://127.0.0.1:{port}", server.process)


def measure(streams: int = STREAMS, tokens: int = TOKENS) -> NginxCosts:
    with servers.sandbox(1000 / RATE) as upstream, nginx(upstream) as server:
        request = request_for(server.url + CHAT, "nginx", tokens, servers.access_token(upstream))
        asyncio.run(read_all(server, request, 5))
        pids = server.tree()
        cpu, idle = servers.cpu_seconds(pids), servers.memory_kb(pids)
        read, most = asyncio.run(read_all(server, request, streams))
        cpu = servers.cpu_seconds(pids) - cpu
    if read != streams * tokens:
        raise SystemExit(f"{read} of {streams * tokens} tokens came through nginx; no figures")
    return NginxCosts(cpu * 1e6 / read, (most - idle) / streams)


async def read_all(server: Server, request: bytes, streams: int) -> tuple[int, int]:
    """Tokens that came, and the most memory that nginx had, in KB."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE  # it is ours, on loopback
    place = urlsplit(server.url)
    pids, memory, chance = server.tree(), [0], random.Random(streams)

    async def one() -> int:
        await asyncio.sleep(chance.uniform(0, streams / ARRIVALS))
        stream = Stream(request)
        await asyncio.get_running_loop().create_connection(lambda: stream, place.hostname, place.port, ssl=trusting)
        await stream.over
        return len(stream.ages)

    async def watch() -> None:
        while True:
            await asyncio.sleep(SETTLE)
            memory.append(servers.memory_kb(pids))

    async with asyncio.timeout(LATE + streams / ARRIVALS):
        watching = asyncio.create_task(watch())
        read = sum(await asyncio.gather(*(one() for _ in range(streams))))
        watching.cancel()
    return read, max(memory)
