"""The gateway's lines: OpenAI chat.completion.chunk objects and the ways to frame them. No I/O."""

import json
import secrets
import time
from typing import Any

FRAMES = {
    "crlf": b"data: %s\r\n\r\n",
    "bare": b"%s\n",
    "no_space": b"data:%s\n\n",
    "comments": b": OPENROUTER PROCESSING\n\ndata: %s\n\n",
}
FRAME = b"data: %s\n\n"

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def to_json(value: object) -> bytes:
    """JSON with real multi-byte characters on the wire."""
    try:
        return _encode(value).encode()
    except UnicodeEncodeError:  # half a surrogate pair has no UTF-8; JSON's own escape carries it
        return json.dumps(value).encode()


class Chunks:
    """The lines of one answer."""

    def __init__(self, model: str, frame: bytes = FRAME) -> None:
        self._frame = frame
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }
        opening = to_json(self._head)[:-1] + b',"choices":[{"index":0,"delta":{"content":'
        self._token_opening = opening

    def role(self) -> bytes:
        return self._choice({"role": "assistant", "content": ""}, None)

    def token(self, text: str) -> bytes:
        # Built by hand around the one part that differs: this runs for each token of each stream.
        return self._frame % (self._token_opening + to_json(text) + b'},"finish_reason":null}]}')

    def delta(self, delta: dict[str, Any]) -> bytes:
        """Whatever a model says beside its text: tool calls, reasoning."""
        return self._choice(delta, None)

    def finish(self, reason: str) -> bytes:
        return self._choice({}, reason)

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        return self.line(self._head | {"choices": [], "usage": usage(prompt_tokens, completion_tokens)})

    def done(self) -> bytes:
        return b"" if self._frame == FRAMES["bare"] else self._frame % b"[DONE]"

    def line(self, value: object) -> bytes:
        return self._frame % to_json(value)

    def _choice(self, delta: dict[str, Any], reason: str | None) -> bytes:
        return self.line(self._head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def completion(model: str, text: str, reason: str, prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """The answer to `stream: false`: one chat.completion object."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [choice],
        "usage": usage(prompt_tokens, completion_tokens),
    }
