"""Asks the login for an access token, with the server's own `Credentials`."""

import json
import time

from ..credentials import Credentials, read_answer
from ..errors import CredentialsError, CredentialsUnavailable
from ..telemetry import hide
from .clock import Clock, read_date
from .finding import Outcome, bad, doubtful, good
from .words import read_words

# The errors of OAuth 2.0 (RFC 6749, 5.2), as Genesys Cloud means them.
OAUTH_FIXES = {
    "invalid_client": "OAUTH_CLIENT_ID or OAUTH_CLIENT_SECRET is wrong, or the client is of another region than "
    "GENESYS_OAUTH_URL: copy both again from Admin, Integrations, OAuth.",
    "unauthorized_client": "The OAuth client may not use this grant: make one with the grant Client Credentials "
    "(Admin, Integrations, OAuth); a grant cannot be changed later.",
    "invalid_scope": "OAUTH_SCOPE asks for what this client was not given: give it the scope in Genesys Cloud, or take "
    "it out of OAUTH_SCOPE.",
    "unsupported_grant_type": "What answers at GENESYS_OAUTH_URL takes no Client Credentials: correct the address.",
    "invalid_request": "What answers at GENESYS_OAUTH_URL does not understand the server: correct the address.",
    "access_denied": "The OAuth client has been switched off, or its roles do not allow this: see it in Genesys Cloud.",
}
WRONG_LOGIN = "Correct GENESYS_OAUTH_URL (in a region of Genesys Cloud: https://login.{region}/oauth/token)."


def log_in(credentials: Credentials, scope: str, clocks: list[Clock]) -> Outcome:
    """`scope` is what the server asks for."""
    try:
        response, body = credentials.ask()
    except CredentialsUnavailable as error:
        fix = "The way is open, and yet no answer came: see what stands between, and try again."
        if "SSLError" in error.detail:
            fix = (
                "The login's certificate is checked against the bundle that `requests` brings, unless "
                "REQUESTS_CA_BUNDLE names another: set it to this system's bundle."
            )
        return bad(f"no answer ({error.detail})", fix)
    clocks += read_date("the login", response.headers.get("Date"))
    status, said = response.status_code, read_words(body)
    try:
        hide(read_answer(response, body, time.monotonic).value)
    except CredentialsUnavailable:
        return bad(
            f"the login is out of order or asks to slow down{said.quoted(status, response.headers)}",
            "Wait a moment; if it stays so, look at Genesys Cloud's status page.",
        )
    except CredentialsError:
        if status == 200 or not said.code:
            return bad(f"what answered is no OAuth login{said.quoted(status)}", WRONG_LOGIN)
        fix = OAUTH_FIXES.get(said.code, "Check OAUTH_CLIENT_ID, OAUTH_CLIENT_SECRET and GENESYS_OAUTH_URL.")
        return bad(f"refused{said.quoted(status, response.headers)}", fix)
    return granted(scope, json.loads(body).get("scope"))


def granted(asked: str, scope: object) -> Outcome:
    """Whether the token is good for all that was asked for; an answer without `scope` grants it (RFC 6749, 5.1)."""
    lacking = set(asked.split()) - set(scope.split()) if isinstance(scope, str) else set()
    if lacking:
        return doubtful(
            f"there is a token, but without the scope {' '.join(sorted(lacking))}",
            "Give the OAuth client that scope in Genesys Cloud (Admin, Integrations, OAuth), or take it out of "
            "OAUTH_SCOPE where it is not needed.",
        )
    return good(f"there is a token, for {asked}")
