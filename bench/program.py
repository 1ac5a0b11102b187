"""What the programs of the benchmark have in common: a clean end, and what is said of the machine."""

import os
import platform
import re
import resource
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path


def run(main: Callable[[], None]) -> None:
    """Runs `main`; Ctrl-C and SIGTERM end it after its servers, without a traceback."""
    signal.signal(signal.SIGTERM, stop_by_signal)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for the servers, which inherit it
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None


def stop_by_signal(*_: object) -> None:
    raise KeyboardInterrupt


def provenance(module: str, arguments: Sequence[str]) -> str:
    """The command that gives the figures, and where and when it was run."""
    command = shlex.join([".venv/bin/python", "-m", module, *arguments])
    return f"`{command}` on {machine()}"


def machine() -> str:
    day, load = time.strftime("%Y-%m-%d", time.gmtime()), os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores of {processor()} ({platform.machine()}), {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, {day}, load before {load:.1f}"
    )


def processor() -> str:
    """Its name, where the system tells."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found[1].strip() if found else platform.processor() or "an unnamed processor"
