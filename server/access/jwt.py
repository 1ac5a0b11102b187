"""JSON Web Tokens (RFC 7519) of an identity provider; how they are misused is in RFC 8725."""

import logging
from typing import Any

import jwt
from jwt.types import Options

from ..errors import InvalidToken
from .caller import Caller
from .issuer import ALGORITHMS, Issuer

log = logging.getLogger(__name__)

LEEWAY = 30.0  # seconds that clocks may differ
MAX_SUBJECT = 256  # characters
MAX_CONVERSATIONS = 1000
KNOWN = frozenset(name for names in ALGORITHMS.values() for name in names)
OPTIONS: Options = {"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True}


class Tokens:
    def __init__(self, issuer: Issuer, name: str, audience: str) -> None:
        """`name` is the issuer's, `audience` is ours: the `iss` and an `aud` of each token."""
        self._issuer = issuer
        self._name = name
        self._audience = audience

    def caller(self, token: str) -> Caller:
        """Who the token says it is from. Raises InvalidToken or IssuerUnavailable."""
        try:
            return read_claims(self._check(token))
        # Texts of these exceptions may quote the token.
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            log.debug("token refused", extra={"detail": type(error).__name__})
            raise InvalidToken from None

    def close(self) -> None:
        self._issuer.close()

    def _check(self, token: str) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in KNOWN:
            raise jwt.InvalidAlgorithmError
        key = self._issuer.find(header.get("kid"), algorithm)
        if key is None:
            raise jwt.InvalidKeyError
        return jwt.decode(
            token,
            key.key,
            algorithms=key.algorithms,
            audience=self._audience,
            issuer=self._name,
            leeway=LEEWAY,
            options=OPTIONS,
        )


def read_claims(claims: dict[str, Any]) -> Caller:
    """Raises ValueError for claims that name no one."""
    subject = claims["sub"]
    if not 1 <= len(subject) <= MAX_SUBJECT or not subject.isprintable():
        raise ValueError("sub")
    if "conversations" not in claims:
        return Caller(f"jwt:{subject}")
    conversations = claims["conversations"]
    if not isinstance(conversations, list) or len(conversations) > MAX_CONVERSATIONS:
        raise ValueError("conversations")
    if not all(isinstance(one, str) and one for one in conversations):
        raise ValueError("conversations")
    return Caller(f"jwt:{subject}", tuple(conversations))
