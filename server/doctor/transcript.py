"""The way into the transcript, tried without a word of text."""

import secrets
import time

import gevent

from ..credentials import Credentials
from ..errors import CredentialsError
from ..settings import Settings
from ..transcript.api import PlatformApi, TryAgain
from ..transcript.framing import PING
from ..transcript.socket import NORMAL, LinkLost, Socket
from .finding import Outcome, bad, good
from .words import read_words

PONG_TIMEOUT = 5.0  # seconds for a ping to be answered


class NoPong(Exception):
    """The link did not answer a ping in time. No OSError: the link takes those for its loss."""


def open_link(settings: Settings, credentials: Credentials) -> Outcome:
    """Opens a link and has a ping answered, which is how delivery is known. Sends no text."""
    began = time.monotonic()
    try:
        link = Socket(settings.genesys_transcript_url, credentials.token(), lambda: True)
    except LinkLost as lost:
        return bad(str(lost), link_fix(settings, lost.status))
    except CredentialsError as error:
        return bad(f"no access token any more ({error.code})", "Run this again: the login has just given one.")
    took = time.monotonic() - began
    try:
        with gevent.Timeout(PONG_TIMEOUT, NoPong()):
            link.send(b"doctor", PING)
            link.read(lambda _: False)
    except NoPong:
        link.break_off()
        return bad(
            f"the link opens, but no pong came within {PONG_TIMEOUT:.0f} s",
            "Without pongs the server cannot know what has arrived, and sends it again and again: what stands between "
            "must pass WebSocket pings and pongs.",
        )
    except LinkLost as lost:
        return bad(f"the link opens, and is lost at once: {lost}", "See at Genesys Cloud why; or use TRANSCRIPT=off.")
    finally:
        link.close(NORMAL)
    return good(f"the link opens in {took * 1000:.0f} ms, and a ping is answered; no text was sent")


def link_fix(settings: Settings, status: int) -> str:
    lacking = {"conversation:write", "websocket:subscribe"} - set(settings.oauth_scope.split())
    if status in (401, 403) and lacking:
        return f"OAUTH_SCOPE does not ask for {' '.join(sorted(lacking))}: add it, and give it to the OAuth client."
    if status == 403:
        return "Give the OAuth client the scopes conversation:write and websocket:subscribe in Genesys Cloud."
    if status == 401:
        return "GENESYS_TRANSCRIPT_URL must be of the same organisation as GENESYS_OAUTH_URL."
    if status == 404:
        return "There is no such place: correct GENESYS_TRANSCRIPT_URL; or use TRANSCRIPT=platform, or off."
    if status >= 500 or status == 429:
        return "Nothing here is wrong: try again, or look at Genesys Cloud's status page."
    return "Correct GENESYS_TRANSCRIPT_URL; a proxy between must let WebSockets pass (CONNECT)."


def look_at_platform(settings: Settings, credentials: Credentials) -> Outcome:
    """Reads a conversation: the default one, or one that cannot be. Whether text may be posted shows only then."""
    api = PlatformApi(settings.genesys_api_url, credentials)
    try:
        answer = api.look(settings.default_conversation_id or secrets.token_hex(16))
    except TryAgain as error:
        return bad(error.reason, "See the checks above for the login, and GENESYS_API_URL.")
    finally:
        api.close()
    if not answer.json():
        return bad(answer.reason("what answered is not the platform API"), "Correct GENESYS_API_URL.")
    if answer.status in (200, 404):
        return good(answer.reason("conversations may be read; the right to post shows with the first text"))
    found = answer.reason(f"refused: {read_words(answer.body).sentence or 'no reason given'}")
    if answer.status == 403:
        return bad(
            found, "Give the OAuth client's role conversation:communication:view and conversation:message:create."
        )
    if answer.status == 429 or answer.status >= 500:
        return bad(found, "Nothing here is wrong: try again in a minute.")
    return bad(found, "GENESYS_API_URL and GENESYS_OAUTH_URL must be of one region and organisation.")
