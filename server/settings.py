"""Every setting: type, default, environment name, meaning.

The environment name is the field's name in capitals; a `.env` file in the working folder is read as well.
"""

import os
import re
import sys
from collections.abc import Callable
from functools import cache
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Annotated, Literal, NoReturn, Self, get_args
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, NoDecode, SettingsConfigDict

from .access.allowance import Allowance, read_at_once, read_rate
from .access.keys import make_key, read_keys
from .errors import BadRequest
from .prompt import MAX_CONVERSATION_ID, read_conversation_id
from .regions import api_of, login_of, region_of

WEB = ("http", "https")
WEBSOCKET = ("ws", "wss")
REDIS = ("redis", "rediss")
LABEL = "[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
HOST = re.compile(rf"(?=.{{1,253}}$){LABEL}(\.{LABEL})*")  # RFC 1123, 2.1
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")  # no one else can make these names lead here
DEFAULT_PORTS = {"http": 80, "https": 443}
PREFIX = "relay_"  # of settings in an app, whose environment may have the same names for itself
LEAST_SECRET_KEY = 32  # characters
USER_INFO = re.compile(r"^(.*?://(?:[^:@/]*:)?)?.*@", re.DOTALL)


class SettingsError(ValueError):
    """A setting that cannot be right. The text is one line: its name, its value (secrets hidden) and the fix."""


class NoOrganisation(SettingsError):
    """Nothing says which organisation, or which other gateway, to talk to."""


