"""Someone who was told apart from others."""

from typing import TYPE_CHECKING, NamedTuple

from ..errors import Forbidden

if TYPE_CHECKING:
    from ..journal import Entry


class Caller(NamedTuple):
    name: str  # what its streams and idempotency keys are kept under
    conversations: tuple[str, ...] | None = None  # ids, or beginnings of ids with a * behind; None: all

    def may_use(self, conversation_id: str | None) -> bool:
        return self.conversations is None or any(covers(one, conversation_id) for one in self.conversations)

    def check(self, conversation_id: str | None) -> None:
        """Raises Forbidden for a conversation that this caller may not use."""
        if not self.may_use(conversation_id):
            raise Forbidden

    def owns(self, entry: "Entry") -> bool:
        """Whether it began this stream. One name may come with tokens for different conversations."""
        return entry.caller == self.name and self.may_use(entry.conversation_id)


ANYONE = Caller("")  # where no one is asked for a name


def covers(pattern: str, conversation_id: str | None) -> bool:
    if conversation_id is None:
        return False
    return conversation_id.startswith(pattern[:-1]) if pattern.endswith("*") else conversation_id == pattern
