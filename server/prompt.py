"""What was asked: a request's body in, a Prompt out. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from .errors import BadRequest, InvalidJson, PromptTooLong

MAX_PROMPT_CHARS = 200_000  # in all messages together; more than any gateway's model reads
MAX_MESSAGES = 500
MAX_CONVERSATION_ID = 200  # characters
LIST_OF_STREAMS = "/streams"  # behind a conversation's address
MAX_MODEL = 200  # characters
MAX_TEMPERATURE = 2
MAX_TOKENS = 1_000_000
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question to the gateway, with the conversation before it; checked.

    `more` are fields that only the gateway understands; they and messages that are no Message go on as they came.
    `as_asked`: the gateway gets no temperature that neither the client nor the operator has chosen.
    """

    messages: tuple[Message | Mapping[str, Any], ...]
    conversation_id: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    model: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    as_asked: bool = False


def read_prompt(body: bytes) -> Prompt:
    """Reads the JSON body of a request for an answer.

    Raises InvalidJson, BadRequest or PromptTooLong, each with the field at fault.
    """
    return read_question(read_fields(body, '{"prompt": "Hello"}'))


def read_question(fields: dict[str, Any]) -> Prompt:
    """What such a body holds. Raises BadRequest or PromptTooLong, each with the field at fault."""
    return Prompt(
        messages=read_messages(fields),
        conversation_id=read_conversation_id(fields.get("conversationId")),
        temperature=read_temperature(fields.get("temperature")),
        max_tokens=read_max_tokens(fields.get("max_tokens")),
        model=read_model(fields.get("model")),
    )


def read_fields(body: bytes, example: str) -> dict[str, Any]:
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidJson from None
    if not isinstance(fields, dict):
        raise BadRequest(f"The body must be a JSON object, such as {example}.")
    return fields


def read_messages(fields: dict[str, Any]) -> tuple[Message, ...]:
    prompt, messages = fields.get("prompt"), fields.get("messages")
    if prompt is not None and messages is not None:
        raise BadRequest("Send either `prompt` or `messages`, not both.")
    if messages is None:
        if prompt is None:
            raise BadRequest("`prompt` is missing. Send the text to ask as `prompt`, or a conversation as `messages`.")
        found: tuple[Message, ...] = (Message("user", read_text(prompt, "`prompt`")),)
    else:
        found = tuple(read_list(messages))
    check_length(sum(len(message.content) for message in found))
    return found


def check_length(chars: int) -> None:
    if chars > MAX_PROMPT_CHARS:
        raise PromptTooLong(f"The prompt has {chars} characters; at most {MAX_PROMPT_CHARS} are taken. Shorten it.")


def read_list(messages: object) -> list[Message]:
    found = [read_message(number, message) for number, message in enumerate(check_list(messages))]
    if all(message.role == "system" for message in found):
        raise BadRequest("`messages` must hold at least one message of the user.")
    return found


def check_list(messages: object) -> list[object]:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("`messages` must be a list with at least one message.")
    if len(messages) > MAX_MESSAGES:
        raise PromptTooLong(f"`messages` holds {len(messages)} messages; at most {MAX_MESSAGES} are taken.")
    return messages


def read_message(number: int, message: object) -> Message:
    place = f"`messages[{number}]"
    if not isinstance(message, dict):
        raise BadRequest(f'{place}` must be an object, such as {{"role": "user", "content": "Hello"}}.')
    role = message.get("role")
    if role not in ROLES:
        raise BadRequest(f"{place}.role` must be one of: {', '.join(ROLES)}.")
    return Message(role, read_text(message.get("content"), f"{place}.content`"))


def read_text(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"{place} is missing or no string. Send the text to ask as a string.")
    if not value.strip():
        raise BadRequest(f"{place} is empty. Send the text to ask.")
    return value


def read_conversation_id(value: object, place: str = "`conversationId`") -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_CONVERSATION_ID or not value.isprintable():
        raise BadRequest(f"{place} must be a string of 1 to {MAX_CONVERSATION_ID} printable characters.")
    if value.endswith(LIST_OF_STREAMS):  # it could be asked in, and never erased
        raise BadRequest(f"{place} must not end with `{LIST_OF_STREAMS}`: that is the list of its streams.")
    return value


def read_temperature(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_TEMPERATURE:
        raise BadRequest(f"`temperature` must be a number from 0 to {MAX_TEMPERATURE}.")
    return value


def read_max_tokens(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():  # JSON has one kind of number: 5.0 is 5
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_TOKENS:
        raise BadRequest(f"`max_tokens` must be a whole number from 1 to {MAX_TOKENS}.")
    return value


def read_model(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_MODEL or not value.isprintable():
        raise BadRequest(f"`model` must be a string of 1 to {MAX_MODEL} printable characters.")
    return value