class NoAccess(SettingsError):
    """Nothing says who may ask. The text is two lines, with a key that is fresh each time."""

    def __init__(self, *, chosen: bool) -> None:
        """`chosen`: whether ACCESS itself is set, and demands keys."""
        self.chosen = chosen
        fresh = make_key("client")
        super().__init__(
            f"No one may ask yet: RELAY_API_KEYS is missing. A key for your client, shown only here: {fresh.key}\n"
            "To let it in, put this line into .env (or ACCESS=open, for everyone who reaches the port, or ACCESS=app "
            f"where a Flask app mounts the relay): RELAY_API_KEYS={fresh.entry}"
        )


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True)

    genesys_env: str = Field("acme", description="a bare org name means {name}.mypurecloud.com; with a dot: the host")
    oauth_client_id: str = Field("", description="of an OAuth client with the grant Client Credentials")
    oauth_client_secret: SecretStr = Field(SecretStr(""), description="its secret")
    default_conversation_id: str | None = Field(None, description="for requests that name no conversation")

    genesys_base_url: str = Field("", description="https://{host of GENESYS_ENV}")
    genesys_oauth_url: str = Field(
        "",
        description="{base}/oauth/token; with TRANSCRIPT=platform in a region of Genesys Cloud "
        "https://login.{region}/oauth/token",
    )
    genesys_gateway_url: str = Field("", description="{base}/api/v2/ai/llm/gateway/chat")
    genesys_transcript_url: str = Field("", description="ws(s)://{base host}/v2/conversations/websockets")
    genesys_api_url: str = Field(
        "", description="of the platform: https://api.{region} of a base in a region, else {base}"
    )

    oauth_scope: str = Field("ai:llm:gateway conversation:write websocket:subscribe", description="separated by spaces")
    gateway_api_key: SecretStr | None = Field(None, description="a static bearer for the gateway, in place of OAuth")
    gateway_model: str | None = Field(None, description="asked for when the request names none")
    gateway_temperature: Annotated[float, Field(ge=0, le=2, description="when the request names none")] = 0.7
    gateway_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False, description="seconds for a whole turn")] = 300
    gateway_idle_timeout: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="seconds between two bytes")
    ] = 60
    gateway_max_retries: Annotated[int, Field(ge=1, le=20, description="tries in all")] = 3
    gateway_system_prompt: str | None = Field(None, description="goes before each conversation")

    transcript: Literal["websocket", "platform", "off"] = Field(
        "websocket", description="how the transcript gets the text: by its own socket, or by the public platform API"
    )
    transcript_interval_ms: Annotated[
        int, Field(ge=0, le=10_000, description="websocket: least time between two messages")
    ] = 0
    transcript_max_chars: Annotated[
        int, Field(ge=100, description="of text in one message; platform: 2000, an SMS never has over 765")
    ] = 8000
    # What stands around the text can take 1,000 bytes: a conversation's id is up to 200 characters of any script.
    transcript_max_bytes: Annotated[int, Field(ge=2048, description="websocket: of a whole message, as JSON")] = 65_536
    transcript_message_id: bool = Field(
        False, description='websocket: adds "id": "{turn}:{first}-{last}" to each message'
    )
    transcript_requests_per_minute: Annotated[
        int,
        Field(
            ge=1,
            description="platform: of all workers of this machine; Genesys Cloud allows an OAuth client 300 in all",
        ),
    ] = 240

    store_url: str = Field(
        "sqlite:///var/relay.db",
        repr=False,
        description="where answers are kept: sqlite:///PATH (relative to the working folder; four slashes for an "
        "absolute path), redis://, rediss:// (several machines), memory:// (one worker, gone with it)",
    )
    retain_seconds: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="how long an answer is kept after its end")
    ] = 3600
    transcript_retain_seconds: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False, description="how long text that the transcript does not have yet is kept"),
    ] = 86_400
    disconnect_grace: Annotated[
        float,
        Field(
            ge=-1, allow_inf_nan=False, description="seconds without a follower until the turn is cancelled; -1: never"
        ),
    ] = 30
    max_turns: Annotated[int, Field(ge=1, description="at once, in one worker")] = 2000
    max_turns_per_caller: str = Field("off", description="running at once, on all workers and machines; off")
    rate_limit: str = Field(
        "60/minute",
        description="turns that one caller may begin, on all workers and machines: NUMBER/second, /minute, /hour or "
        "/day, or off; with ACCESS=open everyone is one caller",
    )
    max_body_bytes: Annotated[int, Field(ge=1024, description="of a request")] = 1024 * 1024

    access: Literal["keys", "jwt", "open", "app"] = Field(
        "keys",
        description="who may ask: keys, jwt (keys too; the default where JWT_JWKS_URL is set), open: everyone, or app: "
        "whom the Flask app that mounts the relay names (the default there, without keys)",
    )
    relay_api_keys: SecretStr = Field(
        SecretStr(""), description="NAME:HASH as `relay keys new NAME` prints it; several are separated by commas"
    )
    relay_api_keys_file: Path | None = Field(
        None, description="a file with one NAME:HASH a line; what changes there counts within seconds"
    )
    jwt_jwks_url: str | None = Field(None, description="where the identity provider has its keys (JSON Web Key Set)")
    jwt_issuer: str | None = Field(None, description="what tokens must say in `iss`")
    jwt_audience: str | None = Field(None, description="what tokens must say in `aud`")
    ticket_seconds: Annotated[
        float, Field(gt=0, le=86_400, description="how long an address with a ticket is good; each use gives a new one")
    ] = 900
    secret_key: SecretStr | None = Field(
        None, description="signs tickets; else one is made and kept in the store, the same for all that share it"
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="whose pages may ask from a browser, such as https://shop.example; separated by commas; "
        "*: any, where keys or tokens are asked for",
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="names of this server that requests may have in Host, localhost aside; separated by commas; "
        ".example.com: all below as well; *: any, which is the default unless BIND is loopback",
    )

    bind: str = Field("127.0.0.1:8000", description="where the server listens")
    web_concurrency: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="worker processes; else one per CPU"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="the least that is logged")
    log_format: Literal["text", "json"] | None = Field(None, description="text on a terminal, else json")
    log_content: bool = Field(False, description="1, with LOG_LEVEL=DEBUG: prompts and answers are logged as well")
    sandbox_url: str | None = Field(None, description="of a running sandbox: the page shows its transcript")

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, values: dict[str, object]) -> dict[str, object]:
        """Drops what is blank; adds the defaults that hang on other settings."""
        stripped = {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}
        given = {name: value for name, value in stripped.items() if value not in (None, "")}
        host = str(given.get("genesys_env", "acme"))
        if "." not in host:
            host += ".mypurecloud.com"
        base = str(given.get("genesys_base_url", f"https://{host}")).rstrip("/")
        derived: dict[str, object] = {**places(base)}
        if "jwt_jwks_url" in given:
            derived["access"] = "jwt"
        region = region_of(base)
        if region and given.get("transcript") == "platform":
            derived["genesys_oauth_url"] = login_of(region)
        if given.get("store_url") == "memory://":
            derived["web_concurrency"] = 1
        return derived | given | {"genesys_base_url": base}

    @field_validator("genesys_env")
    @classmethod
    def _is_host(cls, value: str) -> str:
        if HOST.fullmatch(value):
            return value
        raise ValueError("must be the name of an organisation or host alone; for an address there is GENESYS_BASE_URL")

    @field_validator("oauth_client_id", "oauth_client_secret", "gateway_api_key")
    @classmethod
    def _can_be_sent(cls, value: SecretStr | str | None) -> SecretStr | str | None:
        if not is_printable_ascii(secret_text(value)):
            raise ValueError("must be printable ASCII: copy it again")
        return value

    @field_validator("gateway_api_key")
    @classmethod
    def _is_bearer(cls, value: SecretStr | None) -> SecretStr | None:
        if " " in secret_text(value):
            raise ValueError("must hold no spaces: the key alone, without `Bearer`")
        return value

    @field_validator("relay_api_keys")
    @classmethod
    def _are_keys(cls, value: SecretStr) -> SecretStr:
        read_keys(secret_text(value))
        return value

    @field_validator("rate_limit")
    @classmethod
    def _is_rate(cls, value: str) -> str:
        read_rate(value)
        return value

    @field_validator("max_turns_per_caller")
    @classmethod
    def _is_at_once(cls, value: str) -> str:
        read_at_once(value)
        return value

    @field_validator("secret_key")
    @classmethod
    def _is_long(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(secret_text(value)) < LEAST_SECRET_KEY:
            raise ValueError(f"must have {LEAST_SECRET_KEY} characters at least, by chance: `openssl rand -hex 32`")
        return value

    @field_validator("default_conversation_id")
    @classmethod
    def _is_conversation_id(cls, value: str | None) -> str | None:
        try:
            return read_conversation_id(value)
        except BadRequest:
            raise ValueError(f"must be 1 to {MAX_CONVERSATION_ID} printable characters") from None

    @field_validator(
        "genesys_base_url",
        "genesys_oauth_url",
        "genesys_gateway_url",
        "genesys_api_url",
        "sandbox_url",
        "jwt_jwks_url",
    )
    @classmethod
    def _is_web_address(cls, value: str | None) -> str | None:
        return value if value is None else check_address(value, WEB)

    @field_validator("genesys_transcript_url")
    @classmethod
    def _is_websocket_address(cls, value: str) -> str:
        return check_address(value, WEBSOCKET)

    @field_validator("store_url")
    @classmethod
    def _is_store(cls, value: str) -> str:
        return check_store(value)

    @field_validator("cors_origins", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(re.findall(r"[^\s,]+", value.lower())) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(one if one == "*" else read_origin(one) for one in value)

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if one != "*" and not HOST.fullmatch(one.removeprefix(".")):
                check_ipv6(one)
        return value

    @field_validator("bind")
    @classmethod
    def _is_bind_address(cls, value: str) -> str:
        if not re.match("unix:.", value):
            host_and_port(value)
        return value

    @model_validator(mode="after")
    def _has_credentials(self) -> Self:
        client = {name: secret_text(getattr(self, name)) for name in ("oauth_client_id", "oauth_client_secret")}
        missing = next((name for name, value in client.items() if not value), None)
        if self.needs_oauth and missing:
            kind = SettingsError if any(client.values()) or self.gateway_api_key else NoOrganisation
            raise kind(
                f"{missing.upper()} is missing: set it to that of your Genesys Cloud OAuth client "
                "(grant Client Credentials), or leave both away: `make run` then uses the sandbox. An app that mounts "
                "the relay gets it by `python -m sandbox --port 8001`, GENESYS_BASE_URL=http://127.0.0.1:8001, "
                "OAUTH_CLIENT_ID=sandbox-client and OAUTH_CLIENT_SECRET=sandbox-secret"
            )
        return self

    @model_validator(mode="after")
    def _has_a_store_for_all_workers(self) -> Self:
        if self.store_url == "memory://" and self.web_concurrency > 1:
            raise SettingsError(
                f"WEB_CONCURRENCY={self.web_concurrency} cannot be right: STORE_URL=memory:// keeps answers in one "
                "worker; set WEB_CONCURRENCY=1, or a STORE_URL that workers share, such as sqlite:///var/relay.db"
            )
        return self

    @model_validator(mode="after")
    def _has_a_request_for_each_worker(self) -> Self:
        if self.transcript == "platform" and self.transcript_requests_per_minute < self.web_concurrency:
            raise SettingsError(
                f"TRANSCRIPT_REQUESTS_PER_MINUTE={self.transcript_requests_per_minute} cannot be right: each of the "
                f"{self.web_concurrency} workers needs one at least; set more, or a lower WEB_CONCURRENCY"
            )
        return self

    @model_validator(mode="after")
    def _lets_someone_in(self) -> Self:
        if self.access == "jwt":
            needed = ("jwt_jwks_url", "jwt_issuer", "jwt_audience")
            missing = next((name for name in needed if getattr(self, name) is None), None)
            if missing:
                raise SettingsError(
                    f"{missing.upper()} is missing: ACCESS=jwt takes JWT_JWKS_URL, JWT_ISSUER and JWT_AUDIENCE, as "
                    "your identity provider names them"
                )
        elif self.access == "keys" and not read_keys(secret_text(self.relay_api_keys)) and not self.relay_api_keys_file:
            raise NoAccess(chosen="access" in self.model_fields_set)
        return self

    @model_validator(mode="after")
    def _lets_no_page_in_unasked(self) -> Self:
        if "*" in self.cors_origins and self.access == "open":
            raise SettingsError(
                "CORS_ORIGINS=* cannot be right: with ACCESS=open every page that someone near this server opens could "
                "ask in their place; name the origins, or let keys or tokens be asked for (ACCESS)"
            )
        return self

    @property
    def hosts(self) -> tuple[str, ...] | None:
        """The names that requests may have in Host; None: any."""
        # In an app of someone's own BIND says nothing, and its cookies are bound to its names.
        if self.access == "app" and not self.allowed_hosts:
            return None
        return hosts_of(self.bind, self.allowed_hosts)

    @property
    def risks(self) -> list[str]:
        """What whoever runs this should think over: a sentence each."""
        found = []
        if self.access == "open" and not is_local(self.bind):
            found.append(
                f"ACCESS=open and BIND={self.bind}: whoever reaches this address spends your LLM budget and writes "
                "into your conversations. Make keys (`relay keys new NAME`), or bind to 127.0.0.1"
            )
        if self.access == "open" and (secret_text(self.relay_api_keys) or self.relay_api_keys_file):
            found.append("ACCESS=open asks no one for a key: take it away for the keys that are set to count")
        if self.access == "jwt" and not is_private(self.jwt_jwks_url or ""):
            found.append(
                "JWT_JWKS_URL is fetched without TLS: who sits between can make tokens of their own. Use https://"
            )
        if self.log_content and self.log_level == "DEBUG":
            found.append("LOG_CONTENT=1: prompts and answers stand in this log. Take it away when you have seen enough")
        return found

    @property
    def allowance(self) -> Allowance:
        """What each caller may begin."""
        return Allowance(read_rate(self.rate_limit), read_at_once(self.max_turns_per_caller))

    @property
    def needs_oauth(self) -> bool:
        return self.gateway_api_key is None or self.transcript != "off"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be printed."""
        store = urlsplit(self.store_url).password or ""
        own = (self.oauth_client_secret, self.gateway_api_key, self.secret_key)
        return tuple(secret for secret in (*map(secret_text, own), store, unquote(store)) if secret)


def load(*, in_app: bool = False, **given: str) -> Settings:
    """Reads the environment and `.env`; what is `given` counts more. `in_app` as for `read`.

    Raises SettingsError with the first setting that cannot be right.
    """
    found = read(in_app=in_app, **given)
    if isinstance(found, Settings):
        return found
    raise found[0]


def read(*, in_app: bool = False, **given: str) -> "Settings | list[SettingsError]":
    """As `load`, but returns all that cannot be right, at least one.

    `in_app`, or ACCESS=app: what has PREFIX counts more than what has not, and SECRET_KEY without it is the app's own.
    """
    try:
        found = environment()
        if in_app or "app" in (found.get("access"), found.get(f"{PREFIX}access")):
            prefixed = {name: found[PREFIX + name] for name in Settings.model_fields if PREFIX + name in found}
            return Settings(**{"secret_key": None} | prefixed | given)  # type: ignore[arg-type]  # checked there
        return Settings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        return [explain(one) for one in error.errors(include_url=False)]
    except UnicodeDecodeError:
        return [SettingsError(".env cannot be read: it is not text in UTF-8; save it as such")]
    except OSError as error:
        return [SettingsError(f".env cannot be read: {error.strerror}")]


def environment() -> dict[str, str | None]:
    """What the environment and `.env` hold, by names in small letters."""
    return {**DotEnvSettingsSource(Settings).env_vars, **EnvSettingsSource(Settings).env_vars}


def load_for_app() -> Settings:
    """As `load`, for an app that mounts the relay: where no setting says who may ask, the app does."""
    try:
        return load(in_app=True)
    except NoAccess as refusal:
        if refusal.chosen:
            raise
        return load(in_app=True, access="app")


def load_or_exit(read: Callable[[], Settings] = load) -> Settings:
    """Reads the settings for a program; a setting that cannot be right ends it with one line on stderr."""
    try:
        return read()
    except SettingsError as error:
        leave(str(error))


def leave(line: str, status: int = 2) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(status)


def explain(error: ErrorDetails) -> SettingsError:
    """One line for a thing that is wrong."""
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, SettingsError):
        return cause
    name = str(error["loc"][0])
    field = Settings.model_fields[name]
    secret = SecretStr in (field.annotation, *get_args(field.annotation))
    value = "(hidden)" if secret else repr(without_password(str(error["input"])))
    fix = str(cause) if cause else error["msg"][:1].lower() + error["msg"][1:]
    meaning = field.description or f"default: {field.default}"
    return SettingsError(f"{name.upper()}={value} cannot be right: {fix} ({meaning})")


def places(base: str) -> dict[str, str]:
    """Where an organisation with this base address has its parts."""
    scheme, _, rest = base.partition("://")
    return {
        "genesys_base_url": base,
        "genesys_oauth_url": f"{base}/oauth/token",
        "genesys_gateway_url": f"{base}/api/v2/ai/llm/gateway/chat",
        "genesys_transcript_url": f"{'wss' if scheme.lower() == 'https' else 'ws'}://{rest}/v2/conversations/websockets",
        "genesys_api_url": api_of(base),
    }


def split_address(value: str) -> SplitResult:
    """The parts of a URL. Raises ValueError, without a part of the value: it may hold a password."""
    if not is_printable_ascii(value) or " " in value:
        raise ValueError("must hold no spaces and nothing outside ASCII: write them as %20 and the like")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        raise ValueError("must hold a host and a port that can be") from None
    if port == 0:
        raise ValueError("must hold a port that is not 0")
    return parts


def check_address(value: str, schemes: tuple[str, ...]) -> str:
    parts = split_address(value)
    if parts.scheme not in schemes or not parts.hostname:
        raise ValueError(f"must be an address that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if parts.username is not None:
        raise ValueError("must not hold a user name or password")
    return value


def read_origin(value: str) -> str:
    """An origin as browsers send it in `Origin` (RFC 6454, 6.2). Raises ValueError for what is none."""
    parts = split_address(value)
    if (
        not parts.scheme
        or not parts.hostname
        or parts.username is not None
        or value != f"{parts.scheme}://{parts.netloc}"
    ):
        raise ValueError("must be SCHEME://HOST or SCHEME://HOST:PORT each, with no path behind")
    if "*" in value:
        raise ValueError("must name each origin whole: a * stands for all of them, alone")
    return value.removesuffix(f":{DEFAULT_PORTS.get(parts.scheme)}")


def check_ipv6(value: str) -> None:
    """Raises ValueError for what is no address in brackets."""
    if not (value.startswith("[") and value.endswith("]") and is_ipv6(value[1:-1])):
        raise ValueError("must be names of hosts or addresses each, without scheme and port, IPv6 in brackets")


def check_store(value: str) -> str:
    """Raises ValueError for what is no place to keep answers."""
    scheme, _, rest = value.partition("://")
    if scheme in REDIS:
        parts = split_address(value)
        if not parts.hostname or "password" in parts.query:
            raise ValueError(f"must be {scheme}://HOST, {scheme}://HOST:PORT/DB or {scheme}://USER:PASSWORD@HOST")
    elif scheme == "sqlite":
        if not rest.startswith("/") or not rest.strip("/") or rest.endswith("/") or not rest.isprintable():
            raise ValueError("must be sqlite:///PATH: three slashes, then the path of a file")
    elif value != "memory://":
        raise ValueError("must begin with sqlite:///, redis:// or rediss://, or be memory://")
    return value


def host_and_port(bind: str) -> tuple[str, int]:
    """A BIND such as 127.0.0.1:8000 or [::1]:8000. Raises ValueError."""
    found = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\s:/\[\]]+)):([0-9]{1,5})", bind)
    if not found or int(found[3]) > 65535:
        raise ValueError("must be HOST:PORT, [IPV6]:PORT or unix:PATH, for example 127.0.0.1:8000")
    host = str(IPv6Address(found[1])) if found[1] else found[2]
    return host, int(found[3])


def is_local(bind: str) -> bool:
    """Whether only this machine can reach a BIND."""
    return bind.startswith("unix:") or is_loopback(host_and_port(bind)[0])


@cache  # each request asks
def hosts_of(bind: str, allowed: tuple[str, ...]) -> tuple[str, ...] | None:
    """The names that a server of this BIND is asked by; None: any."""
    if "*" in allowed:
        return None
    if bind.startswith("unix:") or not is_local(bind):
        return (*LOCAL_HOSTS, *allowed) if allowed else None
    host, _ = host_and_port(bind)
    return (*LOCAL_HOSTS, f"[{host}]" if ":" in host else host.lower(), *allowed)


def is_private(url: str) -> bool:
    """Whether no one else can read or change what comes from this address."""
    parts = urlsplit(url)
    return parts.scheme == "https" or is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_ipv6(host: str) -> bool:
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return True


def without_password(address: str) -> str:
    """`address`, to be shown: what stands before its @, but for a user's name, is hidden."""
    return USER_INFO.sub(r"\1(hidden)@", address)


def is_printable_ascii(value: str) -> bool:
    return value.isascii() and value.isprintable()


def secret_text(value: SecretStr | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else value.get_secret_value()
