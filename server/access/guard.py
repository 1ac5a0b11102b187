"""The door: who comes in, and which streams they may see."""

import secrets
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from ..errors import InvalidToken, Unauthorized
from ..settings import Settings, secret_text
from ..telemetry import hide_for_good
from .caller import ANYONE, Caller
from .keys import Keyring, read_keys
from .tickets import Tickets

if TYPE_CHECKING:
    from ..journal import Entry
    from .jwt import Tokens

SECRET_BYTES = 32
MAX_NAME = 256  # characters of a caller whom the app names
Sight = Callable[["Entry"], bool]  # whether someone may see a stream
# Names the caller of the request at hand, from the login of the app that mounts the relay; None: no one is logged in.
Hook = Callable[[], str | int | Caller | None]


class Open:
    """Lets everyone in, as one and the same caller. Addresses need no ticket."""

    is_open = True

    def identify(self, authorization: str | None) -> Caller:
        return ANYONE

    def sight(self, stream_id: str, authorization: str | None, ticket: str | None) -> Sight:
        return ANYONE.owns

    def ticket(self, stream_id: str) -> str | None:
        return None

    def close(self) -> None:
        pass


class Guard:
    """Lets in who has a key or a token, and to one stream who has a ticket for it."""

    is_open = False

    def __init__(self, keyring: Keyring, tokens: "Tokens | None", tickets: Tickets) -> None:
        self._keyring = keyring
        self._tokens = tokens
        self._tickets = tickets

    def identify(self, authorization: str | None) -> Caller:
        """Who a request is from, by its header `Authorization`.

        Raises Unauthorized without one, InvalidToken, or IssuerUnavailable.
        """
        if authorization is None:
            raise Unauthorized
        scheme, _, presented = authorization.partition(" ")  # RFC 6750, 2.1
        presented = presented.strip()
        if scheme.lower() != "bearer" or not presented:
            raise InvalidToken
        name = self._keyring.name_of(presented)
        if name is not None:
            return Caller(f"key:{name}")
        if self._tokens is None:
            raise InvalidToken
        return self._tokens.caller(presented)

    def sight(self, stream_id: str, authorization: str | None, ticket: str | None) -> Sight:
        """What a request that asks for a stream may see: a good ticket is enough, and so is being its caller.

        Raises as `identify`, StoreUnavailable as well; but a ticket alone that is not good sees nothing, and no one
        can tell that from a stream that is not there.
        """
        if ticket is not None and self._tickets.fits(ticket, stream_id):
            return lambda _: True
        if ticket is not None and authorization is None:
            return lambda _: False
        return self.identify(authorization).owns

    def ticket(self, stream_id: str) -> str | None:
        """A fresh ticket for this stream. Raises StoreUnavailable."""
        return self._tickets.make(stream_id)

    def close(self) -> None:
        if self._tokens is not None:
            self._tokens.close()


class Login:
    """Lets in whom the app's own login knows, and to one stream who has a ticket for it."""

    is_open = False

    def __init__(self, hook: Hook | None, tickets: Tickets) -> None:
        self._hook = hook
        self._tickets = tickets

    def identify(self, authorization: str | None) -> Caller:
        """Who the request at hand is from, by the app's own word. Raises Unauthorized, and what the app raises."""
        if self._hook is None:
            raise RuntimeError("no one may ask yet: name the callers by a function under @relay.caller, or set ACCESS")
        found = self._hook()
        if found is None:
            raise Unauthorized("No one is logged in. Log in, then ask again.")
        return caller_of_app(found)

    def sight(self, stream_id: str, authorization: str | None, ticket: str | None) -> Sight:
        """As that of Guard; here a ticket whose time is over comes with the login, which may be enough by itself."""
        if ticket is not None and self._tickets.fits(ticket, stream_id):
            return lambda _: True
        try:
            return self.identify(authorization).owns
        except Unauthorized:
            if ticket is None:
                raise
            return lambda _: False

    def ticket(self, stream_id: str) -> str | None:
        """A fresh ticket for this stream. Raises StoreUnavailable."""
        return self._tickets.make(stream_id)

    def close(self) -> None:
        pass


Access = Open | Guard | Login


def caller_of_app(caller: str | int | Caller) -> Caller:
    """Someone whom the app has named; no key and no token ever has the same name. Raises TypeError or ValueError."""
    name, conversations = caller if isinstance(caller, Caller) else (caller, None)
    if isinstance(name, int) and not isinstance(name, bool):  # the key of a row in the app's database
        name = str(name)
    if not isinstance(name, str):
        raise TypeError(f"a caller's name must be a string or a whole number, and is of type {type(name).__name__}")
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise ValueError(f"a caller's name must be 1 to {MAX_NAME} printable characters")
    if isinstance(conversations, str):
        raise TypeError("a caller's conversations must be several strings, and are one: write (conversation,)")
    return Caller(f"app:{name}", None if conversations is None else tuple(conversations))


def make_access(settings: Settings, keep: Callable[[bytes], bytes], hook: Hook | None = None) -> Access:
    """What the settings say. `keep` is the store's: it keeps the first secret that is proposed, and returns it.

    `hook` is the app's, for ACCESS=app.
    """
    if settings.access == "open":
        return Open()
    tickets = Tickets(make_secret(settings, keep), settings.ticket_seconds)
    if settings.access == "app":
        return Login(hook, tickets)
    keyring = Keyring(read_keys(secret_text(settings.relay_api_keys)), settings.relay_api_keys_file)
    return Guard(keyring, make_tokens(settings) if settings.access == "jwt" else None, tickets)


def make_tokens(settings: Settings) -> "Tokens":
    # Not above: a relay without tokens needs none of the cryptography.
    from .issuer import Issuer  # noqa: PLC0415
    from .jwt import Tokens  # noqa: PLC0415

    assert settings.jwt_jwks_url and settings.jwt_issuer and settings.jwt_audience
    return Tokens(Issuer(settings.jwt_jwks_url), settings.jwt_issuer, settings.jwt_audience)


def make_secret(settings: Settings, keep: Callable[[bytes], bytes]) -> Callable[[], bytes]:
    """What signs tickets: SECRET_KEY, else what the store keeps for all workers; asked for when it is needed first."""
    if settings.secret_key is not None:
        given = secret_text(settings.secret_key).encode()
        return lambda: given

    @cache  # not what it raises
    def kept() -> bytes:
        secret = keep(secrets.token_urlsafe(SECRET_BYTES).encode())
        hide_for_good(secret.decode())
        return secret

    return kept
