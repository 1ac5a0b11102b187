"""Joins calls that come while one is under way into the next: one transaction for many who wait."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import gevent
from gevent.event import AsyncResult

A = TypeVar("A")
R = TypeVar("R")


class Group(Generic[A, R]):
    """Greenlets call one at a time; `run` gets all that wait and returns their results in the same order."""

    def __init__(self, run: Callable[[Sequence[A]], Sequence[R]]) -> None:
        self._run = run
        self._waiting: list[tuple[A, AsyncResult[R]]] = []
        self._running = False

    def call(self, argument: A) -> R:
        """Returns this argument's result; raises what `run` raised for the group that it was in."""
        result: AsyncResult[R] = AsyncResult()
        self._waiting.append((argument, result))
        if not self._running:
            self._running = True
            # A greenlet of its own: whoever came first may be killed, and the others still get their results.
            gevent.spawn(self._serve)
        return result.get()  # type: ignore[no-any-return]  # gevent has no types for it

    def _serve(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting, []
                self._run_group(group)
        finally:
            self._running = False

    def _run_group(self, group: Sequence[tuple[A, "AsyncResult[R]"]]) -> None:
        try:
            results = self._run([argument for argument, _ in group])
        except Exception as error:  # noqa: BLE001 - it is raised where the call was made
            for _, waiting in group:
                waiting.set_exception(error)
        else:
            for (_, waiting), result in zip(group, results, strict=True):
                waiting.set(result)
