"""The journal in Redis (6.2 or later), for more than one machine.

What is kept where; one hash tag for all, so that a script may touch several keys on a Redis Cluster too:

    {relay}:turn:ID            hash: the entry; `worker`, who may write; `key`, the idempotency key's name here
    {relay}:events:ID          stream: one entry a batch with the id LAST-0, so that `(N-0` begins behind cursor N
    {relay}:conversation:CALLER:CID   sorted set: a caller's turns of the conversation by their beginning
    {relay}:key:CALLER:KEY     the turn that began with this idempotency key
    {relay}:worker:W           there while the worker's lease holds: since when, unbroken
    {relay}:workers            set: workers that may have turns that run
    {relay}:running:W          set: these turns
    {relay}:bell:W             stream: wishes for the worker's turns and conversations, and wake-ups
    {relay}:outbox             sorted set: undelivered turns by their end; inf for those that run
    {relay}:queue:CID          list: the conversation's undelivered turns in the order in which they began
    {relay}:holders            hash: by conversation, the worker that holds it
    {relay}:held:W             set: the conversations that the worker holds
    {relay}:holding            set: workers that may hold conversations
    {relay}:unheld             set: conversations with pending turns that nobody holds
    {relay}:parked             set: conversations with parked turns
    {relay}:beginnings:CALLER  list: when the caller began its last turns, where a rate limits it
    {relay}:busy:CALLER        set: the caller's turns that run, where their number is limited; its name is in the turn
    {relay}:secret             the relay's own secret

A mirrored turn's hash has `arrived`, the transcript's cursor; `reason`, where it is parked; `delivered` in the end.

It is as durable as that Redis is (`appendfsync`), which must not evict (`maxmemory-policy noeviction`): a turn that is
thrown out counts as not known any more.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..access.allowance import UNLIMITED, Allowance
from ..errors import StoreUnavailable
from ..sse import Event
from . import AHEAD, FRESH, LEASE, Batch, Begun, Entry, News, Wish, closing
from .codec import pack, unpack
from .outbox import Outbox
from .redis_allowance import ALLOWANCE_PRELUDE, allowance_args, refusal_of, standing_of
from .redis_client import PIPELINE, TIMEOUT, Client
from .redis_outbox import RedisOutbox
from .redis_scripts import TAG, script

MAX_CONNECTIONS = 16  # of a worker, beside the one that waits for news; who finds none free waits
NEWS_BLOCK = 5.0  # seconds that one XREAD waits; the socket's timeout lies TIMEOUT above it
NEWS_BATCHES = 512  # that one `news` brings, for all turns that it follows; at least one each
READ_BATCHES = 64  # that one XRANGE brings; a batch is a quarter of a second of one answer
ORPHANS = 500  # turns that one call ends; Redis does nothing else meanwhile
ERASE_LIMIT = 200  # turns that one script erases
GIVE_UP = 500  # conversations that one script gives up
PROMPT = TIMEOUT / 4  # seconds for a reply that tells what time it is there: so much sooner is a beginning too late
BELL_LENGTH = 10_000  # wishes that wait for one worker; beyond it the oldest go
SECRET = f"{TAG}secret"
BELL_EXPIRY = 600_000  # milliseconds; who has not looked for so long is gone
# Milliseconds for which a conversation knows its turns beyond their retention, from the last beginning on: no turn
# takes so long. Turns that are gone go from it when it is read.
CONVERSATION_SPARE = 86_400_000

# Returns the turn and what its caller has left; without the turn how long its caller has to wait. Not once the worker
# has given up waiting for it: nobody would write that turn, to which a repeat on another worker would be led.
BEGIN = script(
    ALLOWANCE_PRELUDE
    + """
local turn, running, workers, key, conversation, queue, beginnings, busy = unpack(KEYS)
local id, worker, began, expiry, name, length, bell_expiry, turns, seconds, at_once, by = unpack(ARGV, 1, 11)
turns, at_once = tonumber(turns), tonumber(at_once)
if tonumber(clock()) >= tonumber(by) then return redis.error_reply('LATE') end
local earlier = redis.call('GET', key)
if earlier then
  local found = redis.call('HGETALL', tag .. 'turn:' .. earlier)
  if #found > 0 then return {earlier, found} end
