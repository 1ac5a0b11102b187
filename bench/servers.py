"""The processes that are measured: starting them, ending them, and what they use of the machine."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import requests

from . import instrument, peers

ROOT = Path(__file__).parent.parent
KEPT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")  # no settings from outside: all runs are alike
START_PATIENCE = 20.0  # seconds until a server must listen
STOP_PATIENCE = 10.0  # seconds until a server that was asked to end is killed
SANDBOX_READY = r"sandbox ready on (http://\S+)"
GUNICORN_READY = r"Listening at: (http://[^\s\"]+)"
REDIS_READY = r"(Ready to accept connections)"
WIRE_READY = r"listening on (http://\S+)"
AIOHTTP_READY = r"Running on (http://\S+)"
UVICORN_READY = r"Uvicorn running on (http://\S+)"
NGINX_READY = r"(using the .epoll. event method)"
MOST_STREAMS = 6000  # at once, in each worker: more than any measurement opens
OWN_FILE = "sqlite:///{folder}/relay.db"
CREDENTIALS = {"OAUTH_CLIENT_ID": "sandbox-client", "OAUTH_CLIENT_SECRET": "sandbox-secret"}


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    process: subprocess.Popen[bytes]
    store: "Server | None" = None  # the server behind its STORE_URL, where that is one

    def tree(self) -> set[int]:
        """The process and all that descend from it."""
        parents = dict(filter(None, map(read_parent, Path("/proc").glob("[0-9]*/stat"))))
        found = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def workers(self) -> set[int]:
        """What descends from it: gunicorn's workers."""
        return self.tree() - {self.process.pid}

    def kill(self) -> None:
        """kill -9 of the process and of its workers, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)


@contextlib.contextmanager
def sandbox(pace_ms: float) -> Iterator[Server]:
    """The sandbox in place of Genesys Cloud, a token every `pace_ms`."""
    command = [sys.executable, "-m", "bench.gateway", "--port", "0"]
    with started(command, {"SANDBOX_PACE_MS": f"{pace_ms}"}, SANDBOX_READY) as server:
        yield server


@contextlib.contextmanager
def gateway(links: str = "open") -> Iterator[Server]:
    """wire/gateway.c in its place, where every microsecond counts; `links` as it says."""
    with started([instrument.program("gateway"), f"links={links}"], {}, WIRE_READY) as server:
        yield server


@contextlib.contextmanager
def relay(
    upstream: Server, transcript: str, store: str = OWN_FILE, workers: int = 1, **settings: str
) -> Iterator[Server]:
    """The relay as it runs in production.

    The others are values of TRANSCRIPT, STORE_URL and WEB_CONCURRENCY, and any further settings by their names.
    """
    settings |= {"TRANSCRIPT": transcript, "WEB_CONCURRENCY": f"{workers}", "BIND": "127.0.0.1:0"}
    settings |= {"STORE_URL": store, "ACCESS": "open", "RATE_LIMIT": "off", "MAX_TURNS": f"{MOST_STREAMS}"}
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py")]
    with started(command, organisation(upstream) | settings, GUNICORN_READY) as server:
        yield server


@contextlib.contextmanager
def flask(upstream: Server, transcript: str, module: str = "flask_relay") -> Iterator[Server]:
    """The tutorial's relay, or another app of the peers', also with one gevent worker."""
    command = [sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", "1", "-b", "127.0.0.1:0", "--no-control-socket"]
    command += ["--worker-connections", f"{MOST_STREAMS}", f"bench.peers.{module}:app"]
    settings = organisation(upstream) | {"TRANSCRIPT": transcript}
    with started(command, settings, GUNICORN_READY) as server:
        yield server


@contextlib.contextmanager
def aiohttp(upstream: Server, transcript: str) -> Iterator[Server]:
    settings = {"GENESYS_BASE_URL": upstream.url, "TRANSCRIPT": transcript, "PORT": f"{free_port()}"}
    with started([peers.environment(), "-m", "bench.peers.aiohttp_relay"], settings, AIOHTTP_READY) as server:
        yield server


@contextlib.contextmanager
def fastapi(upstream: Server) -> Iterator[Server]:
    settings = {"GENESYS_BASE_URL": upstream.url, "PORT": f"{free_port()}"}
    with started([peers.environment(), "-m", "bench.peers.fastapi_relay"], settings, UVICORN_READY) as server:
        yield server


@contextlib.contextmanager
def nginx(upstream: Server) -> Iterator[Server]:
    """nginx as a proxy that reads nothing, one worker."""
    port = free_port()
    text = (ROOT / "bench/peers/nginx.conf").read_text()
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        for name, value in {"FOLDER": folder, "PORT": f"{port}", "UPSTREAM": urlsplit(upstream.url).netloc}.items():
            text = text.replace(f"@{name}@", value)
        Path(folder, "nginx.conf").write_text(text)
        command = [
            shutil.which("nginx") or "/usr/sbin/nginx",
            "-c",
            f"{folder}/nginx.conf",
            "-p",
            folder,
            "-e",
            "stderr",
        ]
        with started(command, {}, NGINX_READY) as server:
            yield replace(server, url=f"http://127.0.0.1:{port}")


@contextlib.contextmanager
def relay_with_redis(upstream: Server, transcript: str) -> Iterator[Server]:
    """The relay with a redis-server for it alone."""
    with redis() as store, relay(upstream, transcript, store.url) as server:
        yield replace(server, store=store)


@contextlib.contextmanager
def redis() -> Iterator[Server]:
    """A redis-server that keeps nothing on disk; its `url` is a value of STORE_URL."""
    port = free_port()
    command = ["redis-server", "--port", f"{port}", "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with started(command, {}, REDIS_READY) as server:
        yield replace(server, url=f"redis://127.0.0.1:{port}/0")


def free_port() -> int:
    """A port of 127.0.0.1 for a server that cannot choose one itself; another process can be quicker, hardly ever."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def organisation(upstream: Server) -> dict[str, str]:
    return CREDENTIALS | {"GENESYS_BASE_URL": upstream.url}


