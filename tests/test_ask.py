"""`relay ask`: what it prints in a pipe and on a terminal, how it goes on after a cut, and how it is cancelled."""

import json
import signal
import subprocess

import pytest

from server.access.keys import make_key
from server.sse_reader import StreamReader

from .command import command, environment, lines_of, run, run_on_terminal
from .conftest import until
from .proxy import Proxy


@pytest.fixture
def ask(tmp_path, relay, conversation):
    """Asks the relay in the test's conversation."""
    return lambda *arguments, **more: run(
        tmp_path, "ask", "--url", relay.url, "--conversation", conversation, *arguments, **more
    )


def test_in_a_pipe_it_prints_the_text_alone(ask, sandbox, prompt, conversation):
    sandbox.script(prompt, ["Grüße ", "\x1b[31m", "from here"])
    ended = ask(prompt)
    assert ended == (0, "Grüße \x1b[31mfrom here\n", "")
    until(lambda: sandbox.text_of(conversation) == "Grüße \x1b[31mfrom here", "the transcript has it")


def test_it_reads_the_prompt_from_standard_input(ask):
    assert ask("-", stdin="Please,\ncount to 3\n").out == "1 2 3 \n"


def test_as_json_it_prints_each_event_in_a_line(ask, sandbox, prompt):
    sandbox.script(prompt, ["a", "b"])
    *tokens, done = map(json.loads, ask("--json", prompt).out.splitlines())
    assert [one["data"]["token"] for one in tokens] == ["a", "b"]
    assert [one["id"] for one in tokens] == [1, 2]
    assert done["event"] == "done"
    assert done["data"]["status"] == "complete"


def test_a_connection_that_is_cut_again_and_again_loses_and_repeats_nothing(tmp_path, relay, sandbox, prompt):
    tokens = [f"t{number} " for number in range(60)]
    sandbox.script(prompt, tokens, interval_ms=5)
    proxy = Proxy(relay.url)
    proxy.budget, proxy.swallow = 1000, 1
    try:
        ended = run(tmp_path, "ask", "--url", proxy.url, "--conversation", "c-cut", prompt)
    finally:
        proxy.close()
    assert ended == (0, "".join(tokens) + "\n", "")
    assert len(proxy.asked) > 1, "it had to come back"
    assert sandbox.gateway_calls(prompt) == 1, "the lost answer to its POST began nothing new"


@pytest.mark.parametrize(("form", "streamed"), [([], b"a"), (["--json"], b'{"id"')])
def test_ctrl_c_cancels_the_stream_and_says_so(relay, sandbox, prompt, tmp_path, form, streamed):
    sandbox.script(prompt, ["a", "b"], gate=True)
    asking = subprocess.Popen(
        command("ask", "--url", relay.url, "--conversation", "c-cancel", *form, prompt),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with asking:
        assert asking.stdout.read(len(streamed)) == streamed
        asking.send_signal(signal.SIGINT)
        _, said = asking.communicate(timeout=20)
    assert asking.returncode == 130
    assert said == b"cancelled\n"
    ended = until(
        lambda: [e for e in relay.log if e["message"] == "turn ended" and e.get("conversation") == "c-cancel"],
        "its end",
    )
    assert ended[-1]["status"] == "cancelled"


def test_a_reader_of_the_pipe_that_leaves_cancels_the_stream(relay, tmp_path):
    asking = subprocess.Popen(
        command("ask", "--url", relay.url, "--conversation", "c-head", "count to 5000"),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with asking:
        assert asking.stdout.read(2) == b"1 "
        asking.stdout.close()
        assert asking.stderr.read() == b""
    assert asking.returncode == 1
    until(lambda: any(e["message"] == "turn ended" and e.get("conversation") == "c-head" for e in relay.log), "its end")


def test_an_answer_that_fails_ends_with_its_sentence_and_code_behind_the_text(ask, sandbox, prompt):
    sandbox.script(prompt, ["a ", "b ", "c ", "d "])
    sandbox.fault("gateway", "cut", prompt=prompt)
    ended = ask(prompt)
    assert ended.status == 1
    assert ended.out == "a b c \n"
    assert "Ask again" in ended.err
    assert "[answer_cut]" in ended.err


def test_a_refusal_says_what_to_do_here(tmp_path, relay, prompt):
    ended = run(tmp_path, "ask", "--url", relay.url, prompt)
    assert ended.status == 1
    assert "--conversation" in ended.err
    assert "[conversation_required]" in ended.err


def test_a_key_is_asked_for_taken_and_never_printed(tmp_path, start_relay):
    fresh, other = make_key("shop"), make_key("other")
    relay = start_relay(ACCESS="keys", RELAY_API_KEYS=fresh.entry)
    arguments = "ask", "--url", relay.url, "--conversation", "c-key", "count to 2"
    refused = run(tmp_path, *arguments, RELAY_KEY=other.key)
    assert refused.status == 1
    assert "[invalid_token]" in refused.err
    assert "RELAY_KEY" in refused.err
    assert other.key not in refused.all
    assert run(tmp_path, *arguments, RELAY_KEY=fresh.key).out == "1 2 \n"
    assert run(tmp_path, *arguments, "--key", fresh.key).out == "1 2 \n"


def test_where_nothing_listens_it_says_where_it_looked(tmp_path):
    ended = run(tmp_path, "ask", "hello", BIND="127.0.0.1:1")
    assert ended.status == 1
    assert "http://127.0.0.1:1 cannot be reached" in ended.err


def test_what_is_no_relay_is_named_so(tmp_path, sandbox):
    ended = run(tmp_path, "ask", "--url", sandbox.url, "hello")
    assert ended.status == 1
    assert "no relay" in ended.err


@pytest.mark.parametrize("columns", [60, 140])
def test_on_a_terminal_it_ends_with_the_figures(tmp_path, relay, sandbox, prompt, columns):
    sandbox.script(prompt, ["one ", "\x1b]0;owned\x07", "two"])
    ended = run_on_terminal(tmp_path, columns, "ask", "--url", relay.url, "--conversation", "c-tty", prompt)
    assert ended.status == 0
    assert "waiting for the first token" in ended.out
    assert "\x1b]" not in ended.out, "the model commands no terminal"
    shown = lines_of(ended.out)
    assert any(line == "one \\x1b]0;owned\\x07two" for line in shown)
    figures = " ".join(shown)
    assert "first token after" in figures
    assert "tokens/s" in figures
    assert "stop" in figures


def test_without_colours_the_terminal_shows_none(tmp_path, relay):
    arguments = "ask", "--url", relay.url, "--conversation", "c-tty", "count to 3"
    assert "\x1b[32m" not in run_on_terminal(tmp_path, 80, *arguments, NO_COLOR="1").out


def test_a_stream_is_read_the_same_however_it_is_cut():
    stream = b'retry: 1000\r\n\r\n: ping\n\nid: 1\ndata: {"token":"\xc3\xa4"}\n\nid: 2\nevent: done\ndata: {}\n\n'
    for size in range(1, len(stream) + 1):
        reader = StreamReader()
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        events = [event for piece in pieces for event in reader.feed(piece)]
        assert events == [(1, "message", {"token": "ä"}), (2, "done", {})]
        assert reader.last_id == 2
