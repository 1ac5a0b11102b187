"""The platform's answers: names and values as in the official SDK's classes. No I/O."""

import json
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from .conversations import Conversation, Message

NAMES = uuid.uuid5(uuid.NAMESPACE_URL, "sandbox")


def agent_legs(conversation: Conversation) -> list[tuple[int, str]]:
    """Each agent that has had the conversation, with the state of its communication; the newest last."""
    last = "disconnected" if conversation.ended_at else "alerting" if conversation.is_alerting else "connected"
    return [(leg, "disconnected") for leg in range(conversation.transfers)] + [(conversation.transfers, last)]


def made_id(*parts: object) -> str:
    """The same UUID for the same parts."""
    return str(uuid.uuid5(NAMES, json.dumps(parts)))


def communication_id(conversation: Conversation, leg: int | str) -> str:
    return made_id(conversation.id, leg, "communication")


def moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def legs(conversation: Conversation) -> list[tuple[int | str, str, str]]:
    """Key, purpose and state of everyone's part in the conversation."""
    customer = "disconnected" if conversation.ended_at else "connected"
    return [("customer", "customer", customer), *((leg, "agent", state) for leg, state in agent_legs(conversation))]


def details(conversation: Conversation) -> list[dict[str, Any]]:
    """What was posted, as MessageDetails: without the text."""
    return [
        {
            "messageId": message.id,
            "messageURI": message_uri(conversation, message),
            "messageStatus": "sent",
            "messageTime": moment(message.at),
        }
        for message in conversation.messages
        if message.link is None
    ]


def whole_conversation(conversation: Conversation) -> dict[str, Any]:
    """The SDK's Conversation: each participant has its communications under `messages`."""
    start = moment(conversation.began)
    newest = conversation.transfers
    participants = []
    for leg, purpose, state in legs(conversation):
        communication = {
            "id": communication_id(conversation, leg),
            "state": state,
            "type": "webmessaging",
            "direction": "inbound",
            "held": False,
            "provider": "PureCloud Messaging",
            "connectedTime": start,
            "messages": details(conversation) if leg == newest else [],
        }
        participant = {"id": made_id(conversation.id, leg), "purpose": purpose, "startTime": start}
        if purpose == "agent":
            communication["peerId"] = communication_id(conversation, "customer")
        if state == "disconnected":
            communication |= {"disconnectedTime": end_of(conversation), "disconnectType": "client"}
            participant["endTime"] = end_of(conversation)
        participants.append(participant | {"messages": [communication]})
    return {
        "id": conversation.id,
        "startTime": start,
        **({"endTime": end_of(conversation)} if conversation.ended_at else {}),
        "participants": participants,
        "selfUri": f"/api/v2/conversations/{conversation.id}",
    }


def messaging_conversation(conversation: Conversation) -> dict[str, Any]:
    """The SDK's MessageConversation: it tells the participants' states, but not their communications' ids."""
    start = moment(conversation.began)
    newest = conversation.transfers
    participants = []
    for leg, purpose, state in legs(conversation):
        participant = {
            "id": made_id(conversation.id, leg),
            "purpose": purpose,
            "state": state,
            "type": "webmessaging",
            "direction": "inbound",
            "held": False,
            "startTime": start,
            "connectedTime": start,
            "messages": details(conversation) if leg == newest else [],
        }
        if purpose == "agent":
            participant["peer"] = communication_id(conversation, "customer")
        if state == "disconnected":
            participant |= {"endTime": end_of(conversation), "disconnectType": "client"}
        participants.append(participant)
    return {
        "id": conversation.id,
        "participants": participants,
        "otherMediaUris": [],
        "selfUri": f"/api/v2/conversations/messages/{conversation.id}",
    }


def end_of(conversation: Conversation) -> str:
    return moment(conversation.ended_at or time.time())


def message_uri(conversation: Conversation, message: Message) -> str:
    return f"/api/v2/conversations/messages/{conversation.id}/messages/{message.id}"


def message_data(conversation: Conversation, message: Message) -> dict[str, Any]:
    """The SDK's MessageData: the text is in the normalized message alone."""
    return {
        "id": message.id,
        "conversationId": conversation.id,
        "direction": "outbound",
        "messengerType": "webmessaging",
        "status": "sent",
        "timestamp": moment(message.at),
        "normalizedMessage": {
            "id": message.id,
            "type": "Text",
            "text": message.text,
            "direction": "Outbound",
            "originatingEntity": "Human",
        },
        "selfUri": message_uri(conversation, message),
    }
