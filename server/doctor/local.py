"""What this machine and the settings say by themselves."""

import resource
from collections.abc import Iterator

from ..access.issuer import Issuer
from ..access.keys import read_file, read_keys
from ..errors import IssuerUnavailable
from ..settings import Settings, secret_text
from ..worker import MAX_FILES
from .finding import Check, Outcome, bad, doubtful, good
from .network import connection_of

FILES_PER_TURN = 3  # client, gateway, transcript
OTHER_FILES = 200  # descriptors of a worker beside its turns: store, log, idle connections

NO_ONE_MAY_ASK = bad(
    "no one may ask: neither keys nor a token issuer are set, and the server does not start",
    "Make a key with `relay keys new NAME` and put its RELAY_API_KEYS line into .env; or set JWT_JWKS_URL, or "
    "ACCESS=open for everyone who reaches BIND, or ACCESS=app where a Flask app mounts the relay. `make run` alone is "
    "open on loopback.",
)


def checks(settings: Settings) -> Iterator[Check]:
    yield Check("access", lambda: access(settings))
    yield Check("open files", lambda: files(settings))


def issuer_checks(settings: Settings) -> Iterator[Check]:
    if settings.access == "jwt":
        yield Check("token issuer", lambda: issuer(settings), (connection_of(settings.jwt_jwks_url or ""),))


def settings_are_read() -> Outcome:
    return good(f"{len(Settings.model_fields)} settings, none of which is wrong")


def access(settings: Settings) -> Outcome:
    """Who may ask, and what is dangerous about it."""
    names = set(read_keys(secret_text(settings.relay_api_keys)).values())
    path = settings.relay_api_keys_file
    if path is not None and settings.access != "open":
        try:
            names |= set(read_file(path).values())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            return bad(f"RELAY_API_KEYS_FILE={path} cannot be used: {reason}", "Name a file with one NAME:HASH a line.")
    if settings.risks:
        found, fixes = zip(*(risk.partition(". ")[::2] for risk in settings.risks), strict=True)
        return doubtful("; ".join(found), " ".join(f"{fix}." for fix in fixes if fix))
    if settings.access == "open":
        return good(f"open to everyone on this machine (BIND={settings.bind})")
    if settings.access == "app":
        return good("whom the app names that mounts the relay")
    if not names and settings.access == "keys":
        return doubtful(
            f"no key stands in {path} yet: no one may ask", "Make one with `relay keys new NAME` and add its line."
        )
    callers = f"keys of {len(names)} caller{'s' * (len(names) > 1)}" if names else "no keys"
    return good(f"{callers}, and tokens of {settings.jwt_issuer}" if settings.access == "jwt" else callers)


def issuer(settings: Settings) -> Outcome:
    assert settings.jwt_jwks_url is not None
    source = Issuer(settings.jwt_jwks_url)
    try:
        keys = source.fetch()
    except IssuerUnavailable as error:
        return bad(
            f"its keys cannot be fetched ({error.detail})",
            "Set JWT_JWKS_URL to the address of the provider's JSON Web Key Set (`jwks_uri` in its OpenID document).",
        )
    finally:
        source.close()
    if not keys:
        return bad(
            "it has no key that tokens can be checked with",
            "Have the provider sign with RS, PS or ES of 256 to 512 bits, or EdDSA.",
        )
    return good(f"{len(keys)} keys")


def files(settings: Settings) -> Outcome:
    """The workers raise the soft limit to the hard one themselves."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_FILES if hard == resource.RLIM_INFINITY else hard
    needed = FILES_PER_TURN * settings.max_turns + OTHER_FILES
    if limit < needed:
        return doubtful(
            f"a process may open {limit:,} files here; MAX_TURNS={settings.max_turns} can need {needed:,} a worker",
            f"Set LimitNOFILE={needed} (systemd) or nofile (ulimit -Hn, Docker's --ulimit) for the server, or a lower "
            "MAX_TURNS.",
        )
    return good(f"a process may open {limit:,} here; MAX_TURNS={settings.max_turns} can need {needed:,} a worker")
