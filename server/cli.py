"""The command `relay`: run it, look at its settings."""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pydantic import SecretStr

from .settings import REDIS, Settings, SettingsError, leave, load, load_or_exit, without_password

ROOT = Path(__file__).parent.parent
START_TIMEOUT = 20.0  # seconds for the sandbox and the server to come up
STOP_TIMEOUT = 10.0  # seconds after Ctrl-C until what is left is killed
SANDBOX_READY = re.compile(r"sandbox ready on (\S+)")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="relay", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="serve; without OAuth settings, with the sandbox in place of Genesys Cloud")
    run.set_defaults(command=lambda _: run_all())
    show = commands.add_parser("settings", help="check the settings and print them, secrets hidden")
    show.add_argument("--example", action="store_true", help="print the file .env.example instead")
    show.set_defaults(command=lambda options: print(example() if options.example else listing(load_or_exit())))
    options = parser.parse_args(arguments)
    options.command(options)


def listing(settings: Settings) -> str:
    """Every setting with the value that it has."""
    return "\n".join(f"{name.upper()}={shown(getattr(settings, name))}" for name in Settings.model_fields)


def example() -> str:
    """The text of .env.example: every setting, its meaning, its default."""
    lines = ["# Every setting of the relay. Copy to .env and set what you need; the values here are the defaults."]
    for name, field in Settings.model_fields.items():
        lines += [
            "",
            f"# {field.description}",
            f"#{name.upper()}={'' if field.default_factory else shown(field.default)}",
        ]
    return "\n".join(lines)


def shown(value: object) -> str:
    """A setting's value as it stands in the environment; a secret hidden."""
    if isinstance(value, SecretStr):
        return "(hidden)" if value.get_secret_value() else ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, str) and value.startswith(REDIS):
        return without_password(value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def run_all() -> None:
    """Serves until Ctrl-C or TERM; what was started ends with it."""
    processes: list[subprocess.Popen[str]] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop_by_signal)
    try:
        environment, kind = dict(os.environ), "your organisation"
        if not has_organisation():
            sandbox = start_sandbox(processes)
            environment |= sandbox_settings(sandbox)
            kind = f"the sandbox at {sandbox}"
        address = free_address(environment.setdefault("BIND", "127.0.0.1:8000"))
        environment["BIND"] = address
        command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"]
        server = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True)  # noqa: S603
        processes.append(server)
        wait_for_port(server, address)
        print(welcome(address, kind), flush=True)
        server.wait()
    except KeyboardInterrupt:
        print("\nstopping", flush=True)
    finally:
        stop(processes)


def stop_by_signal(*_: object) -> None:
    raise KeyboardInterrupt


def has_organisation() -> bool:
    """Whether settings for a real organisation are there. Ends the program when they are there and wrong."""
    try:
        load()
    except SettingsError as error:
        if "is missing" not in str(error):
            leave(str(error))
        return False
    return True


def start_sandbox(processes: list[subprocess.Popen[str]]) -> str:
    """Starts the sandbox on a free port and returns its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sandbox", "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    processes.append(process)
    found = SANDBOX_READY.search(process.stdout.readline() if process.stdout else "")
    if found is None:
        leave("the sandbox did not start: install its packages with pip install -r sandbox/requirements.txt")
    return found[1]


def sandbox_settings(address: str) -> dict[str, str]:
    return {
        "GENESYS_BASE_URL": address,
        "SANDBOX_URL": address,
        "OAUTH_CLIENT_ID": os.environ.get("SANDBOX_CLIENT_ID", "sandbox-client"),
        "OAUTH_CLIENT_SECRET": os.environ.get("SANDBOX_CLIENT_SECRET", "sandbox-secret"),
        "DEFAULT_CONVERSATION_ID": os.environ.get("DEFAULT_CONVERSATION_ID", "demo"),
    }


def free_address(wanted: str) -> str:
    """`wanted`, or the same host with any free port when something listens there already."""
    host, _, port = wanted.rpartition(":")
    if wanted.startswith("unix:"):
        return wanted
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            probe.bind((host, 0))
            print(f"{wanted} is taken, serving on another port", file=sys.stderr)
        return f"{host}:{probe.getsockname()[1]}"


def wait_for_port(server: subprocess.Popen[str], address: str) -> None:
    """Returns once the server takes connections; ends the program when it does not come up."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and not address.startswith("unix:"):
        if server.poll() is not None:
            raise SystemExit(server.returncode)
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.05)


def welcome(address: str, kind: str) -> str:
    body = '{"conversationId": "demo", "prompt": "Where is my parcel?"}'
    return (
        f"\nThe page is at  http://{address}/   (answers come from {kind}; Ctrl-C ends it)\n\n"
        f"  curl -N http://{address}/stream-llm -H 'Content-Type: application/json' -d '{body}'\n"
    )


def stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Ends what runs, the server before the sandbox that it talks to."""
    for process in reversed(processes):
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
