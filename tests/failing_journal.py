"""Mirrors one turn from a journal that fails: `python -m tests.failing_journal SANDBOX_URL CONVERSATION`.

A process of its own, because a link needs the patched standard library that a worker has.
"""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

import sys

from server.errors import StoreUnavailable
from server.journal.tail import Tail
from server.relay import make_credentials
from server.settings import Settings
from server.sse import Done, Token
from server.transcript.websocket import Transcript

EVENTS = [*(Token(number, f"t{number - 1} ") for number in range(1, 3001)), Done(3001, "complete", "stop", None)]


class FailingJournal:
    """Out of reach twice, then broken in a way that no one expects, then well."""

    def __init__(self):
        self._failures = [StoreUnavailable(), StoreUnavailable(), KeyError("access_token=secret")]

    def read(self, turn_id, after, limit):
        if self._failures:
            raise self._failures.pop(0)
        return EVENTS[after : after + limit]


def main():
    url, conversation = sys.argv[1:]
    settings = Settings(
        access="open", genesys_base_url=url, oauth_client_id="sandbox-client", oauth_client_secret="sandbox-secret"
    )
    transcript = Transcript(settings, make_credentials(settings), max_links=1)
    tail = Tail("turn", FailingJournal())
    for begin in range(0, len(EVENTS), 100):
        tail.append(EVENTS[begin : begin + 100])
        tail.kept(tail.last_id)
    transcript.mirror(conversation, tail)
    assert transcript.idle.wait(20), "the text has arrived"
    transcript.close()


if __name__ == "__main__":
    main()
