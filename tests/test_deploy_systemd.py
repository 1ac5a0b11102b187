"""deploy/relay@.service and deploy/relay.socket: the command, the environment and the socket that systemd would give.

There is no systemd here. `Systemd` does what it does with these two files: it holds the socket, starts a release with
nothing but what the unit says, waits for its READY=1, and sends what the unit sends.
"""

import itertools
import shlex
import signal
import socket
import subprocess
import sys
import threading
from http.client import HTTPConnection
from pathlib import Path

import pytest
import requests

from server.access.keys import make_key
from server.settings import Settings

from .conftest import ROOT, until
from .deployed import Curl, DeployedNginx

TOKENS = ["a ", "b ", "c"]

# What systemd does between fork and exec: the socket becomes descriptor 3, of this process, and MemoryDenyWriteExecute=
# is set (PR_SET_MDWE in linux/prctl.h, for all that the process starts; kernels before 6.3 know nothing of it).
EXEC = """
import ctypes, os, sys
os.dup2(int(sys.argv[1]), 3)
ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


def read_unit(name):
    """{section: {key: [values]}}."""
    unit = {}
    for line in (ROOT / "deploy" / name).read_text().splitlines():
        if line.startswith("["):
            section = unit.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return unit


class Systemd:
    """Two folders of releases, /etc/relay, /var/lib/relay and the socket, below one folder."""

    def __init__(self, folder, settings):
        self.folder = folder
        self.unit, door = read_unit("relay@.service")["Service"], read_unit("relay.socket")["Socket"]
        for place in ("etc/relay", "var/lib/relay", "run/relay", "opt/relay"):
            (folder / place).mkdir(parents=True)
        for release in "ab":
            programs = folder / "opt/relay" / release / ".venv/bin"
            programs.mkdir(parents=True)
            (programs / "gunicorn").symlink_to(Path(sys.executable).parent / "gunicorn")
            for name in ("server", "gunicorn.conf.py"):
                (folder / "opt/relay" / release / name).symlink_to(ROOT / name)
        self.settings = settings
        self.write_settings()
        self.door = self.here(door["ListenStream"][0])
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.door)
        self._listener.listen(int(door["Backlog"][0]))
        self.running = {}

    def here(self, text):
        for place in ("/etc/relay", "/var/lib/relay", "/run/relay", "/opt/relay"):
            text = text.replace(place, f"{self.folder}{place}")
        return text

    def write_settings(self, **changes):
        lines = [f"{name}={value}" for name, value in (self.settings | changes).items()]
        (self.folder / "etc/relay/.env").write_text("\n".join(lines))

    def start(self, release):
        """Returns once the release has told that it is ready."""
        place = self.folder / "run" / f"notify-{release}"
        place.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(str(place))
            notify.settimeout(20)
            environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "NOTIFY_SOCKET": str(place), "LISTEN_FDS": "1"}
            for line in self.unit["Environment"]:
                name, _, value = self.here(line.replace("%i", release)).partition("=")
                environment[name] = value
            command = shlex.split(self.here(self.unit["ExecStart"][0].replace("%i", release)))
            descriptor = self._listener.fileno()
            self.running[release] = subprocess.Popen(
                [sys.executable, "-c", EXEC, str(descriptor), *command],
                env=environment,
                cwd=self.here(self.unit["WorkingDirectory"][0]),
                pass_fds=[descriptor],
                stderr=(self.folder / f"{release}.log").open("ab"),
            )
            assert notify.recv(4096).startswith(b"READY=1")

    def signal(self, release, number):
        self.running[release].send_signal(number)

    def stop(self, release):
        """TERM to the master alone, as KillMode=mixed has it."""
        assert self.unit["KillMode"] == ["mixed"]
        self.signal(release, signal.SIGTERM)

    def log(self, release):
        return (self.folder / f"{release}.log").read_text()

    def ask(self, method="GET", path="/healthz", body=None, **headers):
        """One request on a connection of its own, straight to the socket: status and body."""
        connection = HTTPConnection("localhost", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        connection.sock.connect(self.door)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        found = answer.status, answer.read()
        connection.close()
        return found

    def end(self):
        for process in self.running.values():
            process.send_signal(signal.SIGINT)
            process.wait(20)
        self._listener.close()


@pytest.fixture
def systemd(tmp_path, sandbox):
    settings = {
        "GENESYS_BASE_URL": sandbox.url,
        "OAUTH_CLIENT_ID": "sandbox-client",
        "OAUTH_CLIENT_SECRET": "sandbox-secret",
        "STORE_URL": f"sqlite:///{tmp_path}/var/lib/relay/relay.db",
        "ACCESS": "open",
        "RATE_LIMIT": "off",
        "WEB_CONCURRENCY": "1",
        "ALLOWED_HOSTS": "relay.example",
        "LOG_FORMAT": "json",
        "DISCONNECT_GRACE": "60",
        "GATEWAY_IDLE_TIMEOUT": "60",
    }
    systemd = Systemd(tmp_path, settings)
    yield systemd
    systemd.end()


@pytest.fixture
def nginx(systemd, tmp_path):
    (tmp_path / "nginx").mkdir()
    nginx = DeployedNginx(tmp_path / "nginx", f"unix:{systemd.door}")
    yield nginx
    nginx.stop()


def begin(nginx, prompt):
    body = {"prompt": prompt, "conversationId": "c-systemd"}
    answer = requests.post(f"{nginx.url}/streams", json=body, verify=nginx.certificate, timeout=10)
    assert answer.status_code == 201, answer.text
    return answer.json()["url"]


def test_an_upgrade_and_the_way_back_lose_no_connection_and_cut_no_answer(systemd, nginx, sandbox, prompt):
    """relay@b starts at the same socket, relay@a stops; then the other way round. Someone asks all the while."""
    refused, served, enough = [], itertools.count(), threading.Event()

    def ask_on():
        while not enough.is_set():
            status, body = systemd.ask(path="/openapi.json")
            if status != 200:
                refused.append((status, body))
            next(served)

    systemd.start("a")
    askers = [threading.Thread(target=ask_on) for _ in range(3)]
    for asker in askers:
        asker.start()
    try:
        for old, new in ("ab", "ba"):
            asked = f"{prompt} {old}"
            sandbox.script(asked, TOKENS, gate=True)
            body = {"prompt": asked, "conversationId": "c-systemd"}
            answer = requests.post(
                f"{nginx.url}/stream-llm", json=body, verify=nginx.certificate, stream=True, timeout=(10, 30)
            )
            lines = answer.iter_lines(chunk_size=1)
            assert any(TOKENS[0].encode() in line for line in lines)
            systemd.start(new)
            systemd.stop(old)
            until(lambda old=old: "Handling signal: term" in systemd.log(old), "it stops")
            sandbox.receipt(asked, len(TOKENS))
            assert any(b'"status":"complete"' in line for line in lines), "the answer came to its end"
            assert systemd.running[old].wait(30) == 0
    finally:
        enough.set()
        for asker in askers:
            asker.join(30)
    assert refused == []
    assert next(served) > 100


def test_who_comes_while_nothing_runs_waits_and_is_served(systemd):
    """A restart, with the socket in systemd's hands: the connection is made before anyone is there to take it."""
    systemd.start("a")
    systemd.stop("a")
    assert systemd.running["a"].wait(30) == 0
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(systemd.ask()))
    waiting.start()
    systemd.start("a")
    waiting.join(30)
    assert [status for status, _ in answers] == [200]
    assert Path(systemd.door).exists(), "what is systemd's is not removed"


