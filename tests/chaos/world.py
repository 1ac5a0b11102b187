"""All that runs in production, as real processes: nginx, gunicorn with two workers, the store; and the sandbox."""

import contextlib
import os
import resource
import shutil
import signal
import ssl
import struct
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import requests

from server.access.keys import make_key

from ..conftest import ROOT, RelayServer, Sandbox, TcpRedis, until
from ..deployed import DeployedNginx

INSIDE = Path(__file__).parent / "inside"
DISK = 64  # MB of the store's own
ALONE = 2.0  # seconds for which all workers but one stand still at most; a lease lasts three
RETAIN = 900  # seconds; above what the clock jumps in a round
KINDS = {"socket": "socket", "pipe": "pipe", "anon_inode": "poller"}  # of descriptors
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
GAUGES = ("relay_followers", "relay_turns_running", "relay_transcript_links")
SETTINGS = {
    "WEB_CONCURRENCY": "2",
    "ACCESS": "keys",
    "SECRET_KEY": "what-signs-the-tickets-of-this-run",
    "RETAIN_SECONDS": str(RETAIN),
    "DISCONNECT_GRACE": "15",
    "GATEWAY_IDLE_TIMEOUT": "10",
    "GATEWAY_TIMEOUT": "25",
    "GUNICORN_CMD_ARGS": "--max-requests 200 --max-requests-jitter 200",
}


class Clock:
    """The workers' wall clock; the system's own is left alone."""

    def __init__(self, folder):
        self.file = folder / "clock"
        self.set(0.0)

    def set(self, seconds):
        """How far it is ahead of the real one."""
        with self.file.open("r+b" if self.file.exists() else "wb") as file:
            file.write(struct.pack("d", seconds))


class Disk:
    """Where the store lies: a small one of its own where mounting is allowed, else a folder with a limit on files."""

    def __init__(self, folder):
        self.folder = folder / "disk"
        self.folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "chaos", str(self.folder)]
        self.is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
        self._filler = self.folder / "filler"
        self._limited = {}  # by process, the limit that it had

    def fill(self, processes):
        """Leaves no room; `processes` are those that write here."""
        if self.is_mounted:
            with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
            return
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                self._limited[process] = resource.prlimit(process, resource.RLIMIT_FSIZE)
                resource.prlimit(process, resource.RLIMIT_FSIZE, (1, self._limited[process][1]))

    def free(self):
        self._filler.unlink(missing_ok=True)
        for process, limit in self._limited.items():
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process, resource.RLIMIT_FSIZE, limit)
        self._limited.clear()

    def remove(self):
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


