"""What lies in deploy/, as it runs: nginx with that very file, and what the tests need around it."""

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from .certificates import make_certificate
from .conftest import ROOT, until

NGINX = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
FILE = ROOT / "deploy" / "nginx.conf"
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(worker):
    """Whether a worker of nginx takes connections; one that only ends what it has says so in its title."""
    try:
        return "shutting down" not in Path(f"/proc/{worker}/cmdline").read_text()
    except OSError:
        return False  # it has gone


class DeployedNginx:
    """deploy/nginx.conf at work. Only places are other ones: ports, files, the name, where the relay is.

    `changes` are further ones, as {what stands there: what is to stand there}.
    """

    def __init__(self, folder, relay, changes=None):
        self.folder = folder
        self.port, self.inside, plain = free_port(), free_port(), free_port()
        self.url, self.inside_url = f"https://localhost:{self.port}", f"http://127.0.0.1:{self.inside}"
        self.plain_url = f"http://localhost:{plain}"
        self.certificate, key = make_certificate(folder)
        text = FILE.read_text()
        places = {
            "user www-data;": "user root root;",  # the tests' folders are for their owner alone
            "/run/nginx.pid": f"{folder}/nginx.pid",
            "/var/log/nginx/": f"{folder}/",
            "/etc/nginx/relay.crt": str(self.certificate),
            "/etc/nginx/relay.key": str(key),
            "unix:/run/relay/relay.sock": relay,
            "relay.example": "localhost",
            "[::]:443": f"[::1]:{self.port}",
            "listen 443": f"listen 127.0.0.1:{self.port}",
            "[::]:80": f"[::1]:{plain}",
            "listen 80": f"listen 127.0.0.1:{plain}",
            "127.0.0.1:8080": f"127.0.0.1:{self.inside}",
            "http {": "http {" + "".join(f" {name}_temp_path {folder}/{name};" for name in TEMPORARY),
        }
        for old, new in (places | (changes or {})).items():
            assert old in text, f"{old} is no longer in {FILE}"
            text = text.replace(old, new)
        self.config = folder / "nginx.conf"
        self.config.write_text(text)
        self.start()

    def start(self):
        command = [NGINX, "-p", self.folder, "-c", self.config, "-e", "stderr", "-g", "daemon off;"]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        until(self._listens, "nginx listens")

    def _listens(self):
        assert self._process.poll() is None, f"nginx ended: {self._process.stderr.read()}"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def workers(self):
        pid = self._process.pid
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}

    def reload(self):
        """Returns once workers with the file as it is now take all connections."""
        before = self.workers
        self._process.send_signal(signal.SIGHUP)
        until(lambda: self.workers - before and not any(map(listens, before)), "new workers")

    def stop(self, number=signal.SIGTERM):
        self._process.send_signal(number)
        self._process.wait(10)
        self._process.stderr.close()

    @property
    def access_log(self):
        return (self.folder / "access.log").read_text()

    @property
    def error_log(self):
        return (self.folder / "error.log").read_text()


class Curl:
    """A stream through curl, event by event as curl writes them down."""

    def __init__(self, nginx, path, *options):
        command = ["curl", "-sN", "--cacert", str(nginx.certificate), *options, nginx.url + path]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._buffer = ""

    def next_token(self):
        """The text of the next event that is a token."""
        while True:
            found = re.search(r'data: \{"token":"(.*?)"\}\n\n', self._buffer)
            if found:
                self._buffer = self._buffer[found.end() :]
                return found[1]
            piece = self.process.stdout.read1()
            assert piece, f"it ended: {self._buffer}"
            self._buffer += piece.decode()

    def finish(self):
        """All that is left."""
        rest = self._buffer + self.process.stdout.read().decode()
        assert self.process.wait(20) == 0, self.process.stderr.read()
        self.close()
        return rest

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.process.stderr.close()
