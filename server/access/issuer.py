"""An identity provider's keys (JSON Web Key Set, RFC 7517): fetched, kept, renewed."""

import json
import logging
import os
from collections.abc import Sequence
from time import monotonic
from typing import Any, NamedTuple

import gevent
import requests
from gevent.event import Event as Flag
from jwt import PyJWK, PyJWTError
from jwt.algorithms import AllowedPublicKeys
from urllib3.exceptions import HTTPError

from ..errors import IssuerUnavailable

log = logging.getLogger(__name__)

TIMEOUT = (5.0, 5.0)  # seconds to connect, and between two bytes of the answer
WHOLE_TIMEOUT = 10.0  # seconds for one fetch
PAUSE = 5.0  # seconds between two fetches, whatever is asked for
LIFE = 600.0  # seconds until keys are fetched again, so that one that was withdrawn goes
MAX_ANSWER = 256 * 1024  # bytes
MAX_KEYS = 100
RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
# By kind and curve, the algorithms that a key can be for (RFC 7518, 3.1; RFC 8037, 3.1). None with a shared secret: a
# public key would do as that secret (RFC 8725, 2.1).
ALGORITHMS = {
    ("RSA", ""): RSA,
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}


class IssuerKey(NamedTuple):
    id: str | None
    algorithms: Sequence[str]
    key: AllowedPublicKeys


class Issuer:
    """The keys of one issuer. Greenlets only; one fetch at a time, which those wait for who need what it may bring."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()
        # REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE go first: `requests` sees to that itself.
        self._session.verify = os.environ.get("SSL_CERT_FILE") or True
        self._keys: Sequence[IssuerKey] | None = None
        self._old_at = 0.0  # monotonic seconds
        self._fetching: Flag | None = None
        self._again_at = 0.0  # monotonic seconds; no fetch before
        self._failing = False

    def find(self, key_id: str | None, algorithm: str) -> IssuerKey | None:
        """The key that a token names, None without one. Waits while no key is there, and for a fresh one's first use.

        Tokens can name any key: for those that are not known there is one fetch each PAUSE, and no wait without it.
        Raises IssuerUnavailable as long as no fetch has succeeded.
        """
        if self._keys is None:
            self._wait_for_fetch()
        elif monotonic() >= self._old_at:
            self._fetch_soon()
        key = pick(self._keys, key_id, algorithm)
        if key is None:
            self._wait_for_fetch()
            key = pick(self._keys, key_id, algorithm)
        return key

    def close(self) -> None:
        self._session.close()

    def _wait_for_fetch(self) -> None:
        """Waits for the fetch under way, or for one of its own when the last one is long enough ago."""
        fetching = self._fetch_soon()
        if fetching is not None:
            fetching.wait()
        if self._keys is None:
            raise IssuerUnavailable(retry_after=PAUSE)

    def _fetch_soon(self) -> Flag | None:
        if self._fetching is None and monotonic() >= self._again_at:
            self._fetching = Flag()
            # A greenlet of its own makes the call: who asked first may go away.
            gevent.spawn(self._fetch_for_all, self._fetching)
        return self._fetching

    def _fetch_for_all(self, fetching: Flag) -> None:
        try:
            self._keys = self.fetch()
            self._old_at = monotonic() + LIFE
            log.log(logging.INFO if self._failing else logging.DEBUG, "token issuer's keys fetched")
            self._failing = False
        except IssuerUnavailable as error:
            if not self._failing:
                log.error("token issuer's keys cannot be fetched", extra={"detail": error.detail})  # noqa: TRY400
            self._failing = True
        finally:
            self._again_at = monotonic() + PAUSE
            self._fetching = None
            fetching.set()

    def fetch(self) -> list[IssuerKey]:
        """The keys as they are now. Raises IssuerUnavailable."""
        late = IssuerUnavailable(detail=f"no answer within {WHOLE_TIMEOUT:.0f} s")
        try:
            with (
                gevent.Timeout(WHOLE_TIMEOUT, late),
                self._session.get(self._url, timeout=TIMEOUT, allow_redirects=False, stream=True) as response,
            ):
                body = response.raw.read(MAX_ANSWER + 1, decode_content=True)
        except (requests.RequestException, HTTPError, OSError) as error:
            raise IssuerUnavailable(detail=type(error).__name__) from None
        if response.status_code != 200 or len(body) > MAX_ANSWER:
            raise IssuerUnavailable(detail=f"status={response.status_code} bytes={len(body)}")
        return read_key_set(body)


def pick(keys: Sequence[IssuerKey] | None, key_id: str | None, algorithm: str) -> IssuerKey | None:
    """The key with this id; for a token that names none (RFC 7515, 4.1.4), the only one that can be meant."""
    able = [key for key in keys or () if algorithm in key.algorithms and key_id in (None, key.id)]
    return able[0] if len(able) == 1 or (able and key_id is not None) else None


def read_key_set(body: bytes) -> list[IssuerKey]:
    """The keys that tokens can be checked with; others are passed over (RFC 7517, 5). Raises IssuerUnavailable."""
    try:
        keys = json.loads(body)["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise IssuerUnavailable(detail="the answer is no JSON Web Key Set") from None
    if not isinstance(keys, list):
        raise IssuerUnavailable(detail="the answer is no JSON Web Key Set")
    found = [key for key in map(read_key, keys[:MAX_KEYS]) if key is not None]
    if not found:
        log.warning("the token issuer has no key that tokens can be checked with")
    return found


def read_key(data: Any) -> IssuerKey | None:
    if not isinstance(data, dict) or data.get("use", "sig") != "sig" or "verify" not in data.get("key_ops", ["verify"]):
        return None
    if "d" in data:  # a private key that everyone can read proves nothing
        return None
    algorithms: Sequence[str] = ALGORITHMS.get((str(data.get("kty")), str(data.get("crv", ""))), ())
    if "alg" in data:
        algorithms = [name for name in algorithms if name == data["alg"]]
    key_id = data.get("kid")
    if not algorithms or not isinstance(key_id, str | None):
        return None
    try:
        return IssuerKey(key_id, algorithms, PyJWK(data, algorithms[0]).key)
    except (PyJWTError, ValueError, TypeError):
        return None
