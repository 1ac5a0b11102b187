"""What `pip install` brings: all packages, the page, the types."""

import shutil
import subprocess
import sys
import sysconfig
import tomllib

import pytest

from .conftest import ROOT

CONSUMER = """\
from flask import Flask
from server import Caller, Done, Extra, Failure, Relay, RelayError, Token, create_app

app = Flask(__name__)
relay = Relay(app, url_prefix="/relay")

@relay.caller
def who() -> str | Caller | None:
    return Caller("ann", ("c-1",))

for event in relay.ask("c-1", "Hello", caller="ann"):
    match event:
        case Token():
            reveal_type(event.text)
        case Failure() | Done() | Extra():
            pass

reveal_type(create_app)
reveal_type(RelayError.sentence)
"""
WRONG = """\
from server import Nonsense, Relay
Relay("app")
Relay().caller(lambda: 7.5)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An environment of its own with what setuptools puts into the wheel; what the project needs is this one's."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    for name in ("server", "sandbox", "examples", "bench"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.in"):
        shutil.copy(ROOT / name, source)
    place = folder / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True, timeout=60)
    packages = next(place.glob("lib/python*/site-packages"))
    build = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_py", "--build-lib", packages]
    subprocess.run(build, cwd=source, check=True, timeout=60)
    (packages / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place, packages


def test_all_of_the_server_is_in_the_package_and_nothing_else(installed):
    _, packages = installed
    found = {str(path.relative_to(packages)) for path in packages.glob("server/**/*") if path.is_file()}
    wanted = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "server").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert found == wanted
    assert {"server/py.typed", "server/page/index.html", "server/routes/openapi/paths.py"} <= found
    assert not [path.name for path in packages.iterdir() if path.name in ("tests", "sandbox", "examples", "bench")]


def check_types(installed, folder, text):
    place, _ = installed
    file = folder / "consumer.py"
    file.write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", "", "--cache-dir", folder / "cache"]
    command += ["--python-executable", place / "bin/python", file]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110, check=False).stdout


def test_an_app_that_has_installed_it_sees_its_types(installed, tmp_path):
    told = check_types(installed, tmp_path, CONSUMER)
    assert 'Revealed type is "str"' in told.replace("builtins.", "")
    assert "-> flask.app.Flask" in told
    assert "error" not in told, told
    told = check_types(installed, tmp_path, WRONG)
    assert "Nonsense" in told
    assert told.count("error") - told.count("errors") >= 3, told


def test_importing_it_imports_no_sockets(installed):
    place, _ = installed
    code = (
        "import server, sys; assert not {'requests', 'flask', 'socket'} & set(sys.modules); server.Relay; server.Caller"
    )
    subprocess.run([place / "bin/python", "-c", code], check=True, timeout=60, cwd="/")


def test_the_command_is_named_in_the_package():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["relay"] == "server.cli:main"
