"""What an operator reads: log lines, without secrets.

Imported by gunicorn.conf.py before the worker patches the standard library: nothing here may import sockets.
"""

import json
import logging
import re
import sys
import time
from collections import deque
from typing import Any
from urllib.parse import quote, quote_plus

import orjson

from .settings import Settings

LEAST_SECRET = 8  # characters; Genesys Cloud's own have dozens
MAX_TOKENS = 64  # access tokens known to the redaction; they come and go
HIDDEN = "[hidden]"
# What introduces a secret that nobody has named to `hide`; in a URL, a form, a header, JSON or a repr.
SECRET_PATTERN = re.compile(
    r"""((?:access_token|refresh_token|client_secret|secret_key|api_keys?|password|ticket)"""
    r"""(?:\\*["'])?\s*[=:]\s*(?:\\*["'])?"""
    r"""|authorization(?:\\*["'])?\s*[=:]\s*(?:\\*["'])?(?:[a-z]+\s+)?"""
    r"""|\b(?:bearer|basic)\s+)"""
    r"""(?:[^\s&"',\\]|\\+(?![\\"']))+""",  # a backslash before a quote belongs to the quote
    re.IGNORECASE,
)
# What is a secret by its own looks: a relay's API key, a JSON Web Token.
# Looked for where such a run of characters begins, and nowhere in it: else a long one takes the square of its length.
OBVIOUS_PATTERN = re.compile(r"(?<![\w-])(?:relay_[\w-]{43}|eyJ[\w-]+\.[\w-]+\.[\w-]*)", re.ASCII)
PASSWORD_PATTERN = re.compile(r"(://[^\s/:@]*:)[^\s/@]+(?=@)")
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
NOTHING = r"(?!)"  # what no text matches; an empty pattern would match between any two characters
NOISY = {"urllib3": logging.INFO, "websocket": logging.CRITICAL, "geventhttpclient": logging.INFO}

_kept: set[str] = set()  # of the settings
_tokens: deque[str] = deque(maxlen=MAX_TOKENS)
_known = re.compile(NOTHING)  # any of them, in any form
_standard = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


def hide(token: str) -> None:
    """Makes an access token unprintable: log lines show [hidden] in its place, until MAX_TOKENS others have come."""
    if token and token not in _tokens:
        _tokens.append(token)
        _compile()


def hide_for_good(*secrets: str) -> None:
    """Makes secrets of the settings unprintable, for as long as the process lives.

    One so short that it stands in ordinary words would tear holes into every line, and is no secret.
    """
    _kept.update(secret for secret in secrets if len(secret) >= LEAST_SECRET)
    _compile()


def _compile() -> None:
    global _known  # noqa: PLW0603 - one redaction a process, as there is one log
    forms = {form for secret in (*_kept, *_tokens) for form in forms_of(secret)}
    # The longest first: one secret may begin another.
    _known = re.compile("|".join(map(re.escape, sorted(forms, key=len, reverse=True))) or NOTHING)


def forms_of(secret: str) -> set[str]:
    """How a secret may stand in a text: as it is, in JSON, in a repr, in a URL, in a form."""
    url = (quote(secret, safe="", errors="replace"), quote_plus(secret, errors="replace"))
    return {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1], *url}


def redact(text: str) -> str:
    text = _known.sub(HIDDEN, text)
    text = OBVIOUS_PATTERN.sub(HIDDEN, text)
    text = SECRET_PATTERN.sub(rf"\1{HIDDEN}", text)
    return PASSWORD_PATTERN.sub(rf"\1{HIDDEN}", text)


class UtcFormatter(logging.Formatter):
    """Tells the time in UTC, as ISO 8601 has it."""

    converter = time.gmtime  # type: ignore[assignment]  # typeshed's signature is narrower than logging's use
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class TextFormatter(UtcFormatter):
    """One line for people: time, level, message, then fields as name=value; an exception's lines follow, indented."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in fields_of(record).items())
        line = f"{self.formatTime(record)} {record.levelname:7} {message_of(record)}{fields and ' ' + fields}"
        return "\n    ".join(map(printable, [line, *trace_of(record).split("\n")])).rstrip()


class JsonFormatter(UtcFormatter):
    """One JSON object a line, for log collectors."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": message_of(record),
            **fields_of(record),
        }
        if trace := trace_of(record):
            entry["exception"] = trace
        try:
            return orjson.dumps(entry).decode()
        except TypeError:  # a lone surrogate, which UTF-8 does not have
            return json.dumps(entry, ensure_ascii=False).encode(errors="replace").decode()


# Redaction comes before JSON's own escapes, or it could cut them in two.


def message_of(record: logging.LogRecord) -> str:
    try:
        return redact(record.getMessage())
    except Exception:  # noqa: BLE001 - whatever the arguments' own code raises
        return redact(text_of(record.msg))


def fields_of(record: logging.LogRecord) -> dict[str, str | float]:
    """What was given as `extra`, without what is absent: numbers that JSON has as such, all else as text."""
    return {
        name: value if isinstance(value, int | float) and abs(value) < 2**63 else redact(text_of(value))
        for name, value in vars(record).items()
        if name not in _standard and value is not None and value != ""
    }


def trace_of(record: logging.LogRecord) -> str:
    """The exception's lines."""
    return redact(logging.Formatter().formatException(record.exc_info)) if record.exc_info else ""


def text_of(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a line without this value is better than none
        return f"<{type(value).__name__}>"


def printable(text: str) -> str:
    """`text` as one line: no one who chooses a part of it can begin another, or command the terminal."""
    return UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


def log_config(settings: Settings) -> dict[str, Any]:
    """For logging.config.dictConfig: everything, gunicorn's own lines as well, goes to stderr through one formatter."""
    hide_for_good(*settings.secrets)
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
            # A line for each request says little that the turns' own lines do not.
            "gunicorn.access": through | {"level": "INFO" if settings.log_level == "DEBUG" else "WARNING"},
            **{name: {"level": level} for name, level in NOISY.items()},
        },
    }
