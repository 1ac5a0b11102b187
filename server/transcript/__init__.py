"""The transcript: each conversation's text, mirrored in the order in which its turns began.

A Delivery is one turn on its way into the transcript. What carries it is a link, one for each conversation.
"""

import time

from ..bell import Bell
from ..journal.tail import Follower, Tail
from ..sse import Done, Token

MAX_MESSAGE_CHARS = 8_000  # in one message; what waits behind a busy link is joined up to here


class Delivery:
    """One turn's way into the transcript: what was sent, and what is known to have arrived."""

    def __init__(self, tail: Tail, bell: Bell) -> None:
        self.turn_id = tail.turn_id
        self.confirmed = 0  # id of the last event that has arrived for certain
        self.text_sent = 0  # id of the last event with text that was sent
        self.sent_all = False
        self.is_forgotten = False  # what comes next cannot be had any more
        self.began = time.monotonic()
        self._follower: Follower = tail.follow(is_audience=False, bell=bell)
        self._tail = tail

    @property
    def arrived(self) -> bool:
        return self.sent_all and self.confirmed >= self.text_sent

    def next_text(self) -> tuple[str, int, int] | None:
        """The text that comes next, with the ids of its first and last event; None while there is none.

        At most some MAX_MESSAGE_CHARS, but never less than one token. May wait for the journal.
        Raises StoreUnavailable.
        """
        # Looked at before `take`, which may wait: what comes in the meantime is not forgotten.
        is_behind = self._tail.last_id > self._follower.cursor
        events = self._follower.take()
        self.is_forgotten = not events and (is_behind or self._follower.closed)
        texts: list[str] = []
        length = 0
        ids: list[int] = []
        for event in events:
            if type(event) is Token:
                if texts and length + len(event.text) > MAX_MESSAGE_CHARS:
                    self._follower.cursor = ids[-1]
                    break
                texts.append(event.text)
                ids.append(event.id)
                length += len(event.text)
            elif type(event) is Done:
                self.sent_all = True
        if not texts:
            return None
        self.text_sent = ids[-1]
        return "".join(texts), ids[0], ids[-1]

    def rewind(self) -> None:
        """Goes back to what has arrived: what was sent since may have died with its link."""
        self._follower.cursor = self.confirmed
        self.text_sent = self.confirmed
        self.sent_all = False

    def close(self) -> None:
        self._follower.close()
