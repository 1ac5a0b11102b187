"""The callers' allowances in the Redis engine: Lua that goes before the script which begins a turn.

A caller's list of beginnings is as long as its rate allows at most; the one that is N back is found at once.
"""

from collections.abc import Sequence

from ..access.allowance import AT_ONCE_RETRY, Allowance, Rate, Standing
from ..errors import TooManyRequests, TooManyTurnsOfCaller

Refusal = TooManyRequests | TooManyTurnsOfCaller

ALLOWANCE_PRELUDE = """
-- Seconds until the rate lets one more through.
local function wait(beginnings, turns, seconds, now)
  local newest = tonumber(redis.call('LINDEX', beginnings, -1) or 0)
  if newest > tonumber(now) then
    -- Of a clock that was set back: they count from now on, which is later than they were.
    for n, at in ipairs(redis.call('LRANGE', beginnings, 0, -1)) do
      if tonumber(at) > tonumber(now) then redis.call('LSET', beginnings, n - 1, now) end
    end
  end
  local oldest = redis.call('LINDEX', beginnings, -turns)
  return oldest and math.max(0, oldest + seconds - now) or 0
end

-- Returns how many are left, and the seconds until there is one more.
local function spend(beginnings, turns, seconds, now)
  redis.call('RPUSH', beginnings, now)
  redis.call('LTRIM', beginnings, -turns, -1)
  local oldest = redis.call('LINDEX', beginnings, 0)
  while oldest + seconds <= tonumber(now) do
    redis.call('LPOP', beginnings)
    oldest = redis.call('LINDEX', beginnings, 0)
  end
  redis.call('PEXPIRE', beginnings, math.ceil(seconds * 1000) + 1)
  return turns - redis.call('LLEN', beginnings), oldest + seconds - now
end

local function has_room(running, at_once)
  if redis.call('SCARD', running) < at_once then return true end
  for _, id in ipairs(redis.call('SMEMBERS', running)) do
    -- Another hand may have deleted it.
    if redis.call('HGET', tag .. 'turn:' .. id, 'status') ~= 'running' then redis.call('SREM', running, id) end
  end
  return redis.call('SCARD', running) < at_once
end
"""


def allowance_args(allowance: Allowance) -> list[float]:
    """As the script takes them; 0 for what is not limited."""
    turns, seconds = allowance.rate or Rate(0, 0)
    return [turns, seconds, allowance.at_once or 0]


def standing_of(rate: Rate | None, reply: Sequence[str | int]) -> Standing | None:
    if rate is None or not reply:
        return None
    left, reset = reply
    return Standing(rate.turns, int(left), float(reset))


def refusal_of(allowance: Allowance, wait: str | None) -> Refusal:
    if wait is None or allowance.rate is None:
        return TooManyTurnsOfCaller(retry_after=AT_ONCE_RETRY)
    return TooManyRequests(allowance.rate.turns, float(wait))
