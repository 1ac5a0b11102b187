"""The journal in Redis (6.2 or later), for more than one machine.

What is kept where; one hash tag for all, so that a script may touch several keys on a Redis Cluster too:

    {relay}:turn:ID            hash: the entry; `worker`, who may write; `key`, the idempotency key's name here
    {relay}:events:ID          stream: one entry a batch with the id LAST-0, so that `(N-0` begins behind cursor N
    {relay}:conversation:CID   sorted set: the conversation's turns by their beginning
    {relay}:key:CALLER:KEY     the turn that began with this idempotency key
    {relay}:worker:W           there while the worker's lease holds
    {relay}:workers            set: workers that may have turns that run
    {relay}:running:W          set: these turns
    {relay}:bell:W             stream: wishes for the worker's turns, and wake-ups

Whatever changes more than one key is a script: Redis does all of it or nothing, and nobody sees it half done. A reply
can be lost after the deed, so that each may be repeated. It is as durable as that Redis is (`appendfsync`), which must
not evict (`maxmemory-policy noeviction`): a turn that is thrown out counts as not known any more.
"""

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..errors import StoreUnavailable
from ..sse import Event
from . import AHEAD, LEASE, Batch, Entry, News, Wish, closing
from .codec import pack, unpack

TAG = "{relay}:"
MAX_CONNECTIONS = 16  # of a worker, beside the one that waits for news; who finds none free waits
POOL_TIMEOUT = 10.0  # seconds to wait for a free connection
TIMEOUT = 1.0  # seconds for a connection or a reply; a worker whose Redis takes longer is about to lose its lease
RETRY_AFTER = 2  # seconds after which callers may come back
HEALTH_INTERVAL = 15  # seconds of silence after which a connection is tried with a PING first: firewalls forget
NEWS_BLOCK = 5.0  # seconds that one XREAD waits; the socket's timeout lies TIMEOUT above it
NEWS_BATCHES = 512  # that one `news` brings, for all turns that it follows; at least one each
READ_BATCHES = 64  # that one XRANGE brings; a batch is a quarter of a second of one answer
APPEND_BATCHES = 100  # in one pipeline: some milliseconds of packing, after which other greenlets have their turn
ORPHANS = 500  # turns that one call ends; Redis does nothing else meanwhile
BELL_LENGTH = 10_000  # wishes that wait for one worker; beyond it the oldest go
BELL_EXPIRY = 600_000  # milliseconds; who has not looked for so long is gone
# Milliseconds for which a conversation knows its turns beyond their retention, from the last beginning on: no turn
# takes so long. Turns that are gone go from it when it is read.
CONVERSATION_SPARE = 86_400_000


class Script(NamedTuple):
    text: str
    sha: str


def script(text: str) -> Script:
    text = FINISH + text
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


# Writes that a full Redis refuses (XADD, HSET) come first in each script: it refuses before anything has changed.
# Keys whose names only the store knows cannot be declared; the hash tag puts them on the same node.
FINISH = """
local tag = '{relay}:'

local function finish(turn, events, worker, id, retain)
  local now = redis.call('TIME')
  redis.call('HSET', turn, 'ended', now[1] .. '.' .. string.format('%06d', now[2]))
  redis.call('SREM', tag .. 'running:' .. worker, id)
  local key = redis.call('HGET', turn, 'key')
  if key then redis.call('PEXPIRE', key, retain) end
  redis.call('PEXPIRE', turn, retain)
  redis.call('PEXPIRE', events, retain)
end

local function interrupt(id, worker, by, reach, status, text, retain)
  local turn, events = tag .. 'turn:' .. id, tag .. 'events:' .. id
  reach = math.max(reach, tonumber(redis.call('HGET', turn, 'reach')))
  local last = string.format('%.0f', reach + 2)
  redis.call('XADD', events, last .. '-0', 'first', string.format('%.0f', reach + 1), 'events', text)
  redis.call('HSET', turn, 'last_id', last, 'reach', last, 'status', status, 'worker', by)
  finish(turn, events, worker, id, retain)
end
"""

BEGIN = script("""
local turn, running, workers, key, conversation = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, worker, began, expiry = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local earlier = redis.call('GET', key)
if earlier then
  local found = redis.call('HGETALL', tag .. 'turn:' .. earlier)
  if #found > 0 then return {earlier, found} end
end
if redis.call('EXISTS', turn) == 0 then
  redis.call('HSET', turn, unpack(ARGV, 5))
  redis.call('SADD', workers, worker)
  redis.call('SADD', running, id)
  if key ~= tag .. 'none' then redis.call('SET', key, id) end
  if conversation ~= tag .. 'none' then
    redis.call('ZADD', conversation, began, id)
    redis.call('PEXPIRE', conversation, expiry)
  end
end
return {id, redis.call('HGETALL', turn)}
""")