end
local left, reset
if redis.call('EXISTS', turn) == 0 then
  local now = turns > 0 and clock()
  if turns > 0 then
    local seconds_left = wait(beginnings, turns, seconds, now)
    if seconds_left > 0 then return {false, string.format('%.6f', seconds_left)} end
  end
  if at_once > 0 and not has_room(busy, at_once) then return {false, false} end
  redis.call('HSET', turn, unpack(ARGV, 12))
  redis.call('SADD', workers, worker)
  redis.call('SADD', running, id)
  if turns > 0 then left, reset = spend(beginnings, turns, seconds, now) end
  if at_once > 0 then
    redis.call('HSET', turn, 'busy', busy)
    redis.call('SADD', busy, id)
  end
  if key ~= tag .. 'none' then redis.call('SET', key, id) end
  if conversation ~= tag .. 'none' then
    redis.call('ZADD', conversation, began, id)
    redis.call('PEXPIRE', conversation, expiry)
  end
  if queue ~= tag .. 'none' then
    redis.call('RPUSH', queue, id)
    redis.call('ZADD', tag .. 'outbox', 'inf', id)
    local holder = redis.call('HGET', tag .. 'holders', name)
    if not holder then
      redis.call('SADD', tag .. 'unheld', name)
    elseif holder ~= worker and alive(holder) then
      ring(holder, name, 'deliver', length, bell_expiry)
    end
  end
end
local found = redis.call('HGETALL', turn)
if left then return {id, found, left, string.format('%.6f', reset)} end
return {id, found}
"""
)

# A begin whose reply was lost: nobody will write that turn. It ends, for those whom its key has led to it meanwhile,
# and frees the key. What has events was begun by a repeat, and stays.
UNDO = script("""
local turn, key, conversation = KEYS[1], KEYS[2], KEYS[3]
local id, worker, status, text, retain = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local found = redis.call('HMGET', turn, 'worker', 'last_id', 'conversation_id')
if found[1] == worker and found[2] == '0' then
  interrupt(id, worker, '', 0, status, text, retain)
  if redis.call('ZSCORE', tag .. 'outbox', id) then
    take_out(id, found[3], retain)
    redis.call('HDEL', turn, 'mirrored')
  end
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
    local turn = tag .. 'turn:' .. id
    local found = redis.call('HGETALL', turn)
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

# Returns how many turns it has erased, and those that run; to be repeated until it erases no more than some.
ERASE = script("""
local conversation, queue, outbox = KEYS[1], KEYS[2], KEYS[3]
local name, caller, limit, length, expiry = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local erased, running, was_undelivered = 0, {}, false
local function see(id)
  local turn = tag .. 'turn:' .. id
  local found = redis.call('HMGET', turn, 'caller', 'status', 'key')
  if not found[1] then redis.call('ZREM', conversation, id) end
  if found[1] ~= caller then return end
  if found[2] == 'running' then
    running[id] = true
  elseif erased < limit then
    if redis.call('ZREM', outbox, id) == 1 then
      redis.call('LREM', queue, 1, id)
      was_undelivered = true
    end
    if found[3] and redis.call('GET', found[3]) == id then redis.call('DEL', found[3]) end
    redis.call('DEL', turn, tag .. 'events:' .. id)
    redis.call('ZREM', conversation, id)
    erased = erased + 1
  end
end
for _, id in ipairs(redis.call('ZRANGE', conversation, 0, -1)) do see(id) end
-- What could not be delivered for very long outlives the list of the conversation.
for _, id in ipairs(redis.call('LRANGE', queue, 0, -1)) do see(id) end
if was_undelivered then
  if not pending(name) then redis.call('SREM', tag .. 'unheld', name) end
  settle_parked(name)
  local holder = redis.call('HGET', tag .. 'holders', name)
  if holder and alive(holder) then ring(holder, name, 'deliver', length, expiry) end
end
local ids = {}
for id in pairs(running) do table.insert(ids, id) end
return {erased, ids}
""")

ASK = script("""
local wish, length, expiry = ARGV[1], ARGV[2], ARGV[3]
local running = {}
for n, turn in ipairs(KEYS) do
  local id = ARGV[3 + n]
  local found = redis.call('HMGET', turn, 'worker', 'status')
  if found[2] == 'running' then
    ring(found[1], id, wish, length, expiry)
    table.insert(running, id)
  end
end
return running
""")

TAKE_LEASE = script("""
redis.call('SET', KEYS[1], clock(), 'PX', ARGV[1])
""")

