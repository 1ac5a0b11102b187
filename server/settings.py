"""Every setting: type, default, environment name, meaning.

The environment name is the field's name in capitals; a `.env` file in the working folder is read as well.
"""

import sys
from typing import Annotated, Literal, NoReturn, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

WEB = ("http", "https")
WEBSOCKET = ("ws", "wss")


class SettingsError(ValueError):
    """A setting that cannot be right. The text is one line: its name, its value (secrets hidden) and the fix."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True)

    genesys_env: str = Field("acme", description="a bare org name means {name}.mypurecloud.com; with a dot: the host")
    oauth_client_id: str = Field("", description="of an OAuth client with the grant Client Credentials")
    oauth_client_secret: SecretStr = Field(SecretStr(""), description="its secret")
    default_conversation_id: str | None = Field(None, description="for requests that name no conversation")

    genesys_base_url: str = Field("", description="https://{host of GENESYS_ENV}")
    genesys_oauth_url: str = Field("", description="{base}/oauth/token")
    genesys_gateway_url: str = Field("", description="{base}/api/v2/ai/llm/gateway/chat")
    genesys_transcript_url: str = Field("", description="ws(s)://{base host}/v2/conversations/websockets")

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

    transcript: Literal["websocket", "off"] = Field("websocket", description="how the transcript gets the text")
    transcript_interval_ms: Annotated[int, Field(ge=0, description="least time between two messages")] = 0
    transcript_message_id: bool = Field(False, description='adds "id": "{turn}:{first}-{last}" to each message')

    store_url: str = Field("sqlite:///var/relay.db", description="where answers are kept")
    retain_seconds: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="how long an answer is kept after its end")
    ] = 3600
    disconnect_grace: Annotated[
        float,
        Field(
            ge=-1, allow_inf_nan=False, description="seconds without a follower until the turn is cancelled; -1: never"
        ),
    ] = 30
    max_turns: Annotated[int, Field(ge=1, description="at once, in one worker")] = 2000
    max_body_bytes: Annotated[int, Field(ge=1024, description="of a request")] = 1024 * 1024

    bind: str = Field("127.0.0.1:8000", description="where the server listens")
    web_concurrency: Annotated[int, Field(ge=1, description="worker processes")] = 1
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="the least that is logged")
    log_format: Literal["text", "json"] | None = Field(None, description="text on a terminal, else json")
    sandbox_url: str | None = Field(None, description="of a running sandbox: the page shows its transcript")

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="before")
    @classmethod
    def _derive_places(cls, values: dict[str, object]) -> dict[str, object]:
        host = str(values.get("genesys_env") or "acme")
        if "." not in host:
            host += ".mypurecloud.com"
        base = str(values.get("genesys_base_url") or f"https://{host}").rstrip("/")
        scheme, place, path, _, _ = urlsplit(base)
        websocket = "wss" if scheme == "https" else "ws"
        derived = {
            "genesys_oauth_url": f"{base}/oauth/token",
            "genesys_gateway_url": f"{base}/api/v2/ai/llm/gateway/chat",
            "genesys_transcript_url": f"{websocket}://{place}{path}/v2/conversations/websockets",
        }
        given = {name: value for name, value in values.items() if value not in (None, "")}
        return derived | given | {"genesys_base_url": base}

    @field_validator("genesys_base_url", "genesys_oauth_url", "genesys_gateway_url", "sandbox_url")
    @classmethod
    def _is_web_address(cls, value: str | None) -> str | None:
        return value if value is None else check_address(value, WEB)

    @field_validator("genesys_transcript_url")
    @classmethod
    def _is_websocket_address(cls, value: str) -> str:
        return check_address(value, WEBSOCKET)

    @field_validator("bind")
    @classmethod
    def _is_bind_address(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if value.startswith("unix:") or (host and port.isdecimal() and int(port) < 65536):
            return value
        raise ValueError("must be HOST:PORT or unix:PATH, for example 127.0.0.1:8000")

    @model_validator(mode="after")
    def _has_credentials(self) -> Self:
        if self.needs_oauth:
            for name in ("oauth_client_id", "oauth_client_secret"):
                if not secret_text(getattr(self, name)):
                    raise SettingsError(
                        f"{name.upper()} is missing: set it to that of your Genesys Cloud OAuth client "
                        "(grant Client Credentials), or use `make run`, which needs no account"
                    )
        return self

    @property
    def needs_oauth(self) -> bool:
        return self.gateway_api_key is None or self.transcript == "websocket"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be printed."""
        found = (secret_text(self.oauth_client_secret), secret_text(self.gateway_api_key))
        return tuple(secret for secret in found if secret)


def load() -> Settings:
    """Reads the environment and `.env`.

    Raises SettingsError with the first setting that cannot be right.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError(explain(error)) from None


def load_or_exit() -> Settings:
    """Reads the settings for a program; a setting that cannot be right ends it with one line on stderr."""
    try:
        return load()
    except SettingsError as error:
        leave(str(error))


def leave(line: str) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(2)


def explain(error: ValidationError) -> str:
    """One line for the first thing that is wrong."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, SettingsError):
        return str(cause)
    name = str(first["loc"][0])
    field = Settings.model_fields[name]
    hidden = "secret" in name or "key" in name or "@" in str(first["input"])
    value = "(hidden)" if hidden else repr(first["input"])
    fix = str(cause) if cause else first["msg"][:1].lower() + first["msg"][1:]
    return f"{name.upper()}={value} cannot be right: {fix} ({field.description or 'default: ' + str(field.default)})"


def check_address(value: str, schemes: tuple[str, ...]) -> str:
    parts = urlsplit(value)
    if parts.scheme not in schemes or not parts.hostname:
        raise ValueError(f"must be an address that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    if parts.port == 0:
        raise ValueError("must hold a port that is not 0")
    if parts.username is not None:
        raise ValueError("must not hold a user name or password")
    return value


def secret_text(value: SecretStr | str | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else value.get_secret_value()
