"""What an OpenAI client asks: the body of a chat completion in, a Prompt out. No I/O.

What the gateway understands is the gateway's to say: all fields go on to it as they came, but for those that are ours
to answer (`stream`, `stream_options`, `n`, `metadata.conversation_id`).
"""

from dataclasses import dataclass
from typing import Any

import orjson

from .errors import BadRequest
from .prompt import (
    Prompt,
    check_length,
    check_list,
    read_conversation_id,
    read_fields,
    read_max_tokens,
    read_model,
    read_temperature,
)

DEFAULT_MODEL = "default"  # what the gateway's own choice is called, where GATEWAY_MODEL does not say
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
INSTRUCTING = ("system", "developer")
OURS = frozenset({"messages", "stream", "stream_options", "n", "metadata", "model", "temperature", "max_tokens"})
EXAMPLE = '{"model": "default", "messages": [{"role": "user", "content": "Hello"}]}'


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A checked request. `model` is the name that the client used, if any."""

    prompt: Prompt
    model: str | None
    stream: bool
    include_usage: bool  # asked for a last chunk with the usage


def read_completion(body: bytes) -> CompletionRequest:
    """Reads the JSON body of POST /v1/chat/completions.

    Raises InvalidJson, BadRequest or PromptTooLong, each with the field at fault.
    """
    fields = read_fields(body, EXAMPLE)
    check_nesting(fields)
    stream = read_flag(fields.get("stream"), "`stream`")
    include_usage = read_include_usage(fields.get("stream_options"))
    check_n(fields.get("n"))
    conversation_id, metadata = read_metadata(fields.get("metadata"))
    model = read_model(fields.get("model"))
    more = {name: value for name, value in fields.items() if name not in OURS}
    if metadata:
        more["metadata"] = metadata
    if include_usage or not stream:  # an answer in one piece always tells what it used
        more["stream_options"] = {"include_usage": True}
    prompt = Prompt(
        messages=tuple(read_messages(fields.get("messages"))),
        conversation_id=conversation_id,
        temperature=read_temperature(fields.get("temperature")),
        max_tokens=read_max_tokens(fields.get("max_tokens")),
        model=None if model == DEFAULT_MODEL else model,
        more=more,
        as_asked=True,  # some models refuse any temperature
    )
    return CompletionRequest(prompt, model, stream, include_usage)


def check_nesting(fields: dict[str, Any]) -> None:
    """What is passed on must be written again, and orjson writes fewer levels than it reads."""
    try:
        orjson.dumps(fields)
    except TypeError:
        raise BadRequest("The body is nested more deeply than this server can pass on.") from None


def read_flag(value: object, place: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"{place} must be true or false.")
    return value is True


def read_include_usage(options: object) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise BadRequest("`stream_options` must be an object.")
    return read_flag(options.get("include_usage"), "`stream_options.include_usage`")


def check_n(value: object) -> None:
    if value is not None and (isinstance(value, bool) or value != 1):
        raise BadRequest("`n` must be 1: this server gives one answer to each question.")


def read_metadata(metadata: object) -> tuple[str | None, dict[str, Any]]:
    """The conversation that it names, and what else it holds."""
    if metadata is None:
        return None, {}
    if not isinstance(metadata, dict):
        raise BadRequest("`metadata` must be an object.")
    conversation_id = read_conversation_id(metadata.get("conversation_id"), "`metadata.conversation_id`")
    return conversation_id, {name: value for name, value in metadata.items() if name != "conversation_id"}


def read_messages(messages: object) -> list[dict[str, Any]]:
    found = [read_message(number, message) for number, message in enumerate(check_list(messages))]
    if all(message["role"] in INSTRUCTING for message in found):
        raise BadRequest("`messages` must hold at least one message of the user.")
    check_length(sum(chars(message.get("content")) for message in found))
    return found


def read_message(number: int, message: object) -> dict[str, Any]:
    place = f"`messages[{number}]"
    if not isinstance(message, dict):
        raise BadRequest(f'{place}` must be an object, such as {{"role": "user", "content": "Hello"}}.')
    if message.get("role") not in ROLES:
        raise BadRequest(f"{place}.role` must be one of: {', '.join(ROLES)}.")
    check_content(message.get("content"), message["role"], f"{place}.content`")
    return message


def check_content(content: object, role: str, place: str) -> None:
    """A string, or a list of parts; an assistant that only called tools has none."""
    if isinstance(content, str) or (content is None and role == "assistant"):
        return
    if not isinstance(content, list) or not content:
        raise BadRequest(f"{place} must be a string, or a list of parts.")
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise BadRequest(f'{place} must hold parts such as {{"type": "text", "text": "Hello"}}.')


def chars(content: object) -> int:
    """Characters of text; images and files are bounded by the body's size alone."""
    if isinstance(content, list):
        return sum(len(part["text"]) for part in content if isinstance(part.get("text"), str))
    return len(content) if isinstance(content, str) else 0
