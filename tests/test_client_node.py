"""client/relay.js in Node, where it took people by surprise."""

import json
import subprocess
import time

import pytest

from .conftest import ROOT
from .script_server import ScriptServer

TOKENS = [f"t{number} " for number in range(1, 13)]


@pytest.fixture
def run(tmp_path):
    """Runs a script that has `Relay`; returns what it prints."""
    (tmp_path / "relay.mjs").write_text((ROOT / "client" / "relay.js").read_text())

    def run(script):
        (tmp_path / "script.mjs").write_text(f'import {{ Relay }} from "./relay.mjs";\n{script}')
        command = ["node", "script.mjs"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True).stdout

    return run


def test_a_cursor_that_was_saved_as_text_is_a_number(relay, sandbox, prompt, run):
    sandbox.script(prompt, TOKENS)
    stream = relay.begin(prompt)
    relay.follow(stream).finish()
    printed = run(f"""
        const tokens = [];
        for await (const event of new Relay("{relay.url}/").follow("streams/{stream}", {{ after: "9" }})) {{
          if (event.type === "token") tokens.push(event.token);
        }}
        console.log(JSON.stringify(tokens));
    """)
    assert json.loads(printed) == TOKENS[9:]


def test_who_aborts_on_hearing_of_a_loss_waits_no_longer_and_nothing_keeps_node_alive(run):
    with ScriptServer((503, {"Retry-After": "50"})) as server:
        began = time.monotonic()
        printed = run(f"""
            const stop = new AbortController();
            try {{
              for await (const event of new Relay("{server.url}/").follow("streams/1", {{ signal: stop.signal }})) {{
                console.log(event.type);
                stop.abort();
              }}
            }} catch (error) {{ console.log(error.name); }}
        """)
    assert printed.split() == ["lost", "AbortError"]
    assert time.monotonic() - began < 40, "the server's wait is 50 s"
