"""The platform's REST API for messaging conversations: finds where to speak, posts text, shows that more comes.

    ApiFailure
    ├── CannotSucceed   the same call will fail again: the text is parked, with the reason
    └── TryAgain        later it may go well

A reason is for people: a sentence, the status, the platform's code and its correlation id, which Genesys support asks
for. It never holds a token or text.
"""

import os
import re
import time
from http.cookiejar import DefaultCookiePolicy
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import gevent
import orjson
import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ProxyError, SSLError

from ..backoff import retry_after
from ..credentials import CORRELATION, Credentials
from ..errors import CredentialsError
from ..metrics import RetryCause

TIMEOUT = (5.0, 15.0)  # seconds to connect, and between two bytes of the answer
WHOLE_TIMEOUT = 30.0  # seconds for one request, the wait for a free connection included
CONNECTIONS = 16  # kept by a worker; four requests a second are enough for the rate limit
MAX_ANSWER = 4 * 1024 * 1024  # bytes; a conversation of an hour has some hundred thousand
TYPING_DURATION = 5.0  # seconds that a typing event is shown
TYPING_TIMEOUT = 1.0  # seconds for the whole request; text waits for it
# Of one message, as the API's definition of AdditionalMessage says.
MAX_MESSAGE_CHARS = 2_000
MAX_CHARS_BY_TYPE = {"sms": 765}
AGENTS = ("agent", "user")  # purposes of participants in whose name text can be posted
CODE = re.compile(r"[A-Za-z0-9._-]{1,64}")  # of an error, and of a correlation id; anything else may quote us
PATHS_ALONE = ("", ".", "..")  # as an id they would lead to another address

# 409 is a conflict with another change of the conversation at the same time.
TRANSIENT = (401, 407, 408, 409, 425, 429)
LOOK_AGAIN = (400, 404, 410)
NO_CONNECTION = (NewConnectionError, ConnectTimeoutError, ProxyError, SSLError)  # nothing was sent


class ApiFailure(Exception):
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class CannotSucceed(ApiFailure):
    def __init__(self, reason: str, look_again: bool = False) -> None:
        """`look_again`: the communication may have ended while another, of the next agent, is open."""
        super().__init__(reason)
        self.look_again = look_again


class TryAgain(ApiFailure):
    def __init__(self, reason: str, cause: RetryCause = "refused", retry_after: float | None = None) -> None:
        """`retry_after` is in seconds."""
        super().__init__(reason)
        self.cause = cause
        self.retry_after = retry_after

    @property
    def is_rate_limit(self) -> bool:
        """Whether every other call would fail now, too."""
        return self.cause == "rate_limited"


class Communication(NamedTuple):
    """An agent's open part in a conversation."""

    id: str
    max_chars: int  # that one message takes on its channel


class Answer(NamedTuple):
    status: int
    body: bytes
    correlation: str
    retry_after: float | None

    def reason(self, sentence: str) -> str:
        code = self.json().get("code")
        parts = [f"HTTP {self.status}"]
        if isinstance(code, str) and CODE.fullmatch(code):
            parts.append(code)
        if CODE.fullmatch(self.correlation):
            parts.append(f"{CORRELATION} {self.correlation}")
        return f"{sentence} ({', '.join(parts)})"

    def json(self) -> dict[str, Any]:
        """The body, empty when it is no JSON object."""
        try:
            found = orjson.loads(self.body)
        except orjson.JSONDecodeError:
            return {}
        return found if isinstance(found, dict) else {}