def access_token(upstream: Server) -> str:
    form = {"grant_type": "client_credentials"} | {name.lower()[6:]: value for name, value in CREDENTIALS.items()}
    answer = requests.post(f"{upstream.url}/oauth/token", data=form, timeout=10)
    answer.raise_for_status()
    token: str = answer.json()["access_token"]
    return token


def transcript_of(upstream: Server) -> dict[str, int]:
    """How many `messages` and `tokens` the transcript has been sent."""
    answer = requests.get(f"{upstream.url}/stats", timeout=10)
    answer.raise_for_status()
    counts: dict[str, int] = answer.json()
    return counts


@contextlib.contextmanager
def started(command: Sequence[str], settings: Mapping[str, str], ready: str) -> Iterator[Server]:
    """Runs `command` in an empty folder, `{folder}` in the settings, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder, Path(folder, "output").open("wb") as output:
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        environment |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        environment |= {name: value.format(folder=folder) for name, value in settings.items()}
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C ends the bench, which then ends its servers in order
        )
        try:
            yield Server(wait_for_url(process, Path(folder, "output"), ready), process)
        finally:
            stop(process)


def wait_for_worker(relay: Server) -> None:
    """gunicorn listens before its worker is there."""
    requests.get(f"{relay.url}/healthz", timeout=START_PATIENCE).raise_for_status()


def wait_for_url(process: subprocess.Popen[bytes], output: Path, ready: str) -> str:
    """What `ready` finds in the server's output, its address mostly. Ends the program when none comes."""
    deadline = time.monotonic() + START_PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        if found := re.search(ready, output.read_text(errors="replace")):
            return found[1]
        time.sleep(0.02)
    raise SystemExit(f"{process.args!r} did not start:\n{output.read_text(errors='replace')[-2000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_PATIENCE)
    except subprocess.TimeoutExpired:
        print(f"{process.args!r} did not end by itself", file=sys.stderr)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read_parent(stat: Path) -> tuple[int, int] | None:
    fields = read_stat(stat)
    return (int(stat.parent.name), int(fields[1])) if fields else None


def read_stat(stat: Path) -> list[str]:
    """The fields from the third on (proc_pid_stat(5)): the second, a name, may hold spaces. Empty when it has ended."""
    try:
        return stat.read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds(pids: set[int]) -> float:
    """User and system time that the processes have used."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            # What clock_getcpuclockid(3) does. /proc/PID/stat counts in ticks, of which Redis takes too few.
            total += time.clock_gettime(~pid << 3 | 2)
    return total


def memory_kb(pids: set[int]) -> int:
    """Memory of the processes, with shared pages counted once (PSS)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += sum(int(kb) for kb in re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE))
    return total


def descriptors(pids: set[int]) -> int:
    """How many files, sockets and pipes the processes have open."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
