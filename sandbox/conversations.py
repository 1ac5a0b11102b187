"""What the transcript holds: every message of every conversation, and who watches."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    text: str
    at: float  # seconds since 1970
    link: int | None  # the WebSocket that carried it; None: posted to the platform API
    id: str | None
    is_late: bool = False  # a slow reader took it when the other end of the link had gone long ago

    def shown(self) -> dict[str, Any]:
        shown = {"text": self.text, "at": self.at, "link": self.link, "id": self.id, "late": self.is_late or None}
        return {name: value for name, value in shown.items() if value is not None}


@dataclass(slots=True)
class Conversation:
    id: str
    messages: list[Message] = field(default_factory=list)
    links: set[int] = field(default_factory=set)  # all that ever carried its text
    open_links: set[int] = field(default_factory=set)
    most_at_once: int = 0
    typing: int = 0  # typing events
    began: float = field(default_factory=time.time)  # seconds since 1970, as the next
    ended_at: float | None = None
    transfers: int = 0  # from one agent to another
    is_alerting: bool = False  # no agent has answered yet
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    pongs: dict[int, list[float]] = field(default_factory=dict)  # of all links; when each answered pings

    def add(self, message: Message) -> None:
        self.messages.append(message)
        if message.link is not None:
            self.links.add(message.link)
            self.open_links.add(message.link)
            self.most_at_once = max(self.most_at_once, len(self.open_links))
        self.changed.set()
        self.changed = asyncio.Event()

    def shown(self) -> dict[str, Any]:
        """The body of GET /sandbox/conversations/{id}."""
        return {
            "id": self.id,
            "text": "".join(message.text for message in self.messages),
            "messages": [message.shown() for message in self.messages],
            "links": self.count_links(),
            "pongs": {link: self.pongs[link] for link in self.links if link in self.pongs},
            "typing": self.typing,
        }

    def count_links(self) -> dict[str, int]:
        return {"opened": len(self.links), "open": len(self.open_links), "most_at_once": self.most_at_once}


class Conversations:
    def __init__(self) -> None:
        self._all: dict[str, Conversation] = {}
        self._pongs: dict[int, list[float]] = {}

    def get(self, conversation_id: str) -> Conversation:
        """The conversation; one that is not known yet is empty."""
        return self._all.setdefault(conversation_id, Conversation(conversation_id, pongs=self._pongs))

    def note_pong(self, link: int) -> None:
        self._pongs.setdefault(link, []).append(time.time())

    def link_closed(self, link: int) -> None:
        for conversation in self._all.values():
            conversation.open_links.discard(link)

    def clear(self) -> None:
        """Empties every conversation; who watches one goes on to watch it."""
        for conversation in self._all.values():
            conversation.messages.clear()
            conversation.links.clear()
            conversation.open_links.clear()
            conversation.most_at_once = conversation.typing = conversation.transfers = 0
            conversation.ended_at, conversation.is_alerting = None, False

    def listed(self) -> list[dict[str, Any]]:
        return [
            {"id": conversation.id, "messages": len(conversation.messages), "links": conversation.count_links()}
            for conversation in self._all.values()
            if conversation.messages
        ]
