"""The same for asyncio."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Self

import httpx

from .calls import BROKEN, TIMEOUT, Calls, check, failure, question
from .course import TRIES, Course
from .errors import RelayError
from .events import Event, Failure, Opened, Token
from .sse import Decoder


class AsyncRelay:
    """One relay. Close it, or use it as a context manager; may be shared by the tasks of one loop."""

    def __init__(
        self, base: str, key: str | None = None, *, tries: int = TRIES, http: httpx.AsyncClient | None = None
    ) -> None:
        """`base` is the relay's address, with its prefix; `tries`: how many in a row may bring nothing.

        `http` is for who needs proxies, certificates or limits of their own, and closes it.
        """
        self._calls = Calls(base, key)
        self._tries = tries
        self._is_ours = http is None
        self._http = http or httpx.AsyncClient()

    def ask(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        conversation_id: str | None = None,
        idempotency_key: str | None = None,
        **more: Any,
    ) -> "AsyncAnswer":
        """Begins one turn, once the answer is read and however often it has to POST; `more` goes into the body."""
        body = question(prompt, messages, conversation_id, more)
        return AsyncAnswer(self, Course(body, idempotency_key=idempotency_key, tries=self._tries))

    def follow(self, stream: str, *, after: int = 0) -> "AsyncAnswer":
        """An answer by its id or url, behind the event `after`."""
        return AsyncAnswer(self, Course(place=stream, after=after, tries=self._tries))

    async def cancel(self, stream: str) -> None:
        """Ends the answer itself, however often that has to be said. Raises RelayError."""
        address = self._calls.address(stream)
        course = Course(place=stream, tries=self._tries)
        while True:
            try:
                check(await self._http.delete(address, headers=self._calls.headers(address), timeout=TIMEOUT))
                return
            except (RelayError, *BROKEN) as broken:
                error = failure(broken)
            await asyncio.sleep(course.lose(error).seconds)

    async def _begin(self, course: Course) -> Any:
        address = self._calls.streams
        headers = self._calls.headers(address, course.asking)
        response = await self._http.post(address, json=course.question, headers=headers, timeout=TIMEOUT)
        check(response)
        return response.json()

    async def _connection(self, course: Course) -> AsyncGenerator[Event, None]:
        """What one connection brings, to its end."""
        address = self._calls.address(course.place or "")
        headers = self._calls.headers(address, course.following)
        async with self._http.stream("GET", address, headers=headers, timeout=TIMEOUT) as response:
            if not response.is_success:
                await response.aread()
            check(response)
            course.is_over = response.status_code == 204
            if not course.is_over:
                yield Opened()
            decoder = Decoder()
            async for piece in response.aiter_bytes():
                for block in decoder.feed(piece):
                    event = course.take(block)
                    if event is not None:
                        yield event
                    if course.is_over:
                        return

    async def close(self) -> None:
        if self._is_ours:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncAnswer:
    """An iterator of events, to `Done`. Raises RelayError when it gives up.

    Whoever stops reading closes it, or used it as a context manager; the turn goes on. `cancel` ends the turn.
    """

    def __init__(self, relay: AsyncRelay, course: Course) -> None:
        self._relay = relay
        self._course = course
        self._events = self._read()

    @property
    def url(self) -> str | None:
        """Where it can be followed; None until it has begun."""
        return self._course.place

    @property
    def cursor(self) -> int:
        """Id of the last event that came: what `follow(url, after=...)` goes on behind."""
        return self._course.after

    async def tokens(self) -> AsyncIterator[str]:
        """The text alone; raises RelayError for an answer that fails."""
        async for event in self:
            if isinstance(event, Failure):
                raise RelayError(event.sentence, event.code, 200)
            if isinstance(event, Token):
                yield event.text

    async def cancel(self) -> None:
        """Ends the turn; what it ends with is still to be read."""
        if self.url is not None:
            await self._relay.cancel(self.url)

    async def close(self) -> None:
        await self._events.aclose()

    async def _read(self) -> AsyncGenerator[Event, None]:
        course = self._course
        while not course.is_over:
            try:
                if course.place is None:
                    yield course.begin(await self._relay._begin(course))
                async with aclosing(self._relay._connection(course)) as events:
                    async for event in events:
                        yield event
                error = RelayError("The connection was lost.")
            except (RelayError, *BROKEN) as broken:
                error = failure(broken)
            if not course.is_over:
                lost = course.lose(error)
                yield lost
                await asyncio.sleep(lost.seconds)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
