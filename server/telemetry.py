"""What an operator reads: log lines, without secrets.

Imported by gunicorn.conf.py before the worker patches the standard library: nothing here may import sockets.
"""

import logging
import re
import sys
import time
from collections import deque
from typing import Any

import orjson

from .settings import Settings

MAX_SECRETS = 64  # secrets known to the redaction; access tokens come and go
SECRET_PATTERN = re.compile(r"(access_token=|client_secret=|[Bb]earer\s+|[Bb]asic\s+)[^\s&\"',;}]+")
HIDDEN = "[hidden]"
NOISY = {"urllib3": logging.INFO, "websocket": logging.CRITICAL, "geventhttpclient": logging.INFO}

_secrets: deque[str] = deque(maxlen=MAX_SECRETS)
_standard = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


def hide(secret: str) -> None:
    """Makes `secret` unprintable: log lines show [hidden] in its place."""
    if secret and secret not in _secrets:
        _secrets.append(secret)


def redact(text: str) -> str:
    for secret in _secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return SECRET_PATTERN.sub(rf"\1{HIDDEN}", text)


class TextFormatter(logging.Formatter):
    """One line for people: time, level, message, then fields as name=value."""

    converter = time.gmtime  # type: ignore[assignment]  # typeshed's signature is narrower than logging's use
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        fields = " ".join(f"{name}={value}" for name, value in fields_of(record).items())
        return super().formatMessage(record) + (f"  {fields}" if fields else "")

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for log collectors."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return redact(orjson.dumps(entry, default=str).decode())


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as `extra`, without what is absent."""
    return {
        name: value
        for name, value in vars(record).items()
        if name not in _standard and value is not None and value != ""
    }


def log_config(settings: Settings) -> dict[str, Any]:
    """For logging.config.dictConfig: everything, gunicorn's own lines as well, goes to stderr through one formatter."""
    for secret in settings.secrets:
        hide(secret)
    kind = settings.log_format or ("text" if sys.stderr.isatty() else "json")
    formatter = TextFormatter if kind == "text" else JsonFormatter
    through = {"handlers": [], "propagate": True}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"one": {"()": f"{formatter.__module__}.{formatter.__qualname__}"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "one", "stream": "ext://sys.stderr"}},
        "root": {"level": settings.log_level, "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": through | {"level": settings.log_level},
            "gunicorn.access": through | {"level": "INFO"},
            **{name: {"level": level} for name, level in NOISY.items()},
        },
    }
