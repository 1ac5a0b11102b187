"""The way to Redis: a pool of connections, commands, and scripts."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..errors import StoreUnavailable
from .redis_scripts import Script

POOL_TIMEOUT = 10.0  # seconds to wait for a free connection
TIMEOUT = 1.0  # seconds for a connection or a reply; a worker whose Redis takes longer is about to lose its lease
RETRY_AFTER = 2  # seconds after which callers may come back
HEALTH_INTERVAL = 15  # seconds of silence after which a connection is tried with a PING first: firewalls forget
PIPELINE = 100  # scripts in one round trip; Redis serves others in between

Call = tuple[Sequence[str], Sequence[Any]]  # a script's keys and arguments


class Client:
    """Whatever Redis or the way to it says becomes StoreUnavailable: texts can hold the URL and its password."""

    def __init__(self, url: str, timeout: float, size: int) -> None:
        """`timeout` is in seconds, for a reply; the URL's query overrides all of this."""
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=size,
            timeout=POOL_TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            socket_timeout=timeout,
            health_check_interval=HEALTH_INTERVAL,
            decode_responses=True,
            protocol=2,
            driver_info=None,  # one round trip less for each connection
            # Once more at once, for connections that Redis or a firewall has closed; the caller waits and tries again.
            retry=Retry(NoBackoff(), 1, (redis.exceptions.ConnectionError,)),
        )
        self._redis = redis.Redis.from_pool(pool)

    def execute(self, *command: Any) -> Any:
        with reaching():
            return self._redis.execute_command(*command)

    def execute_all(self, *commands: Sequence[Any]) -> list[Any]:
        """In one round trip."""
        with reaching(), self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            results: list[Any] = pipeline.execute()
        return results

    def call(self, wanted: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return self.call_all(wanted, [(keys, args)])[0]

    def call_all(self, wanted: Script, calls: Sequence[Call]) -> list[Any]:
        """One script for each keys and arguments, in few round trips."""
        results = []
        for at in range(0, len(calls), PIPELINE):
            results += self._call_some(wanted, calls[at : at + PIPELINE])
        return results

    def close(self) -> None:
        self._redis.close()

    def _call_some(self, wanted: Script, calls: Sequence[Call]) -> list[Any]:
        with reaching():
            results = self._send(wanted, calls)
            if any(isinstance(result, redis.exceptions.NoScriptError) for result in results):
                self._redis.execute_command("SCRIPT LOAD", wanted.text)  # a Redis that was restarted knows none
                results = self._send(wanted, calls)
            failure = next((result for result in results if isinstance(result, Exception)), None)
            if isinstance(failure, redis.exceptions.ReadOnlyError):
                # After a failover this may be the old primary; new connections find the new one.
                self._redis.connection_pool.disconnect(inuse_connections=False)
            if failure is not None:
                raise failure
        return results

    def _send(self, wanted: Script, calls: Sequence[Call]) -> list[Any]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for keys, args in calls:
                pipeline.execute_command("EVALSHA", wanted.sha, len(keys), *keys, *args)
            results: list[Any] = pipeline.execute(raise_on_error=False)
        return results


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    try:
        yield
    except (redis.exceptions.RedisError, OSError) as error:
        raise StoreUnavailable(detail=type(error).__name__, retry_after=RETRY_AFTER) from None