def test_a_stream_is_taken_up_again_on_the_other_release(systemd, nginx, sandbox, prompt):
    """Both share the store: what was begun on one is followed on the other, behind the last event."""
    systemd.start("a")
    sandbox.script(prompt, TOKENS)
    url = begin(nginx, prompt)
    first = Curl(nginx, url, "-H", "Accept: text/event-stream")
    assert first.next_token() == TOKENS[0]
    first.finish()
    systemd.start("b")
    systemd.stop("a")
    assert systemd.running["a"].wait(30) == 0
    rest = Curl(nginx, url, "-H", "Accept: text/event-stream", "-H", "Last-Event-ID: 1").finish()
    assert TOKENS[0] not in rest
    assert '"status":"complete"' in rest


def test_a_reload_takes_the_settings_anew_and_wrong_ones_change_nothing(systemd):
    systemd.start("a")
    assert systemd.ask(path="/conversations/c/streams")[0] == 200
    systemd.write_settings(MAX_TURNS="banana")
    systemd.signal("a", signal.SIGHUP)
    until(lambda: "not reloaded: MAX_TURNS='banana' cannot be right" in systemd.log("a"), "the log line")
    assert systemd.ask(path="/conversations/c/streams")[0] == 200
    systemd.write_settings(ACCESS="keys", RELAY_API_KEYS=make_key("shop").entry)
    systemd.signal("a", signal.SIGHUP)
    until(lambda: systemd.ask(path="/conversations/c/streams")[0] == 401, "the new settings")
    assert systemd.running["a"].poll() is None


def test_it_writes_where_the_unit_lets_it_and_nowhere_else(systemd):
    """ProtectSystem=strict and UMask=0077: beside the release and its settings only the store is written."""
    before = {path for path in systemd.folder.rglob("*") if "var/lib" not in str(path)}
    systemd.start("a")
    assert systemd.ask()[0] == 200
    kept = list((systemd.folder / "var/lib/relay").iterdir())
    assert kept
    assert {path.stat().st_mode & 0o077 for path in kept} == {0}
    after = {path for path in systemd.folder.rglob("*") if "var/lib" not in str(path)}
    assert {path.name for path in after - before} == {"a.log", "notify-a"}


def test_the_files_agree_with_each_other_and_with_gunicorns_settings():
    unit, door = read_unit("relay@.service"), read_unit("relay.socket")["Socket"]
    service = unit["Service"]
    config = (ROOT / "gunicorn.conf.py").read_text()
    graceful = Settings.model_fields["gateway_timeout"].default + 15
    hooks = (ROOT / "server/gunicorn_hooks.py").read_text()
    assert "graceful_timeout = int(_settings.gateway_timeout) + 15" in hooks
    assert int(service["TimeoutStopSec"][0]) > graceful
    assert f"worker_shutdown_timeout {service['TimeoutStopSec'][0]}s;" in (ROOT / "deploy/nginx.conf").read_text()
    assert f"backlog = {door['Backlog'][0]}\n" in config
    assert f"BIND=unix:{door['ListenStream'][0]}" in service["Environment"]
    assert f"server unix:{door['ListenStream'][0]};" in (ROOT / "deploy/nginx.conf").read_text()
    assert int(service["LimitNOFILE"][0]) >= 3 * Settings.model_fields["max_turns"].default
    assert service["Type"] == ["notify"]
    assert unit["Unit"]["StartLimitIntervalSec"] == ["0"], "else a release that fails closes the other one's socket"
    assert service["Sockets"] == ["relay.socket"]
    assert door["Service"][0].startswith("relay@")
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    for shut in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "MemoryDenyWriteExecute", "RestrictNamespaces"):
        assert service[shut] == ["yes"]
    assert service["CapabilityBoundingSet"] == [""]