# A begin whose reply was lost: nobody will write that turn. It ends, for those whom its key has led to it meanwhile,
# and frees the key. What has events was begun by a repeat, and stays.
UNDO = script("""
local turn, key, conversation = KEYS[1], KEYS[2], KEYS[3]
local id, worker, status, text, retain = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local found = redis.call('HMGET', turn, 'worker', 'last_id')
if found[1] == worker and found[2] == '0' then
  interrupt(id, worker, '', 0, status, text, retain)
  if redis.call('GET', key) == id then redis.call('DEL', key) end
  redis.call('ZREM', conversation, id)
end
""")

# Returns 1 for a turn that another worker has ended.
APPEND = script("""
local turn, events = KEYS[1], KEYS[2]
local id, worker, first, last, reach, status, text, retain = unpack(ARGV)
local found = redis.call('HMGET', turn, 'worker', 'status', 'last_id')
if not found[1] then return 0 end
if found[1] ~= worker then return 1 end
local kept = tonumber(found[3])
if found[2] ~= 'running' or tonumber(last) <= kept then return 0 end
if tonumber(first) > kept + 1 then
  -- The store lost what it had confirmed (a failover): no follower may be led over the hole as if there were none.
  interrupt(id, worker, '', tonumber(ARGV[9]), ARGV[10], ARGV[11], retain)
  return 1
end
redis.call('XADD', events, last .. '-0', 'first', first, 'events', text)
redis.call('HSET', turn, 'last_id', last, 'reach', reach, 'status', status)
if status ~= 'running' then finish(turn, events, worker, id, retain) end
return 0
""")

TURNS_OF = script("""
local conversation, limit = KEYS[1], tonumber(ARGV[1])
local entries, at = {}, 0
repeat
  local ids = redis.call('ZREVRANGE', conversation, at, at + limit - #entries - 1)
  for _, id in ipairs(ids) do
    local found = redis.call('HGETALL', tag .. 'turn:' .. id)
    if #found > 0 then
      table.insert(entries, {id, found})
      at = at + 1
    else
      redis.call('ZREM', conversation, id)
    end
  end
until #ids == 0 or #entries >= limit
return entries
""")

ASK = script("""
local wish, length, expiry = ARGV[1], ARGV[2], ARGV[3]
local running = {}
for n, turn in ipairs(KEYS) do
  local id = ARGV[3 + n]
  local found = redis.call('HMGET', turn, 'worker', 'status')
  if found[2] == 'running' then
    local bell = tag .. 'bell:' .. found[1]
    redis.call('XADD', bell, 'MAXLEN', '~', length, '*', 'turn', id, 'wish', wish)
    redis.call('PEXPIRE', bell, expiry)
    table.insert(running, id)
  end
end
return running
""")

INTERRUPT = script("""
local workers = KEYS[1]
local me, status, text, retain, limit = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local ended = {}
for _, worker in ipairs(redis.call('SMEMBERS', workers)) do
  if worker ~= me and redis.call('EXISTS', tag .. 'worker:' .. worker) == 0 then
    local running = tag .. 'running:' .. worker
    for _, id in ipairs(redis.call('SRANDMEMBER', running, limit - #ended)) do
      local found = redis.call('HMGET', tag .. 'turn:' .. id, 'worker', 'status')
      if found[1] == worker and found[2] == 'running' then
        interrupt(id, worker, me, 0, status, text, retain)
        table.insert(ended, id)
      else
        redis.call('SREM', running, id)
      end
    end
    if redis.call('EXISTS', running) == 0 then redis.call('SREM', workers, worker) end
  end
end
return ended
""")

CLOSE = script("""
local lease, bell, running, workers = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
redis.call('DEL', lease, bell)
if redis.call('EXISTS', running) == 0 then redis.call('SREM', workers, ARGV[1]) end
""")


