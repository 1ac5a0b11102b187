"""Asks the gateway for one token of an answer, with the server's own `Gateway`."""

import time

from geventhttpclient.response import HTTPParseError

from ..backoff import retry_after
from ..chunks import Beside, Broken, ChunkReader
from ..connections import Answer
from ..credentials import CORRELATION, Credentials
from ..errors import AnswerMalformed, CredentialsError, GatewayUnavailable
from ..gateway import Gateway, header, refuse_other_content
from ..prompt import Message, Prompt
from ..settings import Settings
from .clock import Clock, read_date
from .finding import Outcome, bad, doubtful, good
from .words import read_words

SCOPE = "ai:llm:gateway"
PROBE = Prompt((Message("user", "Answer with the one word: yes"),), max_tokens=1, temperature=0)
MAX_REFUSAL = 16 * 1024  # bytes of a refusal that are read
SLOW_START = 10.0  # seconds to a first token that are worth a word


def ask_gateway(settings: Settings, credentials: Credentials | None, clocks: list[Clock]) -> Outcome:
    """Asks for one token of an answer, and measures how long its first one takes."""
    gateway = Gateway(settings, credentials, connections=0)
    answer: Answer | None = None
    try:
        token = gateway.access_token()
        began = time.monotonic()
        answer = gateway.post(gateway.body(PROBE), token, trace={})
        clocks += read_date("the gateway", header(answer, "Date"))
        if answer.status_code != 200:
            return refused(settings, answer)
        refuse_other_content(answer)
        return first_token(answer, began)
    except CredentialsError as error:
        return bad(f"no access token any more ({error.code})", "Run this again: the login has just given one.")
    except GatewayUnavailable as error:
        return bad(f"no answer ({error.detail})", "The way is open, and yet no answer came: see what stands between.")
    except AnswerMalformed:
        return bad(
            "a web page came in place of an answer",
            "Correct GENESYS_GATEWAY_URL; or a proxy or portal stands between, and must let this address pass.",
        )
    finally:
        if answer is not None:
            answer.release()
        gateway.close()


def first_token(answer: Answer, began: float) -> Outcome:
    """Reads until there is text."""
    reader = ChunkReader()
    reason = None
    try:
        while not reader.done:
            data = answer.read_some()
            deltas = reader.feed(data) if data else reader.end()
            if any(isinstance(delta, str) for delta in deltas):
                return paced(time.monotonic() - began)
            reason = next(
                (delta.finish_reason for delta in deltas if isinstance(delta, Beside) and delta.finish_reason), reason
            )
            if not data:
                break
    except (Broken, OSError, HTTPParseError) as error:
        kind = error.reason.code if isinstance(error, Broken) else type(error).__name__
        return bad(
            f"what came is no chat stream, or broke off ({kind})",
            "Set GENESYS_GATEWAY_URL to an address that streams in OpenAI's shape (`data: {...}` lines).",
        )
    return good(f"it answers, with no text in one token (finish_reason {reason}): a model that thinks first")


def paced(seconds: float) -> Outcome:
    if seconds > SLOW_START:
        return doubtful(f"first token after {seconds:.1f} s", "The model is slow: a smaller one (GATEWAY_MODEL)?")
    return good(f"first token after {seconds * 1000:.0f} ms")


def refused(settings: Settings, answer: Answer) -> Outcome:
    """What a status other than 200 means, and which setting it is about."""
    status = answer.status_code
    said = read_words(read_refusal(answer))
    found = f"refused{said.quoted(status, {CORRELATION: header(answer, CORRELATION)})}"
    if 300 <= status < 400:
        return bad(f"sent elsewhere{said.quoted(status)}", "Set GENESYS_GATEWAY_URL to the final address itself.")
    if status == 429:
        wait = retry_after(header(answer, "Retry-After"), time.time())
        when = "" if wait is None else f", and asks to come back in {wait:.0f} s"
        return bad(
            f"the gateway asks to slow down{said.quoted(status)}{when}",
            "Settings and rights are good; wait, or have the quota of this client or model raised.",
        )
    if status >= 500:
        return bad(f"out of order{said.quoted(status)}", "Nothing here is wrong: try again, or tell who runs it.")
    return bad(found, gateway_fix(settings, status))


def gateway_fix(settings: Settings, status: int) -> str:
    match status:
        case 401:
            return unknown_bearer(settings)
        case 403:
            return lacking_right(settings)
        case 404:
            return (
                "There is no gateway at this address, or no such model: correct GENESYS_GATEWAY_URL or GATEWAY_MODEL."
            )
    return "Check GATEWAY_MODEL, GATEWAY_TEMPERATURE and GENESYS_GATEWAY_URL against what the gateway says."


def unknown_bearer(settings: Settings) -> str:
    if settings.gateway_api_key:
        return "GATEWAY_API_KEY is not a key of this gateway: copy it again, without `Bearer`."
    return (
        "The gateway does not know tokens of this login: GENESYS_GATEWAY_URL and GENESYS_OAUTH_URL must be of one "
        "organisation. For a gateway of its own there is GATEWAY_API_KEY."
    )


def lacking_right(settings: Settings) -> str:
    if settings.gateway_api_key:
        return "The key's owner may not use this model or gateway: see GATEWAY_MODEL and the key's rights."
    if SCOPE not in settings.oauth_scope.split():
        return f"OAUTH_SCOPE does not ask for {SCOPE}: add it, and give it to the OAuth client."
    return f"Give the OAuth client the scope {SCOPE} in Genesys Cloud (Admin, Integrations, OAuth)."


def read_refusal(answer: Answer) -> bytes:
    """The beginning of a refusal's body."""
    body = b""
    try:
        while len(body) < MAX_REFUSAL and (piece := answer.read_some()):
            body += piece
    except (OSError, HTTPParseError):
        pass
    return body
