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
HOST = "changes a host of its own: looked at for its syntax, and for the files that it takes from here"
# What takes a machine of its own, the whole project or its ports: the test that does the same, or what else proves it.
PROVED = {
    r"make run": "test_cli::test_run_serves_with_the_sandbox_and_leaves_no_process",
    r"make (test|lint)": CI,
    r"make chaos": "test_chaos::test_whatever_breaks_every_promise_is_kept",
    r"make bench": "test_bench::test_every_part_measures_and_keeps_what_it_found",
    r"\.venv/bin/python -m bench\.soak": "test_bench::test_a_soak_ends_with_a_verdict",
    r"\.venv/bin/gunicorn -c gunicorn\.conf\.py": "conftest::RelayServer",
    r"(\.venv/bin/)?python -m sandbox --port \d+": "conftest::Sandbox",
    r"(python -m )?pip install -r [\w./-]+": "test_requirements::test_what_is_asked_for_is_what_is_pinned",
    r"\.venv/bin/python -m bench\.scaling": "test_scaling::test_the_document_says_what_its_table_of_costs_comes_to",
    r"pip-audit ": "asks a service; the versions are checked where it is run",
    r"pip install \.\./\.\.": "test_package::test_all_of_the_server_is_in_the_package_and_nothing_else",
    r"export |python models\.py|gunicorn$": "test_shop::test_a_deploy_in_mid_stream_loses_nothing",
    r"(useradd|install|systemctl|journalctl|nginx|git archive|python3 -m venv|redis-cli|openssl|docker) ": HOST,
    r"(PYTHONPATH=\S+ )?(systemd-run|runuser|printf|certbot|rm|ln|/opt/relay/\S+) ": HOST,
}
# Programs in pieces, or in another language.
PROVED_PROGRAMS = {
    "import {": "test_client_readme::test_javascript",
    "from server.gunicorn_hooks": "test_shop::test_a_deploy_in_mid_stream_loses_nothing",
}
GO_ON = {"from server import Done": "from flask"}  # how a program begins, and the one that it goes on from
OURS = re.compile(r"(?<![\w/])(?:deploy|server|bench)/[\w./@-]+|\.env\.example|requirements\.txt")
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
    relay.settings |= {"BIND": relay.url.removeprefix("http://"), "RELAY_KEY": key.key, "PYTHONPATH": "client"}
    yield {
        "http://127.0.0.1:8000": relay.url,
        "https://relay.example": keyed.url,
        "http://127.0.0.1:8080": relay.url,
        "localhost:8001": shared_sandbox.url,
        "relay_Zm9v...": key.key,
        "bench transcript --rounds 1": "bench transcript --rounds 1 --size 0.02 --seconds 1",  # the same, sooner
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
    proof = proof_of(command.text, PROVED)
    if proof is None:
        text = here(command.text, places).replace("curl ", "curl --fail-with-body --no-progress-meter ")
        run(["bash", "-euc", text], relay)
    elif proof is HOST:
        run(["bash", "-nc", command.text], relay)
        for path in OURS.findall(command.text):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize(("document", "program"), PROGRAMS)
def test_a_program_that_is_shown_runs(document, program, places, relay):
    if proof_of(program.text, PROVED_PROGRAMS) is None:
        text = "\n".join(block.text for block in [*goes_on_from(document, program), program])
        run([sys.executable, "-c", here(text, places)], relay)


def goes_on_from(document, program):
    """The block that a program needs before it."""
    begin = next((begin for later, begin in GO_ON.items() if program.text.startswith(later)), None)
    return [block for place, block in SHOWN if place == document and begin and block.text.startswith(begin)]


def proof_of(text, proofs):
    """What proves it elsewhere; None where it is to be run here."""
    return next((proof for pattern, proof in proofs.items() if re.match(pattern, text)), None)


def test_what_proves_the_rest_is_there():
    for file, name in TEST.findall(" ".join([*PROVED.values(), *PROVED_PROGRAMS.values()])):
        assert re.search(rf"\b(def|class) {name}\b", (ROOT / f"tests/{file}.py").read_text()), name
