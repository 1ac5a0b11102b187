"""The command `relay` in a process of its own: its output in a pipe, or on a terminal."""

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from typing import NamedTuple

from server.settings import Settings
from server.tls import VARIABLES

from .conftest import ROOT

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def findings(self):
        """Those of `doctor --json`, by check."""
        return {one["check"]: one for one in json.loads(self.out)}

    @property
    def all(self):
        return self.out + self.err


def environment(**settings):
    """The test's own settings alone, whatever the machine's environment says."""
    names = {name.upper() for name in Settings.model_fields} | {*VARIABLES, *PROXIES, "RELAY_KEY", "NO_COLOR"}
    inherited = {name: value for name, value in os.environ.items() if name.upper() not in names}
    return inherited | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": ""} | settings


def command(*arguments):
    return [sys.executable, "-m", "server.cli", *arguments]


def run(folder, *arguments, stdin="", **settings):
    """Runs it to its end in a working folder."""
    done = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(**settings),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def run_on_terminal(folder, columns, *arguments, **settings):
    """The same on a terminal of so many columns, where both outputs meet."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execve(sys.executable, command(*arguments), environment(**settings | {"COLUMNS": str(columns)}))  # noqa: S606 - by itself, not through a shell
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    shown = b""
    with contextlib.suppress(OSError):  # its end
        while piece := os.read(terminal, 65536):
            shown += piece
    os.close(terminal)
    return Ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode(), "")


def lines_of(shown):
    """What stands on the terminal in the end, without colours and without what was overwritten."""
    return [ESCAPE.sub("", line.rpartition("\r")[2]) for line in shown.replace("\r\n", "\n").split("\n")]
