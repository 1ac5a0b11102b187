"""The backups of docs/operations.md, taken while the relay runs, and what is there after the way back."""

import re
import shlex
import subprocess
import sys

import pytest

from .conftest import ROOT, TcpRedis, until

TOKENS = ["a ", "b ", "c"]


def command(words):
    """The one line of the document's shell blocks that has these words."""
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```", (ROOT / "docs" / "operations.md").read_text())
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    (line,) = [line for line in lines if words in line]
    return shlex.split(line)


@pytest.fixture
def two_turns(sandbox, prompt):
    """Begins one that ends and one that runs; returns their ids."""

    def begin(relay):
        sandbox.script(prompt, TOKENS)
        ended = relay.ask(prompt).finish().id
        sandbox.script(f"{prompt} 2", TOKENS, gate=True)
        running = relay.begin(f"{prompt} 2")
        until(lambda: relay.state(running)["text"] == TOKENS[0], "its first token")
        return ended, running

    return begin


def test_sqlite_is_backed_up_while_it_is_used(start_relay, two_turns, tmp_path):
    relay = start_relay(STORE_URL=f"sqlite:///{tmp_path}/relay.db", DISCONNECT_GRACE="60", GATEWAY_IDLE_TIMEOUT="60")
    ended, running = two_turns(relay)
    python, *rest = command("VACUUM INTO")
    assert python == "/opt/relay/a/.venv/bin/python"
    backup = [sys.executable, *(part.replace("/var/lib/relay", str(tmp_path)) for part in rest)]
    subprocess.run(backup, check=True, timeout=20, umask=0o077)
    relay.stop()
    assert (tmp_path / "backup.db").stat().st_mode & 0o077 == 0
    other = start_relay(STORE_URL=f"sqlite:///{tmp_path}/backup.db")
    assert other.state(ended)["text"] == "".join(TOKENS)
    until(lambda: other.state(running)["status"] == "interrupted", "its end", patience=20)


def test_redis_is_backed_up_while_it_is_used(start_relay, two_turns, tmp_path):
    folders = [tmp_path / name for name in ("before", "after")]
    for folder in folders:
        folder.mkdir()
    redis = TcpRedis(folders[0], "--appendonly", "yes")
    try:
        relay = start_relay(STORE_URL=redis.url, DISCONNECT_GRACE="60", GATEWAY_IDLE_TIMEOUT="60")
        ended, running = two_turns(relay)
        program, *rest = command("--rdb")
        options = [part.replace("/var/backups/relay.rdb", f"{folders[1]}/dump.rdb") for part in rest]
        subprocess.run([program, "-p", str(redis.port), *options], check=True, capture_output=True, timeout=20)
        relay.stop()
    finally:
        redis.stop()
    redis = TcpRedis(folders[1], "--appendonly", "no")
    try:
        client = ["redis-cli", "-p", str(redis.port)]
        subprocess.run([*client, *["config", "set", "appendonly", "yes"]], check=True, capture_output=True, timeout=20)
        info = [*client, "info", "persistence"]
        until(
            lambda: b"aof_rewrite_in_progress:0" in subprocess.run(info, check=True, capture_output=True).stdout,
            "the append-only file",
        )
        redis.stop()
        redis = TcpRedis(folders[1], "--appendonly", "yes")
        other = start_relay(STORE_URL=redis.url)
        assert other.state(ended)["text"] == "".join(TOKENS)
        until(lambda: other.state(running)["status"] == "interrupted", "its end", patience=20)
    finally:
        redis.stop()