class Bearer(AuthBase):
    """As `auth`, not as a header: `requests` would put a password of ~/.netrc in the header's place."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class PlatformApi:
    """Blocking calls for all greenlets of a worker. None of them waits for the rate limit: see pace.py."""

    def __init__(self, url: str, credentials: Credentials) -> None:
        self._url = f"{url.rstrip('/')}/api/v2/conversations"
        self._host = urlsplit(url).netloc
        self._credentials = credentials
        self._session = requests.Session()
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=CONNECTIONS, pool_block=True)
        self._session.mount(self._url, adapter)
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE go first, as in tls.py: `requests` sees to that itself.
        self._session.verify = os.environ.get("SSL_CERT_FILE") or True

    def close(self) -> None:
        self._session.close()

    def find_communication(self, conversation_id: str) -> Communication:
        """Where the conversation's text is to be posted. Raises ApiFailure.

        Read from the whole conversation: .../conversations/messages/{id} tells no communication's id.
        """
        answer = self.look(conversation_id)
        check(answer, "Genesys Cloud refused to show the conversation", "There is no such conversation")
        if not answer.json():
            raise stranger(answer)
        return read_communication(answer.json())

    def look(self, conversation_id: str) -> Answer:
        """What the platform answers about a conversation, whatever that is. Raises TryAgain without an answer."""
        return self._call("GET", segment(conversation_id))

    def post_message(self, conversation_id: str, communication_id: str, text: str) -> None:
        """Returns once the platform has the text. Raises ApiFailure.

        After TryAgain the platform may have it nevertheless: what was lost can be the answer.
        """
        answer = self._post(conversation_id, communication_id, "messages", {"textBody": text})
        check(answer, "Genesys Cloud refused the text", "There is no such communication", LOOK_AGAIN)
        if not answer.json().get("id"):
            raise stranger(answer)

    def show_typing(self, conversation_id: str, communication_id: str) -> None:
        """Shows for TYPING_DURATION that more text comes. Takes TYPING_TIMEOUT at most. Raises ApiFailure."""
        typing = {"type": "On", "duration": int(TYPING_DURATION * 1000)}
        late = TryAgain(f"Genesys Cloud has not answered within {TYPING_TIMEOUT:.0f} s", "unreachable")
        with gevent.Timeout(TYPING_TIMEOUT, late):
            answer = self._post(conversation_id, communication_id, "typing", {"typing": typing})
        check(answer, "Genesys Cloud refused the typing event", "There is no such communication", LOOK_AGAIN)

    def _post(self, conversation_id: str, communication_id: str, kind: str, body: dict[str, Any]) -> Answer:
        path = f"messages/{segment(conversation_id)}/communications/{segment(communication_id)}/{kind}"
        return self._call("POST", path, orjson.dumps(body))

    def _call(self, method: str, path: str, body: bytes | None = None) -> Answer:
        """Renews a token that is refused, once. Raises TryAgain when there is no answer."""
        try:
            token = self._credentials.token()
            answer = self._send(method, path, body, token)
            if answer.status == 401:
                answer = self._send(method, path, body, self._credentials.renew(token))
        except CredentialsError as error:
            raise TryAgain(f"There is no access token ({error.code})", "credentials", error.retry_after) from None
        return answer

    def _send(self, method: str, path: str, body: bytes | None, token: str) -> Answer:
        late = TryAgain(f"Genesys Cloud has not answered within {WHOLE_TIMEOUT:.0f} s", "unreachable")
        headers = {"Accept": "application/json"} | ({} if body is None else {"Content-Type": "application/json"})
        try:
            with (
                gevent.Timeout(WHOLE_TIMEOUT, late),
                self._session.request(
                    method,
                    f"{self._url}/{path}",
                    data=body,
                    headers=headers,
                    auth=Bearer(token),
                    timeout=TIMEOUT,
                    allow_redirects=False,
                    stream=True,
                ) as response,
            ):
                found = response.raw.read(MAX_ANSWER + 1, decode_content=True)
        except (requests.RequestException, HTTPError, OSError) as error:
            raise TryAgain(self._describe(error), "unreachable") from None
        if len(found) > MAX_ANSWER:
            raise TryAgain(f"The answer of Genesys Cloud is longer than {MAX_ANSWER // 1024} KiB")
        wait = retry_after(response.headers.get("Retry-After"), time.time())
        return Answer(response.status_code, found, response.headers.get(CORRELATION, ""), wait)

    def _describe(self, error: Exception) -> str:
        """Only classes: texts of these exceptions may quote the request."""
        cause = getattr(error.args[0], "reason", None) if error.args else None
        if isinstance(cause, NO_CONNECTION):
            return f"There is no connection to {self._host} ({type(cause).__name__}): see GENESYS_API_URL"
        return f"Genesys Cloud could not be reached ({type(error).__name__})"


def segment(value: str) -> str:
    """An id as a part of a path. Raises CannotSucceed for what cannot be one."""
    if value in PATHS_ALONE:
        raise CannotSucceed("There is no such conversation: its id cannot be one of Genesys Cloud's")
    return quote(value, safe="")


def check(answer: Answer, refused: str, missing: str, look_again: tuple[int, ...] = ()) -> None:
    """Raises what an answer means, unless that is success; `refused` and `missing` (for 404) are sentences for it."""
    status = answer.status
    if 200 <= status < 300:
        return
    if status == 429:
        sentence = "Genesys Cloud's limit of requests a minute is reached"
        raise TryAgain(answer.reason(sentence), "rate_limited", answer.retry_after)
    if status == 401:
        raise TryAgain(answer.reason("Genesys Cloud refused the access token, and a new one as well"))
    # A redirect is no answer of the platform's, but of something in between that may be gone tomorrow.
    if status < 400 or status >= 500 or status in TRANSIENT:
        raise TryAgain(answer.reason("Genesys Cloud could not do it now"), retry_after=answer.retry_after)
    # Another server's 404, or a proxy's 403, says nothing of the conversation.
    if not answer.json():
        raise stranger(answer)
    if status == 403:
        sentence = "The OAuth client may not do this: give its role the permission conversation:message:create"
        raise CannotSucceed(answer.reason(sentence))
    raise CannotSucceed(answer.reason(missing if status == 404 else refused), status in look_again)


def stranger(answer: Answer) -> TryAgain:
    """The platform answers with JSON objects, errors as well."""
    return TryAgain(answer.reason("What answered is not the platform API: see GENESYS_API_URL"))


def read_communication(conversation: dict[str, Any]) -> Communication:
    """The newest open communication of an agent in the API's Conversation. Raises ApiFailure."""
    legs = [
        (participant.get("purpose"), communication)
        for participant in dicts(conversation.get("participants"))
        for communication in dicts(participant.get("messages"))
    ]
    if conversation.get("endTime") or (legs and all(leg.get("state") == "disconnected" for _, leg in legs)):
        raise CannotSucceed("The conversation has ended")
    if not legs:
        raise CannotSucceed("The conversation is not one of messages")
    agents = [leg for purpose, leg in legs if purpose in AGENTS and leg.get("state") != "disconnected"]
    if not agents:
        raise CannotSucceed("No agent has the conversation, and text can be posted only in the name of one")
    for leg in reversed(agents):
        if leg.get("state") == "connected" and isinstance(leg.get("id"), str) and leg["id"] not in PATHS_ALONE:
            return Communication(leg["id"], MAX_CHARS_BY_TYPE.get(str(leg.get("type")), MAX_MESSAGE_CHARS))
    raise TryAgain("The agent has not taken the conversation yet")


def dicts(value: object) -> list[dict[str, Any]]:
    """The objects in what should be a list of them."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
