local WAITER_TIMEOUT, OFFER_TTL, QUEUE_TTL, CHECKED_WAITERS, UNKNOWN_HOLDER, MESSAGE_FORMAT = 3000000, 3000, 10000, 4, '?', 1
-- What all scripts about sessions share. Each of them is loaded behind this text. Constants come first:
-- WAITER_TIMEOUT (µs), OFFER_TTL (ms), QUEUE_TTL (ms), CHECKED_WAITERS (a number of waiters), UNKNOWN_HOLDER (a
-- value that is no token), MESSAGE_FORMAT (a number).
--
-- A session has four keys:
--   lock     the holder's token
--   fence    the number of the last acquisition
--   queue    a sorted set: the ids of the waiters, by ticket
--   waiters  a hash: for each id "channel token"; for each "@channel" when its instance last watched the
--            queue (µs); for "!" the ticket of the newest turn that interrupted all older ones
--
-- A Redis whose memory is full (maxmemory, noeviction) refuses a command that may need memory, unless the script
-- has written before (Redis docs, "Eval scripts under low memory conditions"). So what keeps up or frees what is
-- there begins with PEXPIRE, ZREM or DEL. Only a new turn begins with a write that is refused.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

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

-- Takes the lock if it is free and nobody waits for it, if it has this token already (a repeated command, or an
-- offer), or if its holder is dead. Otherwise joins the queue, if the turn waits.
--
-- KEYS: lock, fence, queue, waiters
-- ARGV: token, lease_ms, not_after (µs), dead_token or '', min_age of the dead holder's lock (µs); only if the turn
--       waits: id, channel, ticket or 0, max_waiters, interrupts (1 or 0)
-- Reply: the fence; minus the time if the command came too late; the holder's token if the lock is busy;
--        {ticket, holder's token} in the queue; {0} if the queue is full; {-1} if a newer turn replaced this one;
--        {'took over', one of these replies} if the dead holder lost the lock
--
-- After an error the token doesn't hold the lock, and is in the queue only if it had a place before: the lock or the
-- queue is written last. A key of the queue that has the wrong type is deleted before that.
local token, lease_ms, not_after = ARGV[1], ARGV[2], tonumber(ARGV[3])
local dead_token, min_age = ARGV[4], ARGV[5]
local id, channel, ticket = ARGV[6], ARGV[7], tonumber(ARGV[8]) or 0
local max_waiters, interrupts = tonumber(ARGV[9]), ARGV[10] == '1'
local has_ticket = ticket > 0
local s = session(1)
local took_over = false

local function grant()
  local fence = math.max(now, (last_fence(s) or 0) + 1)
  redis.call('SET', s.fence, whole(fence), 'PX', lease_ms)
  redis.call('SET', s.lock, token, 'PX', lease_ms)
  return fence
end

-- The queue is written last: every id in it has an entry in the hash, and both have a TTL.
local function join(at)
  redis.call('HSET', s.waiters, id, channel .. ' ' .. token)
  redis.call('PEXPIRE', s.waiters, QUEUE_TTL)
  redis.call('ZADD', s.queue, whole(at), id)
  redis.call('PEXPIRE', s.queue, QUEUE_TTL)
end

-- Whether the queue is full. Checks a few waiters, anywhere in it, and removes those that are dead: each call
-- makes room if many are, and a longer queue costs no more.
local function is_full()
  local count = redis.call('ZCARD', s.queue)
  if count < max_waiters then
    return false
  end
  local first = now % math.max(count - CHECKED_WAITERS + 1, 1)
  for _, other in ipairs(redis.call('ZRANGE', s.queue, first, first + CHECKED_WAITERS - 1)) do
    if not is_alive(s, (waiter(s, other))) then
      leave(s, other)
      count = count - 1
    end
  end
  return count >= max_waiters
end

-- Gives the reply of a command, or deletes its key and gives false if the key has the wrong type. The names of the
-- queue's keys are Seriatim's, so no program misses them, and the waiters join again with their tickets.
local function read_own(command, key, ...)
  local reply = ignoring_types(redis.call, command, key, ...)
  if reply == nil then
    redis.call('DEL', key)
  end
  return reply or false
end

-- Takes the lock, or joins the queue, if the session isn't simply free. Gives the reply.
local function acquire()
  local holder = current_holder(s)
  read_own('ZCARD', s.queue)
  local newest = tonumber(read_own('HGET', s.waiters, '!') or 0) or 0
  if has_ticket and holder ~= token then
    if ticket < newest then
      -- The message about it got lost.
      leave(s, id)
      return { -1 }
    end
    -- This lets a turn that waits already come back while the memory of Redis is full.
    redis.call('PEXPIRE', s.queue, QUEUE_TTL)
    -- First, so that a free lock isn't offered to a later waiter.
    join(ticket)
  end
  if is_dead(s, holder, dead_token, min_age) then
    holder, took_over = false, true
  end
  if not holder then
    -- All waiters that time out on the way are older than a new turn that interrupts.
    local is_interrupting = interrupts and not has_ticket and redis.call('EXISTS', s.queue) == 1
    holder = offer(s, id) or token
    if is_interrupting and holder == token then
      redis.call('HSET', s.waiters, '!', whole(math.max(now, newest)))
      redis.call('PEXPIRE', s.waiters, QUEUE_TTL)
    end
  end
  if holder == token then
    if id then
      leave(s, id)
    end
    return grant()
  end
  if not id then
    return holder
  end

  local place = redis.call('ZSCORE', s.queue, id)
  if place then
    ticket = tonumber(place)
  else
    if not interrupts and is_full() then
      return { 0 }
    end
    local last = tonumber(redis.call('ZRANGE', s.queue, -1, -1, 'WITHSCORES')[2]) or 0
    ticket = math.max(now, last + 1, newest + 1)
  end
  redis.call('HSET', s.waiters, '@' .. channel, whole(now))
  if interrupts and ticket > newest then
    redis.call('HSET', s.waiters, '!', whole(ticket))
    for _, older in ipairs(redis.call('ZRANGEBYSCORE', s.queue, '-inf', '(' .. whole(ticket))) do
      local older_channel = waiter(s, older)
      leave(s, older)
      send_message(older_channel, 'superseded', older)
    end
  end
  join(ticket)
  return { ticket, holder }
end

if now > not_after then
  return -now
end
if not has_ticket and redis.call('EXISTS', s.lock, s.queue) == 0 then
  return grant()
end
local reply = acquire()
return took_over and { 'took over', reply } or reply