class RedisJournal:
    """See `Journal` for the contract."""

    shared_fate = False  # one worker's way there may be cut

    def __init__(self, url: str, worker: str, retain: float) -> None:
        """`worker` is this worker's name, that no other ever had; `retain` is in seconds after a turn's end."""
        self._worker = worker
        self._retain = max(1, int(retain * 1000))
        self._redis = connect(url, TIMEOUT, MAX_CONNECTIONS)
        self._waiting = connect(url, NEWS_BLOCK + TIMEOUT, 1)
        self._bell = f"{TAG}bell:{worker}"
        self._heard = "0-0"  # the last of the bell's entries that was read
        self._doubtful: dict[str, tuple[str, str]] = {}  # turns whose `begin` may have failed; see UNDO

    def begin(self, entry: Entry, key: str | None) -> Entry:
        self._undo()
        place, conversation = place_of(entry.caller, key), conversation_of(entry.conversation_id)
        keys = [f"{TAG}turn:{entry.id}", self._running, f"{TAG}workers", place, conversation]
        fields = fields_of(entry) | {"worker": self._worker} | ({} if key is None else {"key": place})
        expiry = self._retain + CONVERSATION_SPARE
        args = [entry.id, self._worker, entry.began, expiry, *(part for field in fields.items() for part in field)]
        try:
            found = self._call(BEGIN, keys, args)
        except StoreUnavailable:
            self._doubtful[entry.id] = place, conversation
            raise
        return entry_of(*found)

    def append(self, batches: Sequence[Batch]) -> Collection[str]:
        lost = []
        for at in range(0, len(batches), APPEND_BATCHES):
            part = batches[at : at + APPEND_BATCHES]
            calls = [(self._append_keys(batch), self._append_args(batch)) for batch in part]
            verdicts = self._call_all(APPEND, calls)
            lost += [batch.turn_id for batch, verdict in zip(part, verdicts, strict=True) if verdict]
        return lost

    def read(self, turn_id: str, after: int, limit: int) -> list[Event]:
        events: list[Event] = []
        while len(events) < limit:
            begin = f"({events[-1].id if events else after}-0"
            with reaching():
                entries = self._redis.execute_command(
                    "XRANGE", f"{TAG}events:{turn_id}", begin, "+", "COUNT", READ_BATCHES
                )
            events += joined(entries, events[-1].id if events else after)
            if len(entries) < READ_BATCHES:
                break
        return events[:limit]

    def find(self, turn_id: str) -> Entry | None:
        with reaching():
            found = self._redis.execute_command("HGETALL", f"{TAG}turn:{turn_id}")
        return entry_of(turn_id, found) if found else None

    def turns_of(self, conversation_id: str, limit: int) -> list[Entry]:
        found = self._call(TURNS_OF, [conversation_of(conversation_id)], [limit])
        return [entry_of(*entry) for entry in reversed(found)]

    def news(self, cursors: Mapping[str, int], timeout: float) -> News:
        turns = {f"{TAG}events:{turn_id}": turn_id for turn_id in cursors}
        count = max(1, NEWS_BATCHES // max(1, len(cursors)))
        # BLOCK 0 would wait for ever.
        block = ["BLOCK", max(1, int(min(timeout, NEWS_BLOCK) * 1000))] if timeout > 0 else []
        behind = [f"{cursor}-0" for cursor in cursors.values()]
        with reaching():
            found = self._waiting.execute_command(
                "XREAD", "COUNT", count, *block, "STREAMS", self._bell, *turns, self._heard, *behind
            )
        events: dict[str, list[Event]] = {}
        wishes: dict[tuple[str, Wish], None] = {}
        for stream, entries in found or ():
            if stream == self._bell:
                self._heard = entries[-1][0]
                wishes = {(bell["turn"], bell["wish"]): None for _, bell in entries if "wish" in bell}
            else:
                events[turns[stream]] = joined(entries, cursors[turns[stream]])
        return News(events, list(wishes))

    def wake(self) -> None:
        with reaching(), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.execute_command("XADD", self._bell, "MAXLEN", "~", BELL_LENGTH, "*", "wake", "")
            pipeline.execute_command("PEXPIRE", self._bell, BELL_EXPIRY)
            pipeline.execute()

    def ask(self, turn_ids: Collection[str], wish: Wish) -> Collection[str]:
        wanted = list(turn_ids)
        if not wanted:
            return []
        keys = [f"{TAG}turn:{turn_id}" for turn_id in wanted]
        told: list[str] = self._call(ASK, keys, [wish, BELL_LENGTH, BELL_EXPIRY, *wanted])
        return told

    def renew(self) -> bool:
        lease = ["SET", f"{TAG}worker:{self._worker}", "1", "PX", int(LEASE * 1000)]
        with reaching():
            unbroken = self._redis.execute_command(*lease, "XX")
            if not unbroken:
                self._redis.execute_command(*lease)
        self._undo()
        return bool(unbroken)

    def interrupt_orphans(self) -> Collection[str]:
        args = [self._worker, *CLOSING, self._retain, ORPHANS]
        ended: list[str] = self._call(INTERRUPT, [f"{TAG}workers"], args)
        return ended

    def purge(self) -> int:
        return 0  # Redis lets go of what has ended by itself

    def close(self) -> None:
        keys = [f"{TAG}worker:{self._worker}", self._bell, self._running, f"{TAG}workers"]
        try:
            self._call(CLOSE, keys, [self._worker])
        finally:
            self._redis.close()
            self._waiting.close()

    def _undo(self) -> None:
        for turn_id, (place, conversation) in list(self._doubtful.items()):
            args = [turn_id, self._worker, *CLOSING, self._retain]
            self._call(UNDO, [f"{TAG}turn:{turn_id}", place, conversation], args)
            self._doubtful.pop(turn_id, None)

    @property
    def _running(self) -> str:
        return f"{TAG}running:{self._worker}"

    def _append_keys(self, batch: Batch) -> list[str]:
        return [f"{TAG}turn:{batch.turn_id}", f"{TAG}events:{batch.turn_id}", self._running]

    def _append_args(self, batch: Batch) -> list[Any]:
        first, last, reach, text = batch.events[0].id, batch.events[-1].id, batch.reach, pack(batch.events)
        mine = [batch.turn_id, self._worker, first, last, reach, batch.status, text, self._retain]
        return [*mine, last + AHEAD, *CLOSING]

    def _call(self, wanted: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        return self._call_all(wanted, [(keys, args)])[0]

    def _call_all(self, wanted: Script, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        """One script for each keys and arguments, in one round trip."""
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

    def _send(self, wanted: Script, calls: Sequence[tuple[Sequence[str], Sequence[Any]]]) -> list[Any]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for keys, args in calls:
                pipeline.execute_command("EVALSHA", wanted.sha, len(keys), *keys, *args)
            results: list[Any] = pipeline.execute(raise_on_error=False)
        return results


def connect(url: str, timeout: float, size: int) -> redis.Redis:
    """A client with a pool of its own; `timeout` is in seconds, for a reply. The URL's query overrides all of this."""
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
    return redis.Redis.from_pool(pool)


@contextlib.contextmanager
def reaching() -> Iterator[None]:
    """Whatever Redis or the way to it says becomes StoreUnavailable: texts can hold the URL and its password."""
    try:
        yield
    except (redis.exceptions.RedisError, OSError) as error:
        raise StoreUnavailable(detail=type(error).__name__, retry_after=RETRY_AFTER) from None


def place_of(caller: str, key: str | None) -> str:
    """Where the turn of an idempotency key stands; the length keeps callers apart whatever they are called."""
    return f"{TAG}none" if key is None else f"{TAG}key:{len(caller)}:{caller}:{key}"


def conversation_of(conversation_id: str | None) -> str:
    return f"{TAG}none" if conversation_id is None else f"{TAG}conversation:{conversation_id}"


def fields_of(entry: Entry) -> dict[str, Any]:
    fields = entry._asdict()
    return {name: value for name, value in fields.items() if name != "id" and value is not None}


def entry_of(turn_id: str, found: Mapping[str, str] | Sequence[str]) -> Entry:
    """The entry from its hash; scripts return it as a list of names and values in turn."""
    fields = found if isinstance(found, Mapping) else dict(zip(found[::2], found[1::2], strict=True))
    return Entry(
        turn_id,
        fields.get("conversation_id"),
        fields["caller"],
        float(fields["began"]),
        fields["fingerprint"],
        fields["status"],
        int(fields["last_id"]),
        int(fields["reach"]),
        float(fields["ended"]) if "ended" in fields else None,
    )


def joined(entries: Sequence[tuple[str, Mapping[str, str]]], after: int) -> list[Event]:
    """The events of a stream's entries with ids above `after`, each once."""
    events: list[Event] = []
    for _, batch in entries:
        events += unpack(int(batch["first"]), batch["events"], events[-1].id if events else after)
    return events


# What an interrupted turn ends with, as scripts take it; ids are not in a packed batch.
CLOSING = closing(0)[-1].status, pack(closing(0))
