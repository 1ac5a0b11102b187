"""Every command and Python program that the documents show works: it is run here, or names the test that runs it."""

import os
import re
import subprocess
import sys

import pytest

from server.access.keys import make_key

from .conftest import ROOT, RelayServer
from .documents import blocks, commands

ELSEWHERE = ("node_modules", ".venv", ".pytest_cache")
DOCUMENTS = sorted(
    str(path.relative_to(ROOT)) for path in ROOT.rglob("*.md") if not any(part in ELSEWHERE for part in path.parts)
)
SHOWN = [(document, block) for document in DOCUMENTS for block in blocks((ROOT / document).read_text())]
COMMANDS = [
    pytest.param(document, command, id=f"{document}:{command.line}")
    for document, block in SHOWN
    for command in commands(block)
]
PROGRAMS = [
    pytest.param(document, block, id=f"{document}:{block.line}")
    for document, block in SHOWN
    if block.language == "python" or (not block.language and block.text.startswith(("import ", "from ")))
]
CI = "what runs these tests"
# What takes a machine of its own, the whole project or its ports: the test that does the same, or what else proves it.
PROVED = {
    r"make run": "test_cli::test_run_serves_with_the_sandbox_and_leaves_no_process",
    r"make (test|lint)": CI,
    r"\.venv/bin/gunicorn -c gunicorn\.conf\.py": "conftest::RelayServer",
    r"python -m sandbox --port \d+": "conftest::Sandbox",
    r"python -m pip install -r [\w./-]+": "test_requirements::test_what_is_asked_for_is_what_is_pinned",
    r"pip-audit ": "asks a service; the versions are checked where it is run",
}
TEST = re.compile(r"(\w+)::(\w+)")


@pytest.fixture(scope="module")
def relay(shared_sandbox):
    relay = RelayServer(shared_sandbox.url, DEFAULT_CONVERSATION_ID="demo")
    yield relay
    relay.stop()
    shared_sandbox.reset()


@pytest.fixture(scope="module")
def places(shared_sandbox, relay):
    """What the documents' addresses and secrets stand for here."""
    key = make_key("shop")
    keyed = RelayServer(shared_sandbox.url, ACCESS="keys", RELAY_API_KEYS=key.entry)
    yield {
        "http://127.0.0.1:8000": relay.url,
        "https://relay.example": keyed.url,
        "localhost:8001": shared_sandbox.url,
        "relay_Zm9v...": key.key,
        "kq3...": lambda: relay.begin("Where is my parcel?", "demo"),
        ".venv/bin/python": sys.executable,
    }
    keyed.stop()


def here(text, places):
    """`text` with what its addresses stand for."""
    for shown, real in places.items():
        if shown in text:
            text = text.replace(shown, real() if callable(real) else real)
    return text


def run(command, relay):
    """What it prints; fails unless it ends well. Its settings are the server's."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | relay.settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_a_command_that_is_shown_works(document, command, places, relay):
    proof = next((proof for pattern, proof in PROVED.items() if re.match(pattern, command.text)), None)
    if proof is None:
        text = here(command.text, places).replace("curl ", "curl --fail-with-body --no-progress-meter ")
        run(["bash", "-euc", text], relay)
    for file, name in TEST.findall(proof or ""):
        assert re.search(rf"\b(def|class) {name}\b", (ROOT / f"tests/{file}.py").read_text()), proof


@pytest.mark.parametrize(("document", "program"), PROGRAMS)
def test_a_program_that_is_shown_prints_an_answer(document, program, places, relay):
    assert run([sys.executable, "-c", here(program.text, places)], relay).strip()
