"""The command `relay transcript`: what waits, and having it sent again."""

import json
import os
import subprocess
import sys

import pytest

from server.journal import Batch
from server.journal.engines import open_journal
from server.settings import Settings
from server.sse import Done, Token

from .conftest import ROOT, until
from .stores import entry


def relay_transcript(*arguments, **environment):
    """Runs it, with only the settings that a test gives."""
    names = {name.upper() for name in Settings.model_fields}
    clean = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [sys.executable, "-m", "server.cli", "transcript", *arguments],
        env=clean | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def journal(shared_store):
    """A worker's, who dies with the test."""
    journal = open_journal(shared_store, "ann", 60, 600)
    journal.renew()
    yield journal
    journal.close()


def ended(journal, conversation):
    turn = journal.begin(entry(conversation, caller="", mirrored=True), None).entry
    journal.append([Batch(turn.id, [Token(1, "late "), Token(2, "but there"), Done(3, "complete")])])
    return turn.id


def parked(journal, conversation, reason):
    turn = ended(journal, conversation)
    journal.outbox.claim([conversation])
    journal.outbox.park(conversation, reason)
    return turn


def listed(store):
    return json.loads(relay_transcript("list", "--json", STORE_URL=store).stdout)


def test_what_waits_is_listed_oldest_first(journal, shared_store):
    first, second = parked(journal, "c-1", "refused: 404"), ended(journal, "c-2")
    answer = relay_transcript("list", STORE_URL=shared_store)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert [line.split(None, 4) for line in answer.stdout.splitlines()] == [
        ["CONVERSATION", "TURN", "STATE", "CURSOR", "REASON"],
        ["c-1", first, "parked", "0", "refused: 404"],
        ["c-2", second, "pending", "0"],
    ]
    assert listed(shared_store) == [
        {"conversation": "c-1", "turn": first, "state": "parked", "cursor": 0, "reason": "refused: 404"},
        {"conversation": "c-2", "turn": second, "state": "pending", "cursor": 0, "reason": None},
    ]


def test_a_reason_cannot_command_the_terminal_or_begin_a_row(journal, shared_store):
    parked(journal, "c", "refused\x1b[2J\nforged")
    answer = relay_transcript("list", STORE_URL=shared_store)
    assert "\x1b" not in answer.stdout
    assert answer.stdout.count("\n") == 2


def test_retry_makes_what_was_parked_pending_again(journal, shared_store):
    turns = [parked(journal, "c-1", "refused"), parked(journal, "c-2", "refused")]
    answer = relay_transcript("retry", STORE_URL=shared_store)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("2 turns wait to be sent again")
    assert set(answer.stdout.split()[-2:]) == set(turns)
    assert {row["state"] for row in listed(shared_store)} == {"pending"}
    assert set(journal.outbox.unheld(10)) == {"c-1", "c-2"}


def test_retry_of_one_conversation_leaves_the_others(journal, shared_store):
    parked(journal, "c-1", "refused")
    turn = parked(journal, "c-2", "refused")
    answer = relay_transcript("retry", "c-2", STORE_URL=shared_store)
    assert answer.returncode == 0
    assert answer.stdout.split()[-1] == turn
    assert [row["state"] for row in listed(shared_store)] == ["parked", "pending"]


def test_nothing_to_do_is_no_failure(journal, shared_store):
    for verb, words in [("list", "Nothing waits: the transcript has all text.\n"), ("retry", "Nothing was parked.\n")]:
        answer = relay_transcript(verb, STORE_URL=shared_store)
        assert (answer.returncode, answer.stdout, answer.stderr) == (0, words, "")
    assert listed(shared_store) == []


def test_a_running_server_sends_what_is_retried(journal, shared_store, start_relay, sandbox, conversation):
    turn = parked(journal, conversation, "refused")
    relay = start_relay(STORE_URL=shared_store)
    assert relay.state(turn)["transcript"] == {"state": "parked", "cursor": 0, "reason": "refused"}
    assert sandbox.text_of(conversation) == ""
    assert relay_transcript("retry", conversation, STORE_URL=shared_store).returncode == 0
    until(lambda: sandbox.text_of(conversation) == "late but there", "the text is there", patience=5)
    until(lambda: relay.state(turn)["transcript"]["state"] == "delivered", "it is known to be there")


@pytest.mark.parametrize("verb", ["list", "retry"])
@pytest.mark.parametrize(
    ("store", "status", "words"),
    [
        ("memory://", 2, "inside the server's process"),
        ("redis://relay:hunter2@127.0.0.1:1", 1, "redis://relay:(hidden)@127.0.0.1:1 cannot be used: ConnectionError"),
        ("sqlite:////dev/null/relay.db", 1, "cannot be used: Not a directory"),
        ("sqlite:////dev/null", 1, "cannot be used: "),
    ],
)
def test_a_store_that_cannot_be_had_is_said_in_one_line(verb, store, status, words):
    answer = relay_transcript(verb, STORE_URL=store)
    assert answer.returncode == status
    assert answer.stdout == ""
    assert answer.stderr.startswith("STORE_URL=")
    assert words in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert "hunter2" not in answer.stderr


def test_no_file_is_made_where_there_is_none(tmp_path):
    answer = relay_transcript("list", STORE_URL=f"sqlite:///{tmp_path}/relay.db")
    assert answer.returncode == 1
    assert "No such file" in answer.stderr
    assert list(tmp_path.iterdir()) == []
