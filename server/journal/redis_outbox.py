"""The outbox of the Redis engine; `redis.py` lists the keys.

What is in the outbox has no time to live: none is lost before `expire` has told of it. What waits for a holder lies in
a set of its own, into which goes what the dead held: nobody looks through what the living hold.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .outbox import MAX_REASON, WINDOW, Delivery, Parcel, Receipt, State
from .redis_client import Client
from .redis_scripts import TAG, script

GIVE_UP = 500  # conversations of the dead that one call sees to; Redis does nothing else meanwhile
EXPIRE = 100  # turns that one script forgets
EXPIRE_LIMIT = 500  # turns that one call forgets
RETRY = 100  # conversations that one script makes pending again
DELIVERY = "conversation_id", "mirrored", "delivered", "arrived", "reason"  # the fields that `delivery_of` takes

UNPARK = """
local function unpark(conversation)
  local freed = {}
  if redis.call('SREM', tag .. 'parked', conversation) == 1 then
    for _, id in ipairs(redis.call('LRANGE', tag .. 'queue:' .. conversation, 0, -1)) do
      if redis.call('HDEL', tag .. 'turn:' .. id, 'reason') == 1 then table.insert(freed, id) end
    end
  end
  return freed
end
"""

# Returns nil for what another holds; else the turns and their cursors.
CLAIM = script(
    UNPARK
    + """
