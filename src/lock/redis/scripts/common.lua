-- What all scripts about sessions share. Each of them is loaded behind this text. Constants come first:
-- WAITER_TIMEOUT (µs), OFFER_TTL (ms), QUEUE_TTL (ms), CHECKED_WAITERS (a number of waiters), UNKNOWN_HOLDER (a
-- value that is no token), MESSAGE_FORMAT (a number). clock.lua follows, which sets now (µs since 1970).
--
-- A session has four keys:
--   lock     the holder's token
--   fence    the number of the last acquisition
--   queue    a sorted set: the ids of the waiters, by ticket
--   waiters  a hash: for each id "channel token", or "-" if an operator took it out of the queue, or "^" if a newer turn
--            replaced it and it hasn't been given up yet; for each "@channel" when its instance last watched the
--            queue (µs); for "!" the ticket of the newest turn that interrupted all older ones
-- A turn that is executed once has one more:
--   record   "state fingerprint turn id token": w while it waits, r since it was granted the lock, e since its end, s or
--            q if a newer turn replaced it or an operator took it out of the queue before it was sent; the
--            fingerprint of its request; the id by which it is known; the id and the token of its claim
--
-- A Redis whose memory is full (maxmemory, noeviction) refuses a command that may need memory, unless the script
-- has written before (Redis docs, "Eval scripts under low memory conditions"). So what keeps up or frees what is
-- there begins with PEXPIRE, ZREM or DEL. Only a new turn begins with a write that is refused.

-- Formats a large number. Lua would use an exponent.
local function whole(number)
  return string.format('%.0f', number)
end

-- The keys of the nth session of the command.
local function session(n)
  local last = n * 4
  return { lock = KEYS[last - 3], fence = KEYS[last - 2], queue = KEYS[last - 1], waiters = KEYS[last] }
end

-- Calls f; gives nil if a key has the wrong type, because another program made it. Other errors end the
-- script.
local function ignoring_types(f, ...)
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

-- The state, the fingerprint, the turn, the id and the token in a record; nothing if there is none.
local function read_record(record)
  return string.match(ignoring_types(redis.call, 'GET', record) or '', '^(%l) (%S+) (%S+) (%S+) (.*)$')
end

-- Notes in the record of a turn that was not sent why it is not to run: s or q. A repeat that waits for the turn finds
-- that, and doesn't run in its place.
local function dismiss(record, once, token, why)
  -- Behind a write that needs no memory, for a Redis whose memory is full.
  redis.call('DEL', record)
  redis.pcall('SET', record, why .. ' ' .. once .. ' ' .. token, 'PX', QUEUE_TTL)
end

-- Why a waiter that isn't in the queue any more is not to run: s or q; nil if it has just left.
local function dismissal(s, id)
  local mark = redis.call('HGET', s.waiters, id)
  return mark == '-' and 'q' or mark == '^' and 's' or nil
end

-- Who holds the lock: a token, or another program's value; false if the lock is free. A key that is no string is
-- another program's, too, and is held by UNKNOWN_HOLDER.
local function current_holder(s)
  local holder = ignoring_types(redis.call, 'GET', s.lock)
  return holder == nil and UNKNOWN_HOLDER or holder
end

-- The fence of the last acquisition; nil if it isn't known. A number that Lua can't count on from (2^53)
-- isn't a fence.
local function last_fence(s)
  local fence = tonumber(ignoring_types(redis.call, 'GET', s.fence))
  return fence and fence >= 0 and fence < 2 ^ 53 and fence or nil
end

-- Removes a waiter from the queue, and the hash with the last waiter. "!" keeps the hash until its TTL ends:
-- an older waiter whose message was lost has to find it.
local function leave(s, id)
  if redis.call('ZREM', s.queue, id) == 0 then
    return
  end
  redis.call('HDEL', s.waiters, id)
  if redis.call('EXISTS', s.queue) == 0 and redis.call('HEXISTS', s.waiters, '!') == 0 then
    redis.call('DEL', s.waiters)
  end
end

-- The channel and the token of a waiter; nil if there is none.
local function waiter(s, id)
  return string.match(redis.call('HGET', s.waiters, id) or '', '^(%S+) (.*)$')
end

-- Whether the instance with this channel has watched the queue in time. Otherwise its waiters have to join
-- again.
local function is_alive(s, channel)
  local watched = channel and tonumber(redis.call('HGET', s.waiters, '@' .. channel))
  if watched and watched + WAITER_TIMEOUT > now then
    return true
  end
  if channel then
    redis.call('HDEL', s.waiters, '@' .. channel)
  end
  return false
end

-- Whether the holder is the one that is known to be dead, and has held the lock for longer than min_age
-- (µs). A younger holder may have begun after the store lost all heartbeats, and send one soon.
local function is_dead(s, holder, dead_token, min_age)
  if not holder or dead_token == '' or holder ~= dead_token then
    return false
  end
  local since = last_fence(s)
  return tonumber(min_age) == 0 or (since ~= nil and since + tonumber(min_age) < now)
end

-- Sends a message to an instance; gives whether the instance was there to receive it.
local function send_message(channel, kind, id)
  local receivers = channel and redis.pcall('PUBLISH', channel, MESSAGE_FORMAT .. ' ' .. kind .. ' ' .. id)
  return type(receivers) == 'number' and receivers > 0
end

-- Offers a free lock to the first waiter that is alive and gets the message, or that is asking right now.
-- Gives the waiter's token, or false. The waiter has to take the offer within OFFER_TTL: an instance that is
-- gone must not block the others for a whole lease.
local function offer(s, asking_id)
  local rank, next_id, next_token = 0, nil, nil
  while true do
    local id = redis.call('ZRANGE', s.queue, rank, rank)[1]
    if not id then
      break
    end
    local channel, token = waiter(s, id)
    if id ~= asking_id and not is_alive(s, channel) then
      leave(s, id)
    elseif id ~= asking_id and not send_message(channel, 'granted', id) then
      -- Its instance is gone, or is connecting again: it keeps its place. If no other waiter gets a message,
      -- the first one gets the offer without it.
      if not next_id then
        next_id, next_token = id, token
      end
      rank = rank + 1
    else
      next_id, next_token = id, token
      break
    end
  end
  if not next_id then
    return false
  end
  leave(s, next_id)
  redis.call('SET', s.lock, next_token, 'PX', OFFER_TTL)
  return next_token
end