class World:
    """`store` is sqlite or redis. What is to be closed is closed by `close`, also when the start breaks off."""

    def __init__(self, store):
        with contextlib.ExitStack() as stack:
            self.folder = Path(tempfile.mkdtemp(prefix="relay-chaos-"))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.key = make_key("chaos")
            self.clock = Clock(self.folder)
            self.disk = Disk(self.folder)
            stack.callback(self.disk.remove)
            self.sandbox = Sandbox()
            stack.callback(self.sandbox.process.stop)
            self.redis = None
            if store == "redis":
                self.redis_log = self.folder / "redis.log"
                self.redis = TcpRedis(self.disk.folder, *DURABLE, "--logfile", str(self.redis_log))
                stack.callback(TcpRedis.stop, self.redis)
            self.file = self.disk.folder / "relay.db"
            self.relay = RelayServer(
                self.sandbox.url,
                STORE_URL=self.redis.url if self.redis else f"sqlite:///{self.file}",
                RELAY_API_KEYS=self.key.entry,
                ALLOWED_HOSTS="localhost,127.0.0.1",
                PYTHONPATH=os.pathsep.join([str(INSIDE), str(ROOT)]),
                CHAOS_FOLDER=str(self.folder),
                **SETTINGS,
            )
            stack.callback(self.relay.stop)
            changes = {"rate=50r/s": "rate=9999r/s", "limit_conn connections 400": "limit_conn connections 4000"}
            self.nginx = DeployedNginx(self.folder, urlsplit(self.relay.url).netloc, changes)
            stack.callback(self.nginx.stop)
            self.tls = ssl.create_default_context(cafile=self.nginx.certificate)
            self._stack = stack.pop_all()
        self.said = []  # what refusals said
        self.tickets = set()

    def close(self):
        self._stack.close()

    def warm_up(self):
        """Each worker answers a question without a transcript: old idle connections to the gateway go then."""
        for worker in self.relay.workers:
            until(lambda worker=worker: self._answers_alone(worker), "a worker answers", 60)

    def _answers_alone(self, worker):
        """Within some seconds, in which all others stand still: else one of them may answer.

        One that was stopped in a transaction keeps SQLite's file locked; it is to go on then.
        """
        others = [other for other in self.relay.workers if other != worker]
        for other in others:
            os.kill(other, signal.SIGSTOP)
        try:
            until(self._answers, "it answers", ALONE)
        except AssertionError:
            return False
        finally:
            for other in others:
                os.kill(other, signal.SIGCONT)
        return True

    def _answers(self):
        headers = {"Authorization": f"Bearer {self.key.key}"}
        body = {"messages": [{"role": "user", "content": "count to 1"}]}
        return requests.post(f"{self.relay.url}/v1/chat/completions", json=body, headers=headers, timeout=30).ok

    def gauges(self):
        """The sums over all workers that must come back to 0."""
        text = self.metrics()
        return {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if line.startswith(GAUGES)}

    def metrics(self):
        return requests.get(f"{self.relay.url}/metrics", timeout=20).text

    def holdings(self, worker):
        """How many descriptors a worker has, by kind, and greenlets. Files are one kind, whatever their names."""
        kinds = Counter(greenlet=self._greenlets(worker))
        to_redis = self._sockets_to_redis(worker)
        for path in Path(f"/proc/{worker}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                name = str(path.readlink())
                kinds["to Redis" if name in to_redis else KINDS.get(name.partition(":")[0], "file")] += 1
        return kinds

    def _greenlets(self, worker):
        counted = self.folder / f"greenlets-{worker}"
        counted.unlink(missing_ok=True)
        os.kill(worker, signal.SIGRTMIN)
        until(counted.exists, "the worker counts")
        return int(counted.read_text())

    def _sockets_to_redis(self, worker):
        """As their links read: `socket:[INODE]`."""
        port = f":{self.redis.port:04X}" if self.redis else "none"
        lines = [line.split() for line in Path(f"/proc/{worker}/net/tcp").read_text().splitlines()]
        return {f"socket:[{fields[9]}]" for fields in lines if fields[2].endswith(port)}

    def outputs(self):
        """All that any process wrote, by name."""
        logs = {path.name: path.read_text(errors="replace") for path in self.folder.glob("*.log")}
        files = (path for path in self.disk.folder.rglob("*") if path.is_file())
        store = {f"store/{path.name}": path.read_bytes().decode("latin-1") for path in files}
        return {
            "gunicorn": self.relay.process.output,
            "refusals": "\n".join(self.said),
            "metrics": self.metrics(),
            **logs,
            **store,
        }

    def secrets(self, prompts):
        """What must stand in none of them, by what it is."""
        tokens = {f"access token {number}": token for number, token in enumerate(self.sandbox.tokens())}
        tickets = {f"ticket {number}": ticket for number, ticket in enumerate(self.tickets)}
        prompts = {f"prompt {number}": prompt for number, prompt in enumerate(prompts)}
        mine = {"client secret": self.relay.settings["OAUTH_CLIENT_SECRET"], "API key": self.key.key}
        return mine | {"secret key": SETTINGS["SECRET_KEY"]} | tokens | tickets | prompts

    def pids(self):
        """Of those that write to the store."""
        return [self.redis.process.pid] if self.redis else self.relay.workers

    def mend(self):
        """Nothing is broken any more."""
        self.disk.free()
        until(self._forget_faults, "the sandbox answers", 60)
        if self.redis and self.redis.process.poll() is not None:
            self.redis.start()

    def _forget_faults(self):
        with contextlib.suppress(requests.RequestException):
            self.sandbox.forget_faults()
            return True