local holders, held, holding, unheld, queue, outbox = unpack(KEYS)
local worker, conversation, window, left, held_for = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
if not alive(worker) then return redis.error_reply('NOLEASE') end
local holder = redis.call('HGET', holders, conversation)
if holder and holder ~= worker and (alive(holder) or not judges(worker, left, held_for)) then return false end
redis.call('HSET', holders, conversation, worker)
redis.call('SADD', held, conversation)
redis.call('SADD', holding, worker)
if holder and holder ~= worker then redis.call('SREM', tag .. 'held:' .. holder, conversation) end
redis.call('SREM', unheld, conversation)
unpark(conversation)
local parcels, at = {}, 0
repeat
  local ids = redis.call('LRANGE', queue, at, at + window - #parcels - 1)
  for _, id in ipairs(ids) do
    local turn = tag .. 'turn:' .. id
    if redis.call('EXISTS', turn) == 1 then
      table.insert(parcels, {id, redis.call('HGET', turn, 'arrived') or '0'})
      at = at + 1
    else
      -- Another hand has deleted it.
      redis.call('LREM', queue, 1, id)
      redis.call('ZREM', outbox, id)
    end
  end
until #ids == 0 or #parcels >= window
return parcels
"""
)

RELEASE = script("""
give_up(ARGV[1], ARGV[2])
""")

UNHELD = script("""
local holding, unheld = KEYS[1], KEYS[2]
local limit, left, me = ARGV[1], tonumber(ARGV[2]), ARGV[3]
if judges(me, ARGV[4], ARGV[5]) then
  for _, worker in ipairs(redis.call('SMEMBERS', holding)) do
    if not alive(worker) then left = left - give_up_some(worker, left) end
  end
end
return redis.call('SRANDMEMBER', unheld, limit)
""")

# Returns 1 for a turn whose conversation another living worker holds.
CONFIRM = script("""
local turn, outbox = KEYS[1], KEYS[2]
local id, worker, cursor, whole, retain = unpack(ARGV)
if not redis.call('ZSCORE', outbox, id) then return 0 end
local found = redis.call('HMGET', turn, 'conversation_id', 'arrived')
if not found[1] then return 0 end
local holder = redis.call('HGET', tag .. 'holders', found[1])
if holder and holder ~= worker and alive(holder) then return 1 end
local arrived = tonumber(found[2] or 0)
if whole == '1' then
  take_out(id, found[1], retain, math.max(arrived, tonumber(cursor)))
elseif tonumber(cursor) > arrived then
  redis.call('HSET', turn, 'arrived', cursor)
end
return 0
""")

PARK = script("""
local holders, held, queue, parked = unpack(KEYS)
local worker, conversation, reason = unpack(ARGV)
if not alive(worker) then return redis.error_reply('NOLEASE') end
if redis.call('HGET', holders, conversation) ~= worker then return {} end
local ids = redis.call('LRANGE', queue, 0, -1)
for _, id in ipairs(ids) do
  local turn = tag .. 'turn:' .. id
  if redis.call('EXISTS', turn) == 1 then redis.call('HSET', turn, 'reason', reason) end
end
if #ids > 0 then redis.call('SADD', parked, conversation) end
redis.call('HDEL', holders, conversation)
redis.call('SREM', held, conversation)
return ids
""")

# Returns how many conversations it has seen to, and the turns.
RETRY_PARKED = script(
    UNPARK
    + """
local parked, holders, unheld = unpack(KEYS)
local names = {ARGV[2]}
if #names == 0 then names = redis.call('SRANDMEMBER', parked, ARGV[1]) end
local freed = {}
for _, conversation in ipairs(names) do
  for _, id in ipairs(unpark(conversation)) do table.insert(freed, id) end
  if pending(conversation) and redis.call('HEXISTS', holders, conversation) == 0 then
    redis.call('SADD', unheld, conversation)
  end
end
return {#names, freed}
"""
)

UNDELIVERED = script("""
local outbox, limit = KEYS[1], tonumber(ARGV[1])
local rows = {}
for _, id in ipairs(redis.call('ZRANGE', outbox, 0, limit - 1)) do
  table.insert(rows, {id, redis.call('HMGET', tag .. 'turn:' .. id, unpack(ARGV, 2))})
end
return rows
""")

EXPIRE_UNDELIVERED = script("""
local outbox = KEYS[1]
local keep, limit = tonumber(ARGV[1]), ARGV[2]
local horizon = string.format('%.6f', clock() - keep)
local rows = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', outbox, '-inf', horizon, 'LIMIT', 0, limit)) do
  local found = redis.call('HMGET', tag .. 'turn:' .. id, unpack(ARGV, 3))
  table.insert(rows, {id, found})
  local conversation = found[1]
  if conversation then
    local caller = redis.call('HGET', tag .. 'turn:' .. id, 'caller')
    take_out(id, conversation, 0)
    redis.call('ZREM', tag .. 'conversation:' .. #caller .. ':' .. caller .. ':' .. conversation, id)
  else
    redis.call('ZREM', outbox, id)
  end
end
return rows
""")


class RedisOutbox:
    """See `Outbox` for the contract."""

    def __init__(self, client: Client, worker: str, retain: int, keep: float, judging: tuple[int, float]) -> None:
        """`retain` is in milliseconds after a turn's end, `keep` in seconds after an undelivered turn's end; `judging`
        as `redis.judging` says."""
        self._client = client
        self._worker = worker
        self._retain = retain
        self._keep = keep
        self._judging = judging

    def claim(self, conversation_ids: Collection[str]) -> Mapping[str, Sequence[Parcel]]:
        wanted = list(conversation_ids)
        calls = [(self._claim_keys(name), [self._worker, name, WINDOW, *self._judging]) for name in wanted]
        found = zip(wanted, self._client.call_all(CLAIM, calls), strict=True)
        return {name: [Parcel(one, int(cursor)) for one, cursor in rows] for name, rows in found if rows is not None}

    def release(self, conversation_ids: Collection[str]) -> None:
        keys = [f"{TAG}holders", f"{TAG}held:{self._worker}", f"{TAG}unheld"]
        self._client.call_all(RELEASE, [(keys, [self._worker, name]) for name in conversation_ids])

    def unheld(self, limit: int) -> Collection[str]:
        args = [limit, GIVE_UP, self._worker, *self._judging]
        found: list[str] = self._client.call(UNHELD, [f"{TAG}holding", f"{TAG}unheld"], args)
        return found

    def confirm(self, receipts: Sequence[Receipt]) -> Collection[str]:
        calls = [
            ([f"{TAG}turn:{receipt.turn_id}", f"{TAG}outbox"], self._confirm_args(receipt)) for receipt in receipts
        ]
        verdicts = self._client.call_all(CONFIRM, calls)
        return [receipt.turn_id for receipt, lost in zip(receipts, verdicts, strict=True) if lost]

    def park(self, conversation_id: str, reason: str) -> Collection[str]:
        held = f"{TAG}held:{self._worker}"
        keys = [f"{TAG}holders", held, f"{TAG}queue:{conversation_id}", f"{TAG}parked"]
        parked: list[str] = self._client.call(PARK, keys, [self._worker, conversation_id, reason[:MAX_REASON]])
        return parked

    def retry(self, conversation_id: str | None = None) -> Collection[str]:
        keys = [f"{TAG}parked", f"{TAG}holders", f"{TAG}unheld"]
        freed: list[str] = []
        while True:
            seen, some = self._client.call(
                RETRY_PARKED, keys, [RETRY] if conversation_id is None else [RETRY, conversation_id]
            )
            freed += some
            if not seen or conversation_id is not None:
                return freed

    def find(self, turn_id: str) -> Delivery | None:
        return delivery_of(turn_id, self._client.execute("HMGET", f"{TAG}turn:{turn_id}", *DELIVERY))

    def undelivered(self, limit: int) -> list[Delivery]:
        rows = self._client.call(UNDELIVERED, [f"{TAG}outbox"], [limit, *DELIVERY])
        found = [delivery_of(*row) for row in rows]
        return [delivery for delivery in found if delivery is not None]

    def expire(self) -> Collection[Delivery]:
        expired: list[Delivery] = []
        for _ in range(EXPIRE_LIMIT // EXPIRE):
            rows = self._client.call(
                EXPIRE_UNDELIVERED, [f"{TAG}outbox", f"{TAG}parked"], [self._keep, EXPIRE, *DELIVERY]
            )
            found = [delivery_of(*row) for row in rows]
            expired += [delivery for delivery in found if delivery is not None]
            if len(rows) < EXPIRE:
                break
        return expired

    def _claim_keys(self, conversation_id: str) -> list[str]:
        held = f"{TAG}held:{self._worker}"
        queue = f"{TAG}queue:{conversation_id}"
        return [f"{TAG}holders", held, f"{TAG}holding", f"{TAG}unheld", queue, f"{TAG}outbox"]

    def _confirm_args(self, receipt: Receipt) -> list[Any]:
        return [receipt.turn_id, self._worker, receipt.cursor, int(receipt.whole), self._retain]


def delivery_of(turn_id: str, fields: Sequence[str | None]) -> Delivery | None:
    conversation, mirrored, delivered, arrived, reason = fields
    if conversation is None or mirrored is None:
        return None
    state: State = "delivered" if delivered else "pending" if reason is None else "parked"
    return Delivery(turn_id, conversation, state, int(arrived or 0), reason)
