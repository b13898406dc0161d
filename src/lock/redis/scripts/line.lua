-- What every script about a session knows. It stands before the others, behind its own arguments:
-- STALE (µs), OFFER (ms), KEPT (ms), LOOKED_AT (waiters).
--
-- A session has four keys. lock: its holder's token. fence: the number of the last acquisition. line: a
-- sorted set of the waiters' ids by ticket. waiters: a hash with "channel token" for each id; for each
-- channel, as "@channel", when its instance was last heard of; as "!", the newest interrupting ticket.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- Lua would write a number of this size with an exponent.
local function whole(number)
  return string.format('%.0f', number)
end

-- The keys of the nth session of the command.
local function session(n)
  local at = n * 4
  return { lock = KEYS[at - 3], fence = KEYS[at - 2], line = KEYS[at - 1], waiters = KEYS[at] }
end

-- What a function gives; nil if it met a key of another type than it takes it for. Any other error ends the script.
local function despite_types(f, ...)
  local is_done, result = pcall(f, ...)
  if is_done then
    return result
  end
  local text = type(result) == 'table' and result.err or result
  if not string.find(text, 'WRONGTYPE', 1, true) then
    error(result, 0)
  end
  return nil
end

-- The number of the last acquisition, if it is known. One that a double can't count on from isn't ours.
local function last_fence(s)
  local fence = tonumber(despite_types(redis.call, 'GET', s.fence))
  return fence and fence >= 0 and fence < 2 ^ 53 and fence or nil
end

-- Takes somebody out of the line, and the hash away with the last one. The mark of an interrupting turn
-- stays for its time: an older waiter whose message was lost must find it.
local function leave(s, id)
  if redis.call('ZREM', s.line, id) == 0 then
    return
  end
  redis.call('HDEL', s.waiters, id)
  if redis.call('EXISTS', s.line) == 0 and redis.call('HEXISTS', s.waiters, '!') == 0 then
    redis.call('DEL', s.waiters)
  end
end

-- The channel and the token of somebody in the line.
local function entry(s, id)
  return string.match(redis.call('HGET', s.waiters, id) or '', '^(%S+) (.*)$')
end

-- Whether the instance of this channel was heard of lately. One that wasn't must join again.
local function is_alive(s, channel)
  local seen = channel and tonumber(redis.call('HGET', s.waiters, '@' .. channel))
  if seen and seen + STALE > now then
    return true
  end
  if channel then
    redis.call('HDEL', s.waiters, '@' .. channel)
  end
  return false
end

-- Whether this holder is the one who is known to be dead, and has had the lock for so long (µs). One whose
-- instance only has no sign of life may have begun after all signs were lost, and be about to give one.
local function is_dead(s, holder, dead, age)
  if not holder or dead == '' or holder ~= dead then
    return false
  end
  local since = last_fence(s)
  return tonumber(age) == 0 or (since ~= nil and since + tonumber(age) < now)
end

-- Tells an instance something about a claim of its own, if it may be told and is there to hear it.
local function tell(channel, what, id)
  local heard = channel and redis.pcall('PUBLISH', channel, what .. ' ' .. id)
  return type(heard) == 'number' and heard > 0
end

-- Gives a lock that is free to the first in the line who is alive and can hear of it, or is asking right
-- now; gives its token, or false. It is an offer, which has to be taken up: an instance that isn't there
-- any more must not keep the others waiting for a whole lease.
local function hand_over(s, asking)
  local at, deaf = 0, nil
  while true do
    local id = redis.call('ZRANGE', s.line, at, at)[1]
    if not id then
      break
    end
    local channel, token = entry(s, id)
    if id ~= asking and not is_alive(s, channel) then
      leave(s, id)
    elseif id ~= asking and not tell(channel, 'granted', id) then
      -- Its instance has died, or is just connecting again: it keeps its place.
      deaf = deaf or { id, token }
      at = at + 1
    else
      deaf = { id, token }
      break
    end
  end
  if not deaf then
    return false
  end
  leave(s, deaf[1])
  redis.call('SET', s.lock, deaf[2], 'PX', OFFER)
  return deaf[2]
end

