"""Signed leave to see one stream: what an `EventSource`, which sends no header, carries in its address."""

import hashlib
import hmac
import time
from collections.abc import Callable

from itsdangerous import Signer

SALT = b"relay: ticket for a stream"  # what else the secret may sign one day is no ticket
MAX_DIGITS = 12  # of an expiry


class Tickets:
    """A ticket is EXPIRY.SIGNATURE; the signature is over the stream's id as well. It says nothing of who got it."""

    def __init__(self, secret: Callable[[], bytes], seconds: float, clock: Callable[[], float] = time.time) -> None:
        """`secret` is asked for each ticket; `seconds` is how long one is good; `clock` gives seconds since 1970."""
        self._secret = secret
        self._seconds = seconds
        self._clock = clock

    def make(self, stream_id: str) -> str:
        """A ticket that is good from now on. Raises what `secret` raises."""
        expiry = str(int(self._clock() + self._seconds))
        return f"{expiry}.{self._sign(stream_id, expiry)}"

    def fits(self, ticket: str, stream_id: str) -> bool:
        """Whether the ticket is good for this stream. Raises what `secret` raises."""
        expiry, _, signature = (ticket if ticket.isascii() else "").partition(".")
        # The texts are compared, not what they decode to: several texts decode to the same bytes.
        is_ours = hmac.compare_digest(self._sign(stream_id, expiry).encode(), signature.encode())
        return is_ours and expiry.isdigit() and len(expiry) <= MAX_DIGITS and self._clock() < int(expiry)

    def _sign(self, stream_id: str, expiry: str) -> str:
        signer = Signer(self._secret(), salt=SALT, key_derivation="hmac", digest_method=hashlib.sha256)
        return signer.get_signature(f"{stream_id}.{expiry}").decode()
