"""`relay run`: the server, and the sandbox in place of an organisation where there is none."""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from .settings import (
    NoAccess,
    NoOrganisation,
    Settings,
    SettingsError,
    host_and_port,
    is_local,
    leave,
    load,
    places,
)

ROOT = Path(__file__).parent.parent
START_TIMEOUT = 20.0  # seconds for the sandbox and the server to come up
STOP_TIMEOUT = 10.0  # seconds after Ctrl-C until what is left is killed
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # HUP: the terminal was closed
SANDBOX_READY = re.compile(r"sandbox ready on (\S+)")


def run_all() -> None:
    """Serves until Ctrl-C, TERM or the terminal's end; what was started ends with it."""
    processes: list[subprocess.Popen[str]] = []
    for number in ENDINGS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup wants it ignored
            signal.signal(number, stop_by_signal)
    try:
        sys.exit(serve(processes))
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be gone
            print("\nstopping", flush=True)
    finally:
        stop(processes)


def stop_by_signal(*_: object) -> None:
    ignore_signals()  # a second one would cut `stop` short
    raise KeyboardInterrupt


def ignore_signals() -> None:
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)


def serve(processes: list[subprocess.Popen[str]]) -> int:
    """Starts what is needed and waits for the server's end; returns its exit status."""
    settings, kind = organisation(), "your organisation"
    if settings is None:
        sandbox = start_sandbox(processes)
        os.environ.update(sandbox_settings(sandbox))
        settings, kind = load_for_run(), f"the sandbox at {sandbox}"
        os.environ["DEFAULT_CONVERSATION_ID"] = settings.default_conversation_id or "demo"
    if "rate_limit" not in settings.model_fields_set and is_local(settings.bind):
        os.environ["RATE_LIMIT"] = "off"  # whoever tries it out asks as often as they like
    address = free_address(settings.bind)
    if not (ROOT / "gunicorn.conf.py").exists():
        leave("`relay run` works in a checkout of the repository: clone it and use `make run`")
    server = start(processes, ["gunicorn", "-c", str(ROOT / "gunicorn.conf.py")], {"BIND": address})
    wait_for_port(server, address)
    print(welcome(address, kind, needs_key=settings.access != "open"), flush=True)
    return server.wait()


def organisation() -> Settings | None:
    """The settings for a real organisation, None without any. Ends the program when they are wrong or half there."""
    try:
        return load_for_run()
    except NoOrganisation:
        return None


def load_for_run() -> Settings:
    """The settings. Where none says who may ask, everyone on this machine may, and no one else can.

    Raises NoOrganisation; ends the program when the settings are wrong.
    """
    try:
        try:
            return load()
        except NoAccess as refusal:
            if refusal.chosen:
                raise
            os.environ["ACCESS"] = "open"
            settings = load()
            if not is_local(settings.bind):
                raise refusal from None
            return settings
    except NoOrganisation:
        raise
    except SettingsError as error:
        leave(str(error))


def start(
    processes: list[subprocess.Popen[str]],
    module: Sequence[str],
    environment: Mapping[str, str],
    stdout: int | None = None,
) -> subprocess.Popen[str]:
    """Starts a Python module in a session of its own, where the terminal's signals do not reach it."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # A signal between the start and the list would leave the process behind.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    try:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", *module],
            env={**os.environ, "PYTHONPATH": path, **environment},
            stdout=stdout,
            text=True,
            start_new_session=True,
            preexec_fn=let_signals_in,  # noqa: PLW1509 - there is no other thread
        )
        processes.append(process)
    finally:
        let_signals_in()
    return process


def let_signals_in() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)


def start_sandbox(processes: list[subprocess.Popen[str]]) -> str:
    """Starts the sandbox on a free port and returns its address."""
    process = start(processes, ["sandbox", "--port", "0"], {}, stdout=subprocess.PIPE)
    found = SANDBOX_READY.search(process.stdout.readline() if process.stdout else "")
    if found is None:
        leave("the sandbox did not start: install its packages with pip install -r sandbox/requirements.txt")
    return found[1]


def sandbox_settings(address: str) -> dict[str, str]:
    return {name.upper(): value for name, value in places(address).items()} | {
        "SANDBOX_URL": address,
        "OAUTH_CLIENT_ID": os.environ.get("SANDBOX_CLIENT_ID", "sandbox-client"),
        "OAUTH_CLIENT_SECRET": os.environ.get("SANDBOX_CLIENT_SECRET", "sandbox-secret"),
    }


def free_address(wanted: str) -> str:
    """`wanted`, or the same host with any free port when something listens there already."""
    if wanted.startswith("unix:"):
        return wanted
    host, port = host_and_port(wanted)
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                leave(f"BIND={wanted!r} cannot be right: {error.strerror} (an address of this machine is needed)")
            probe.bind((host, 0))
            print(f"{wanted} is taken, serving on another port", file=sys.stderr)
        return f"{wanted.rpartition(':')[0]}:{probe.getsockname()[1]}"


def wait_for_port(server: subprocess.Popen[str], address: str) -> None:
    """Returns once the server takes connections; ends the program when it does not come up."""
    if address.startswith("unix:"):
        return
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(server.returncode)
        with suppress(OSError), socket.create_connection(host_and_port(address), timeout=1):
            return
        time.sleep(0.05)
    leave(f"the server did not come up within {START_TIMEOUT:.0f} s")


def welcome(address: str, kind: str, needs_key: bool) -> str:
    body = '{"conversationId": "demo", "prompt": "Where is my parcel?"}'
    key = "-H 'Authorization: Bearer KEY' " if needs_key else ""
    return (
        f"\nThe page is at  http://{address}/   (answers come from {kind}; Ctrl-C ends it)\n\n"
        f"  curl -N http://{address}/stream-llm {key}-H 'Content-Type: application/json' -d '{body}'\n"
    )


def stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Ends what runs, the server before the sandbox that it talks to."""
    ignore_signals()
    for process in reversed(processes):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # it and its workers, if any is left
        process.wait()
