"""What the Redis engine's scripts share: Redis does all of a script or nothing, and nobody sees it half done.

A reply can be lost after the deed, so that each may be repeated. Writes that a full Redis refuses (XADD, HSET, SADD)
come first: it refuses before anything has changed; or behind a write that frees memory, and then it takes them.
"""

import hashlib
from typing import NamedTuple

TAG = "{relay}:"
# Keys whose names only the store knows cannot be declared; the hash tag puts them on the same node.
PRELUDE = """
local tag = '{relay}:'

local function clock()
  local now = redis.call('TIME')
  return now[1] .. '.' .. string.format('%06d', now[2])
end

local function alive(worker)
  return redis.call('EXISTS', tag .. 'worker:' .. worker) == 1
end

-- Whether a worker may say of others that their leases have ended: its own has so many milliseconds left, and has been
-- unbroken for so many seconds. Redis does what it was asked before it hung only afterwards, when no lease holds.
local function judges(worker, left, held)
  local lease = tag .. 'worker:' .. worker
  local since = redis.call('GET', lease)
  return since and redis.call('PTTL', lease) >= tonumber(left) and clock() - since >= tonumber(held)
end

local function ring(worker, name, wish, length, expiry)
  local bell = tag .. 'bell:' .. worker
  redis.call('XADD', bell, 'MAXLEN', '~', length, '*', 'turn', name, 'wish', wish)
  redis.call('PEXPIRE', bell, expiry)
end

local function expire(turn, events, left)
  local key = redis.call('HGET', turn, 'key')
  if key then redis.call('PEXPIRE', key, left) end
  redis.call('PEXPIRE', turn, left)
  redis.call('PEXPIRE', events, left)
end

local function finish(turn, events, worker, id, retain)
  local now = clock()
  redis.call('HSET', turn, 'ended', now)
  redis.call('SREM', tag .. 'running:' .. worker, id)
  local busy = redis.call('HGET', turn, 'busy')
  if busy then redis.call('SREM', busy, id) end
  local undelivered = redis.call('ZADD', tag .. 'outbox', 'XX', 'CH', now, id) == 1
  if not undelivered then expire(turn, events, retain) end
end

local function interrupt(id, worker, by, reach, status, text, retain)
  local turn, events = tag .. 'turn:' .. id, tag .. 'events:' .. id
  reach = math.max(reach, tonumber(redis.call('HGET', turn, 'reach')))
  local last = string.format('%.0f', reach + 2)
  redis.call('XADD', events, last .. '-0', 'first', string.format('%.0f', reach + 1), 'events', text)
  redis.call('HSET', turn, 'last_id', last, 'reach', last, 'status', status, 'worker', by)
  finish(turn, events, worker, id, retain)
end

-- Whether a conversation has turns that are not parked: what is parked lies before what has begun since.
local function pending(conversation)
  local last = redis.call('LINDEX', tag .. 'queue:' .. conversation, -1)
  return last and redis.call('HEXISTS', tag .. 'turn:' .. last, 'reason') == 0
end

local function settle_parked(conversation)
  local first = redis.call('LINDEX', tag .. 'queue:' .. conversation, 0)
  if not first or redis.call('HEXISTS', tag .. 'turn:' .. first, 'reason') == 0 then
    redis.call('SREM', tag .. 'parked', conversation)
  end
end

local function give_up(worker, conversation)
  redis.call('SREM', tag .. 'held:' .. worker, conversation)
  if redis.call('HGET', tag .. 'holders', conversation) == worker then
    redis.call('HDEL', tag .. 'holders', conversation)
    if pending(conversation) then redis.call('SADD', tag .. 'unheld', conversation) end
  end
end

local function give_up_some(worker, limit)
  local held = tag .. 'held:' .. worker
  local some = redis.call('SRANDMEMBER', held, limit)
  for _, conversation in ipairs(some) do give_up(worker, conversation) end
  if redis.call('EXISTS', held) == 0 then redis.call('SREM', tag .. 'holding', worker) end
  return #some
end

-- Takes a turn out of the outbox. Its time of retention, in milliseconds, counts from its end.
local function take_out(id, conversation, retain, arrived)
  local turn, outbox = tag .. 'turn:' .. id, tag .. 'outbox'
  local ended = redis.call('ZSCORE', outbox, id)
  redis.call('LREM', tag .. 'queue:' .. conversation, 1, id)
  redis.call('ZREM', outbox, id)
  settle_parked(conversation)
  if arrived then
    redis.call('HDEL', turn, 'reason')
    redis.call('HSET', turn, 'arrived', arrived, 'delivered', 1)
  end
  if not pending(conversation) then redis.call('SREM', tag .. 'unheld', conversation) end
  if ended ~= 'inf' then
    expire(turn, tag .. 'events:' .. id, math.floor(retain - (clock() - ended) * 1000))
  end
end
"""


class Script(NamedTuple):
    text: str
    sha: str


def script(text: str) -> Script:
    text = PRELUDE + text
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
