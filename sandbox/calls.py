"""Who called what: the counters behind GET /sandbox/calls."""

import asyncio
import time
import weakref
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from .faults import CALLS, Order

LOG_LENGTH = 1000  # calls kept in the log


class Calls:
    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.log: deque[dict[str, Any]] = deque(maxlen=LOG_LENGTH)
        self.oauth_figures: Counter[str] = Counter()
        self.gateway_figures: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.transcript_figures: Counter[str] = Counter()
        self.closes: Counter[str] = Counter()
        self.platform_figures: Counter[str] = Counter()
        self.platform_statuses: Counter[str] = Counter()
        self._connections: weakref.WeakSet[asyncio.BaseTransport] = weakref.WeakSet()

    def oauth(self, status: int | None, order: Order | None) -> None:
        self.oauth_figures["calls"] += 1
        self.oauth_figures["issued" if status == 200 and order_issues(order) else "refused"] += 1
        self._note("oauth", status, order)

    def gateway(self, status: int | None, order: Order | None, prompt: str | None, headers: Mapping[str, str]) -> None:
        """Counts one call; `status` is None when the connection was reset without an answer."""
        self.gateway_figures["calls"] += 1
        if status is not None:
            self.statuses[str(status)] += 1
        trace = {name: headers.get(name) for name in ("traceparent", "tracestate")}
        self._note("gateway", status, order, prompt=prompt, **trace)

    def connection(self, transport: asyncio.BaseTransport | None) -> bool:
        """Counts a connection once; returns whether it has come before."""
        if transport is None or transport in self._connections:
            return True
        self._connections.add(transport)
        self.gateway_figures["connections"] += 1
        return False

    def handshake(self, status: int, order: Order | None) -> None:
        self.transcript_figures["handshakes"] += 1
        self.transcript_figures["opened" if status == 101 else "refused"] += 1
        self._note("transcript", status, order)

    def platform(self, call: str, status: int | None, order: Order | None) -> None:
        """Counts one call of a kind; `status` is None when the connection was reset without an answer."""
        self.platform_figures[call] += 1
        if status is not None:
            self.platform_statuses[str(status)] += 1
        self._note("platform", status, order, call=call)

    def close_frame(self, code: int) -> None:
        """Counts a close frame that the relay has sent of its own accord."""
        self.closes[str(code)] += 1

    def _note(self, place: str, status: int | None, order: Order | None, **more: str | None) -> None:
        entry = {"at": time.time(), "place": place, "status": status, "fault": order.fault if order else None}
        self.log.append(entry | {name: value for name, value in more.items() if value is not None})

    def report(self, open_links: int) -> dict[str, Any]:
        """The body of GET /sandbox/calls."""
        gateway = pick(self.gateway_figures, "calls", "completed", "abandoned", "connections")
        transcript = pick(self.transcript_figures, "handshakes", "refused", "opened", "messages", "pings")
        return {
            "oauth": pick(self.oauth_figures, "calls", "issued", "refused"),
            "gateway": gateway | {"statuses": dict(self.statuses)},
            "transcript": transcript | {"open": open_links, "closes": dict(self.closes)},
            "platform": pick(self.platform_figures, *CALLS) | {"statuses": dict(self.platform_statuses)},
            "log": list(self.log),
        }


def order_issues(order: Order | None) -> bool:
    return order is None or order.fault not in ("not_json", "no_token")


def pick(figures: Counter[str], *names: str) -> dict[str, Any]:
    return {name: figures[name] for name in names}
