"""Mirrors one turn from a journal that fails: `python -m tests.failing_journal SANDBOX_URL CONVERSATION`.

A process of its own, because a link needs the patched standard library that a worker has.
"""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

import sys
import time

import gevent

from server.errors import StoreUnavailable
from server.journal import Batch, Entry
from server.journal.memory import MemoryJournal
from server.journal.tail import Tail
from server.relay import make_credentials
from server.settings import Settings
from server.sse import Done, Token
from server.transcript import Transcript
from server.transcript.websocket import Websocket

EVENTS = [*(Token(number, f"t{number - 1} ") for number in range(1, 3001)), Done(3001, "complete", "stop", None)]
FAILURES = [StoreUnavailable(), StoreUnavailable(), KeyError("access_token=secret")]


class Failing:
    """A journal or outbox each of whose calls is out of reach twice, then broken in a way that no one expects."""

    def __init__(self, real):
        self._real = real
        self._failures = {}

    def __getattr__(self, name):
        real = getattr(self._real, name)

        def call(*arguments):
            failures = self._failures.setdefault(name, [*FAILURES])
            if failures:
                raise failures.pop(0)
            return real(*arguments)

        return call


class Place:
    """The only worker, which runs nothing itself."""

    def __init__(self, journal):
        self._tail = Tail("turn", journal)
        for begin in range(0, len(EVENTS), 100):
            self._tail.append(EVENTS[begin : begin + 100])
            self._tail.kept(self._tail.last_id)

    def listen(self, turn_id, cursor, bell):
        return self._tail.follow(cursor, is_audience=False, bell=bell)

    def may_send(self):
        return True

    def may_judge(self):
        return True

    def runs_here(self, turn_id):
        return False

    def runs_elsewhere(self, turn_id):
        return False


def main():
    url, conversation = sys.argv[1:]
    settings = Settings(
        access="open", genesys_base_url=url, oauth_client_id="sandbox-client", oauth_client_secret="sandbox-secret"
    )
    journal = MemoryJournal("worker", 60, 60)
    journal.begin(Entry("turn", conversation, "", time.time(), mirrored=True), None)
    journal.append([Batch("turn", EVENTS)])
    sink = Websocket(settings, make_credentials(settings))
    transcript = Transcript(Failing(journal.outbox), Place(Failing(journal)), sink, max_open=1)
    for loop in transcript.loops():
        gevent.spawn(for_ever, loop)
    with gevent.Timeout(20, AssertionError("the text has not arrived")):
        while journal.outbox.find("turn").state != "delivered":
            journal.renew()
            gevent.sleep(0.05)
    transcript.close()


def for_ever(loop):
    while True:
        try:
            loop()
        except KeyError:
            gevent.sleep(0.05)


if __name__ == "__main__":
    main()
