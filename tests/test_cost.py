"""What a token costs, in counts that are the same on every machine: system calls, Python's calls, and memory blocks."""

import math
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from server.chunks import ChunkReader
from server.journal import Entry
from server.journal.tail import Tail
from server.sse import encode
from server.turn import Turn

from .conftest import until

TOKENS = 400
PACE_MS = 10
BEFORE = 50  # tokens until the count begins: setting up is over
COUNTED = 200  # tokens
SOME = 10  # calls that begin before and end after
CALL = re.compile(r"^\d+ +(\w+)\(", re.MULTILINE)  # where one begins
LINE = b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" hello"}}]}\n\n'


def calls_of(process, output, act):
    """The system calls of all threads of a process, by name, while `act` runs."""
    command = ["strace", "-f", "-q", "-o", str(output), "-p", str(process)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: output.exists() and output.stat().st_size, "strace sees the worker")
        act()
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(10)
        tracer.stderr.close()
    return Counter(CALL.findall(output.read_text()))


def count(relay, sandbox, prompt, conversation, tmp_path):
    """System calls by name, for COUNTED tokens of one stream."""
    sandbox.script(prompt, [f"t{number} " for number in range(TOKENS)], interval_ms=PACE_MS)
    answer = relay.ask(prompt, conversation)
    for _ in range(BEFORE):
        answer.next_token()

    def read_some():
        for _ in range(COUNTED):
            answer.next_token()

    (worker,) = relay.workers
    calls = calls_of(worker, tmp_path / "calls", read_some)
    answer.close()
    return calls


def test_a_token_takes_one_read_and_one_write(start_relay, sandbox, prompt, conversation, tmp_path):
    calls = count(start_relay(TRANSCRIPT="off", WEB_CONCURRENCY="1"), sandbox, prompt, conversation, tmp_path)
    # Fewer where a busy machine lets two tokens come together.
    assert COUNTED / 2 <= calls["sendto"] <= COUNTED + SOME
    assert COUNTED / 2 <= calls["recvfrom"] <= COUNTED + SOME
    # The event loop asks once a token, and a few times a second for all streams: no call for each of them more.
    assert calls.total() <= 8 * COUNTED, calls


def test_the_transcript_takes_one_more_write(start_relay, sandbox, prompt, conversation, tmp_path):
    calls = count(start_relay(WEB_CONCURRENCY="1"), sandbox, prompt, conversation, tmp_path)
    assert calls["sendto"] <= 2 * COUNTED + 2 * SOME, calls
    assert calls["recvfrom"] <= COUNTED + 3 * SOME, calls


@pytest.fixture
def turn():
    """A turn whose one follower keeps up, and a journal that keeps up as well."""
    tail = Tail("turn", None)
    entry = Entry("turn", None, "caller", began=time.time())

    def keep(tail):
        if tail.last_id - tail.kept_id >= 5:
            tail.kept(tail.last_id)

    class Nothing:
        lease_ends = math.inf

        def note(self, *anything):
            pass

        def wait_for_lease(self):
            pass

    turn = Turn(entry, tail, None, Nothing(), keep, Nothing())
    turn.sent = 0

    def send(events):
        turn.sent += len(encode(events))
        return True

    follower = turn.follow(0, can_return=False)
    follower.send_now = send
    follower.is_idle = True
    return turn


def feed(turn, count):
    reader = ChunkReader()
    for _ in range(count):
        deltas = reader.feed(LINE)
        if not turn.take_now(deltas, time.monotonic()):
            turn.take(deltas)


def test_a_token_takes_no_more_calls_than_it_did(turn):
    feed(turn, 100)
    calls = Counter()
    sys.setprofile(lambda frame, event, argument: calls.update([event]))
    try:
        feed(turn, COUNTED)
    finally:
        sys.setprofile(None)
    assert turn.sent > (100 + COUNTED) * len(b'data: {"token":" hello"}'), "all were sent at once"
    assert calls["call"] / COUNTED <= 15, calls
    assert calls["c_call"] / COUNTED <= 22, calls


def test_a_stream_holds_no_more_however_long_it_is(turn):
    feed(turn, 1000)
    before = sys.getallocatedblocks()
    feed(turn, 1000)
    assert sys.getallocatedblocks() - before < 50