INTERRUPT = script("""
local workers = KEYS[1]
local me, status, text, retain, limit = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local ended = {}
if not judges(me, ARGV[6], ARGV[7]) then return ended end
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

# Returns how many conversations it has given up; to be repeated until there are none.
CLOSE = script("""
local lease, bell, running, workers = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
redis.call('DEL', lease, bell)
if redis.call('EXISTS', running) == 0 then redis.call('SREM', workers, ARGV[1]) end
return give_up_some(ARGV[1], ARGV[2])
""")


class RedisJournal:
    """See `Journal` for the contract."""

    shared_fate = False  # one worker's way there may be cut

    def __init__(self, url: str, worker: str, retain: float, retain_undelivered: float) -> None:
        """`worker` is this worker's name, that no other ever had; both times are in seconds after a turn's end."""
        keep = max(retain, retain_undelivered)
        self._worker = worker
        self._retain = max(1, int(retain * 1000))
        self._keep = max(1, int(keep * 1000))
        self._client = Client(url, TIMEOUT, MAX_CONNECTIONS)
        self._waiting = Client(url, NEWS_BLOCK + TIMEOUT, 1)
        self.outbox: Outbox = RedisOutbox(self._client, worker, self._retain, keep, judging())
        self._bell = f"{TAG}bell:{worker}"
        self._heard = "0-0"  # the last of the bell's entries that was read
        self._doubtful: dict[str, tuple[str, str]] = {}  # turns whose `begin` may have failed; see UNDO
        self._was_broken = False  # the lease had ended, of which `renew` has not told yet
        self._ahead = math.inf  # seconds by which Redis' clock is ahead of the monotonic one, at least

    def begin(self, entry: Entry, key: str | None, allowance: Allowance = UNLIMITED) -> Begun:
        self._undo()
        place, conversation = place_of(entry.caller, key), conversation_of(entry.caller, entry.conversation_id)
        name = entry.conversation_id
        queue = f"{TAG}queue:{name}" if entry.mirrored and name is not None else f"{TAG}none"
        keys = [f"{TAG}turn:{entry.id}", self._running, f"{TAG}workers", place, conversation, queue]
        keys += [f"{TAG}beginnings:{entry.caller}", f"{TAG}busy:{entry.caller}"]
        fields = fields_of(entry) | {"worker": self._worker} | ({} if key is None else {"key": place})
        mine = [entry.id, self._worker, entry.began, self._keep + CONVERSATION_SPARE]
        by = time.monotonic() + self._ahead + TIMEOUT
        args = [*mine, name or "", BELL_LENGTH, BELL_EXPIRY, *allowance_args(allowance), by]
        args += [part for field in fields.items() for part in field]
        try:
            turn_id, found, *standing = self._client.call(BEGIN, keys, args)
        except StoreUnavailable:
            self._doubtful[entry.id] = place, conversation
            raise
        if turn_id is None:
            raise refusal_of(allowance, found)
        return Begun(entry_of(turn_id, found), standing_of(allowance.rate, standing))

    def append(self, batches: Sequence[Batch]) -> Collection[str]:
        lost = []
        for at in range(0, len(batches), PIPELINE):  # some milliseconds of packing, then others have their turn
            part = batches[at : at + PIPELINE]
            calls = [(self._append_keys(batch), self._append_args(batch)) for batch in part]
            verdicts = self._client.call_all(APPEND, calls)
            lost += [batch.turn_id for batch, verdict in zip(part, verdicts, strict=True) if verdict]
        return lost

    def read(self, turn_id: str, after: int, limit: int) -> list[Event]:
        events: list[Event] = []
        while len(events) < limit:
            begin = f"({events[-1].id if events else after}-0"
            entries = self._client.execute("XRANGE", f"{TAG}events:{turn_id}", begin, "+", "COUNT", READ_BATCHES)
            events += joined(entries, events[-1].id if events else after)
            if len(entries) < READ_BATCHES:
                break
        return events[:limit]

    def find(self, turn_id: str) -> Entry | None:
        found = self._client.execute("HGETALL", f"{TAG}turn:{turn_id}")
        return entry_of(turn_id, found) if found else None

    def turns_of(self, conversation_id: str, caller: str, limit: int) -> list[Entry]:
        found = self._client.call(TURNS_OF, [conversation_of(caller, conversation_id)], [limit])
        return [entry_of(*entry) for entry in reversed(found)]

    def news(self, cursors: Mapping[str, int], timeout: float) -> News:
        turns = {f"{TAG}events:{turn_id}": turn_id for turn_id in cursors}
        count = max(1, NEWS_BATCHES // max(1, len(cursors)))
        # BLOCK 0 would wait for ever.
        block = ["BLOCK", max(1, int(min(timeout, NEWS_BLOCK) * 1000))] if timeout > 0 else []
        behind = [f"{cursor}-0" for cursor in cursors.values()]
        found = self._waiting.execute(
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
        self._client.execute_all(
            ["XADD", self._bell, "MAXLEN", "~", BELL_LENGTH, "*", "wake", ""], ["PEXPIRE", self._bell, BELL_EXPIRY]
        )

    def ask(self, turn_ids: Collection[str], wish: Wish) -> Collection[str]:
        wanted = list(turn_ids)
        if not wanted:
            return []
        keys = [f"{TAG}turn:{turn_id}" for turn_id in wanted]
        told: list[str] = self._client.call(ASK, keys, [wish, BELL_LENGTH, BELL_EXPIRY, *wanted])
        return told

    def renew(self) -> bool:
        lease, length = f"{TAG}worker:{self._worker}", int(LEASE * 1000)
        asked = time.monotonic()
        unbroken, (seconds, micros) = self._client.execute_all(["PEXPIRE", lease, length], ["TIME"])
        if (now := time.monotonic()) - asked < PROMPT:
            self._ahead = seconds + micros / 1_000_000 - now
        if not unbroken:
            self._was_broken = True
            self._client.call(TAKE_LEASE, [lease], [length])
        self._undo()
        was_broken, self._was_broken = self._was_broken, False
        return not was_broken

    def interrupt_orphans(self) -> Collection[str]:
        args = [self._worker, *CLOSING, self._retain, ORPHANS, *judging()]
        ended: list[str] = self._client.call(INTERRUPT, [f"{TAG}workers"], args)
        return ended

    def purge(self) -> int:
        return 0  # Redis lets go of what has ended by itself

    def erase(self, conversation_id: str, caller: str) -> Collection[str]:
        keys = [conversation_of(caller, conversation_id), f"{TAG}queue:{conversation_id}", f"{TAG}outbox"]
        while True:
            erased, running = self._client.call(
                ERASE, keys, [conversation_id, caller, ERASE_LIMIT, BELL_LENGTH, BELL_EXPIRY]
            )
            if erased < ERASE_LIMIT:
                return list(running)

    def secret(self, proposed: bytes) -> bytes:
        # A full Redis refuses to SET: it is asked only where there is none.
        while (kept := self._client.execute("GET", SECRET)) is None:
            self._client.execute("SET", SECRET, proposed, "NX")
        return str(kept).encode()

    def close(self) -> None:
        keys = [f"{TAG}worker:{self._worker}", self._bell, self._running, f"{TAG}workers"]
        try:
            while self._client.call(CLOSE, keys, [self._worker, GIVE_UP]):
                pass
        finally:
            self._client.close()
            self._waiting.close()

    def _undo(self) -> None:
        for turn_id, (place, conversation) in list(self._doubtful.items()):
            args = [turn_id, self._worker, *CLOSING, self._retain]
            self._client.call(UNDO, [f"{TAG}turn:{turn_id}", place, conversation], args)
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


def judging() -> tuple[int, float]:
    """What a worker that judges others has left of its own lease, in milliseconds, and how long it has held it, in
    seconds, at least."""
    return int((LEASE - FRESH) * 1000), LEASE


def place_of(caller: str, key: str | None) -> str:
    """Where the turn of an idempotency key stands; the length keeps callers apart whatever they are called."""
    return f"{TAG}none" if key is None else f"{TAG}key:{len(caller)}:{caller}:{key}"


def conversation_of(caller: str, conversation_id: str | None) -> str:
    """Where the turns stand that a caller began in a conversation; the length, in bytes, keeps callers apart."""
    if conversation_id is None:
        return f"{TAG}none"
    return f"{TAG}conversation:{len(caller.encode())}:{caller}:{conversation_id}"


def fields_of(entry: Entry) -> dict[str, Any]:
    fields = entry._asdict() | {"mirrored": 1 if entry.mirrored else None}
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
        "mirrored" in fields,
    )


def joined(entries: Sequence[tuple[str, Mapping[str, str]]], after: int) -> list[Event]:
    """The events of a stream's entries with ids above `after`, each once."""
    events: list[Event] = []
    for _, batch in entries:
        events += unpack(int(batch["first"]), batch["events"], events[-1].id if events else after)
    return events


# What an interrupted turn ends with, as scripts take it; ids are not in a packed batch.
CLOSING = closing(0)[-1].status, pack(closing(0))
