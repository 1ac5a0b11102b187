""".ci/setup, which makes the virtual environment: nothing half-made is trusted, whatever came before."""

import os
import shutil
import signal
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from .conftest import ROOT, until

PYTHON = Path(sys._base_executable)


@pytest.fixture
def setup(tmp_path):
    """Starts a copy of .ci/setup, in a folder of its own, with requirements that are empty."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/setup", tmp_path / ".ci/setup")
    (tmp_path / "requirements.txt").touch()

    def start(**environment):
        return subprocess.Popen(
            [tmp_path / ".ci/setup", "requirements.txt"],
            env=os.environ | {"PYTHON": str(PYTHON)} | environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def works(folder):
    python = folder / ".venv/bin/python"
    return subprocess.run([python, "-m", "pip", "check"], capture_output=True, check=False).returncode == 0


def test_a_folder_without_pip_is_made_anew(setup, tmp_path):
    venv.create(tmp_path / ".venv", symlinks=True)
    assert setup().wait(60) == 0
    assert works(tmp_path)


def test_what_was_killed_in_the_middle_is_made_anew(setup, tmp_path):
    first = setup()
    until(lambda: list(tmp_path.glob(".venv/lib/*/site-packages/pip/_internal")), "pip is being unpacked")
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    (tmp_path / ".venv/left-behind").touch()
    assert setup().wait(60) == 0
    assert works(tmp_path)
    assert not (tmp_path / ".venv/left-behind").exists()


def test_a_whole_environment_is_kept(setup, tmp_path):
    assert setup().wait(60) == 0
    (tmp_path / ".venv/kept").touch()
    assert setup().wait(60) == 0
    assert (tmp_path / ".venv/kept").exists()


def test_two_at_the_same_time_wait_for_each_other(setup, tmp_path):
    both = [setup(), setup()]
    assert [one.wait(90) for one in both] == [0, 0]
    assert works(tmp_path)


def test_the_package_of_the_python_that_was_chosen_is_installed(setup, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    scripts = {
        "id": "echo 0",
        "apt-get": f'echo "$@" >> {tmp_path}/installed',
        "python": f'case "$*" in *ensurepip*) exit 1;; esac; exec {PYTHON} "$@"',
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    one = setup(PYTHON=str(programs / "python"), PATH=f"{programs}:{os.environ['PATH']}")
    assert one.wait(60) == 0, one.stderr.read()
    package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
    assert (tmp_path / "installed").read_text().split()[-1] == package
