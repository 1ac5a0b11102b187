"""What was asked and answered, for the log: where LOG_CONTENT allows it, and nowhere else."""

import logging

import orjson

from .prompt import Prompt

log = logging.getLogger(__name__)


class Content:
    """One turn's."""

    def __init__(self, turn_id: str, prompt: Prompt) -> None:
        self._turn_id = turn_id
        self._prompt = prompt
        self._answer: list[str] = []

    def add(self, text: str) -> None:
        self._answer.append(text)

    def log(self) -> None:
        if log.isEnabledFor(logging.DEBUG):
            asked = orjson.dumps(self._prompt.messages).decode()
            log.debug("turn was asked", extra={"turn": self._turn_id, "content": asked})
            log.debug("turn has answered", extra={"turn": self._turn_id, "content": "".join(self._answer)})
