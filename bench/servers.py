"""The processes that are measured: starting them, ending them, and what they use of the machine."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import requests

ROOT = Path(__file__).parent.parent
KEPT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")  # no settings from outside: all runs are alike
START_PATIENCE = 20.0  # seconds until a server must listen
STOP_PATIENCE = 10.0  # seconds until a server that was asked to end is killed
SANDBOX_READY = r"sandbox ready on (http://\S+)"
GUNICORN_READY = r"Listening at: (http://[^\s\"]+)"
REDIS_READY = r"(Ready to accept connections)"
OWN_FILE = "sqlite:///{folder}/relay.db"
FOR_EVER = 1_000_000  # calls that meet a fault
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
def relay(upstream: Server, transcript: str, store: str = OWN_FILE, interval_ms: int = 0) -> Iterator[Server]:
    """The relay as it runs in production, with one worker.

    The others are values of TRANSCRIPT, STORE_URL and TRANSCRIPT_INTERVAL_MS.
    """
    settings = {"TRANSCRIPT": transcript, "WEB_CONCURRENCY": "1", "BIND": "127.0.0.1:0"}
    settings |= {"STORE_URL": store, "ACCESS": "open", "RATE_LIMIT": "off", "TRANSCRIPT_INTERVAL_MS": f"{interval_ms}"}
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py")]
    with started(command, organisation(upstream) | settings, GUNICORN_READY) as server:
        yield server


@contextlib.contextmanager
def relay_with_fault(upstream: Server, fault: str) -> Iterator[Server]:
    """The relay, while each link to the transcript meets a fault of the sandbox, until its next reset."""
    order = {"at": "transcript", "fault": fault, "calls": FOR_EVER}
    requests.post(f"{upstream.url}/sandbox/faults", json=order, timeout=10).raise_for_status()
    with relay(upstream, "websocket") as server:
        yield server


@contextlib.contextmanager
def naive(upstream: Server, transcript: str) -> Iterator[Server]:
    """The tutorial's relay, also with one gevent worker."""
    command = [sys.executable, "-m", "gunicorn", "-k", "gevent", "-w", "1", "-b", "127.0.0.1:0", "--no-control-socket"]
    settings = organisation(upstream) | {"TRANSCRIPT": transcript}
    with started([*command, "bench.naive:app"], settings, GUNICORN_READY) as server:
        yield server


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


def messages(upstream: Server) -> int:
    """How many the transcript has been sent since the sandbox's last reset."""
    answer = requests.get(f"{upstream.url}/sandbox/calls", timeout=10)
    answer.raise_for_status()
    count: int = answer.json()["transcript"]["messages"]
    return count


def access_token(upstream: Server) -> str:
    form = {"grant_type": "client_credentials"} | {name.lower()[6:]: value for name, value in CREDENTIALS.items()}
    answer = requests.post(f"{upstream.url}/oauth/token", data=form, timeout=10)
    answer.raise_for_status()
    token: str = answer.json()["access_token"]
    return token


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
