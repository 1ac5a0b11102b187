"""What a place says of its refusal: for people, who are told it in its own words. No I/O."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..credentials import CORRELATION

MAX_WORDS = 300  # characters of a sentence that is not ours
MAX_CODE = 80  # characters of an error's code or a correlation id


class Words(NamedTuple):
    """What a refusal says of itself."""

    code: str
    sentence: str

    def quoted(self, status: int, headers: Mapping[str, str] | None = None) -> str:
        """For the end of a sentence of ours."""
        identity = (headers or {}).get(CORRELATION) or ""
        parts = [f"HTTP {status}", self.code, f"{CORRELATION} {identity[:MAX_CODE]}" if identity else ""]
        said = f": “{self.sentence}”" if self.sentence else ""
        return f" ({', '.join(filter(None, parts))}){said}"


def read_words(body: bytes) -> Words:
    """The error of OAuth (RFC 6749, 5.2), of the platform's API or of OpenAI's; empty for anything else."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return Words("", "")
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        answer = answer["error"]
    if not isinstance(answer, dict):
        return Words("", "")
    code = first_text(answer, "error", "code", "type")
    return Words(code[:MAX_CODE], first_text(answer, "error_description", "description", "message")[:MAX_WORDS])


def first_text(answer: dict[str, Any], *names: str) -> str:
    return next((answer[name] for name in names if isinstance(answer.get(name), str)), "")
