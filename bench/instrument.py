"""The two programs of `wire/`, built with `cc` when they are first needed: the gateway, and the client that times it.

They are in C so that they take a small part of the two cores on which they run beside what they measure: a paced token
costs them some ten microseconds each, its two system calls; one of a flood less than one.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "wire"
BUILT = Path(__file__).parent.parent / "var" / "bench"


def program(name: str) -> str:
    """The path of `gateway` or `client`, built anew where its source is newer."""
    source, built = SOURCES / f"{name}.c", BUILT / name
    newest = max(path.stat().st_mtime for path in (source, SOURCES / "wire.h"))
    if not built.exists() or built.stat().st_mtime < newest:
        build(source, built)
    return str(built)


def build(source: Path, target: Path) -> None:
    """Whoever builds the same at the same time puts the same in its place."""
    if shutil.which("cc") is None:
        raise SystemExit("the benchmark takes a C compiler: install gcc or clang, so that there is a `cc`")
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, made = tempfile.mkstemp(dir=target.parent)
    os.close(handle)
    subprocess.run(["cc", "-O2", "-Wall", "-o", made, source], check=True)
    Path(made).replace(target)
