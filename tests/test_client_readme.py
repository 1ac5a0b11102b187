"""What the README shows of the clients does what it says."""

import re
import subprocess
import sys

from .conftest import ROOT
from .documents import blocks

ADDRESS = "http://127.0.0.1:8000"


def example(first_words, relay):
    """The README's example that begins with these words, at the relay's address."""
    section = re.search(r"^## Clients\n(.*?)^## ", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE).group(1)
    found = next(block.text for block in blocks(section) if block.text.startswith(first_words))
    assert ADDRESS in found
    return found.replace(ADDRESS, relay.url)


def run(command, folder, **options):
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30, check=True, **options).stdout


def test_curl(relay, sandbox, tmp_path):
    sandbox.script("Where is my parcel?", ["Hel", "lo"])
    output = run(["bash", "-c", example("curl", relay)], tmp_path)
    assert 'id: 2\ndata: {"token":"lo"}' in output
    assert "event: done" in output


def test_javascript(relay, sandbox, tmp_path):
    sandbox.script("Where is my parcel?", ["Hel", "lo"])
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "relay.js").write_text((ROOT / "client" / "relay.js").read_text())
    (tmp_path / "ask.js").write_text(example("import", relay))
    assert run(["node", "ask.js"], tmp_path) == "Hel\nlo\n"


def test_python(relay, sandbox, tmp_path):
    sandbox.script("Where is my parcel?", ["Hel", "lo"])
    environment = {"PYTHONPATH": str(ROOT / "client"), "PATH": ""}
    assert run([sys.executable, "-c", example("from", relay)], tmp_path, env=environment) == "Hello"
