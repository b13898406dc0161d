-- Takes the lock if it is free and nobody waits for it, if it has this token already (a repeated command, or an
-- offer), or if its holder is dead. Otherwise joins the queue, if the turn waits.
--
-- A turn that is executed once is refused if there is the record of another turn: unless that one waited and is gone, so
-- that it was never granted the lock. If a newer turn replaced that one, or an operator took it out of the queue, the
-- reply is the one that it got.
--
-- KEYS: lock, fence, queue, waiters; only if the turn is executed once: record
-- ARGV: token, lease_ms, not_after (µs); only with a record: "fingerprint turn id", the record's TTL (ms); then
--       "id channel max_waiters interrupts (1 or 0)", or '' if the turn does not wait; only if it has a ticket or knows a
--       dead holder: ticket or 0, dead_token or '', min_age of the dead holder's lock (µs)
-- Reply: the fence; minus the time if the command came too late; {ticket, holder's token} in the queue; {-1} if a
--        newer turn replaced this one, or the one that it repeats; {-2} if an operator took it out of the queue;
--        {'took over', one of these replies} if the dead holder lost the lock; {state, turn, token} of the other turn
--        with this record, and three more as for a busy lock: w if it waits, r if it holds the lock, e if it has ended,
--        d if it has lost the lock, k if its request is another one;
--        {holder's token, when it took the lock (µs) or 0, the time (µs), number of waiters} if the lock is busy;
--        the same with 0 as the token if the queue is full
--
-- After an error the token doesn't hold the lock, and is in the queue only if it had a place before: the lock or the
-- queue is written last. A key of the queue that has the wrong type is deleted before that.
local token, lease_ms, not_after = ARGV[1], ARGV[2], tonumber(ARGV[3])
local record, once, record_ms = KEYS[5], ARGV[4], ARGV[5]
local next_arg = record and 6 or 4
local id, channel, max_waiters, interrupts = string.match(ARGV[next_arg], '^(%S+) (%S+) (%d+) ([01])$')
max_waiters, interrupts = tonumber(max_waiters), interrupts == '1'
local ticket = tonumber(ARGV[next_arg + 1]) or 0
local has_ticket = ticket > 0
local dead_token, min_age = ARGV[next_arg + 2] or '', ARGV[next_arg + 3]
local s = session(1)
local took_over = false

-- Notes the turn's state in its record.
local function note(state)
  if record then
    redis.call('SET', record, state .. ' ' .. once .. ' ' .. token, 'PX', record_ms)
  end
end

-- The reply to a turn that is not to run.
local DISMISSED = { s = -1, q = -2 }

-- Gives that reply, and notes in the record why the turn is out of the queue for good.
local function give_up(why)
  if record then
    dismiss(record, once, token, why)
  end
  return { DISMISSED[why] }
end

-- Whether this waiter is in the queue and its instance is alive.
local function is_waiting(other)
  return redis.call('ZSCORE', s.queue, other) and is_alive(s, (waiter(s, other)))
end

-- The reply to a turn with the record of another one that isn't gone; nil if there is none.
local function repeated()
  local state, fingerprint, turn, other, other_token = read_record(record)
  local own_fingerprint, own_turn = string.match(once, '^(%S+) (%S+)')
  if not state or turn == own_turn then
    return nil
  end
  local holder = current_holder(s)
  if state == 'w' and holder ~= other_token and not ignoring_types(is_waiting, other) then
    state = ignoring_types(dismissal, s, other)
    if not state then
      return nil
    end
  end
  if fingerprint ~= own_fingerprint then
    state = 'k'
  elseif DISMISSED[state] then
    return { DISMISSED[state] }
  elseif state == 'r' and (holder ~= other_token or is_dead(s, holder, dead_token, min_age)) then
    state = 'd'
  end
  local count = ignoring_types(redis.call, 'ZCARD', s.queue) or 0
  return { state, turn, other_token, holder and last_fence(s) or 0, now, count }
end

local function grant()
  local fence = math.max(now, (last_fence(s) or 0) + 1)
  redis.call('SET', s.fence, whole(fence), 'PX', lease_ms)
  note('r')
  redis.call('SET', s.lock, token, 'PX', lease_ms)
  return fence
end

-- The queue is written last: every id in it has an entry in the hash, and both have a TTL.
local function join(at)
  redis.call('HSET', s.waiters, id, channel .. ' ' .. token)
  redis.call('PEXPIRE', s.waiters, QUEUE_TTL)
  note('w')
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

-- The reply to a turn that is refused. A release deletes the fence with the lock, so that a lock which is only offered,
-- or is another program's, has none.
local function refused(holder)
  return { holder, last_fence(s) or 0, now, redis.call('ZCARD', s.queue) }
end

-- Takes the lock, or joins the queue, if the session isn't simply free. Gives the reply.
local function acquire()
  local holder = current_holder(s)
  read_own('ZCARD', s.queue)
  local newest = tonumber(read_own('HGET', s.waiters, '!') or 0) or 0
  if id and holder ~= token and read_own('HGET', s.waiters, id) == '-' then
    -- The message about it got lost.
    return give_up('q')
  end
  if has_ticket and holder ~= token then
    if ticket < newest then
      -- The message about it got lost.
      leave(s, id)
      redis.call('HDEL', s.waiters, id)
      return give_up('s')
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
    return refused(holder)
  end

  local place = redis.call('ZSCORE', s.queue, id)
  if place then
    ticket = tonumber(place)
  else
    if not interrupts and is_full() then
      return refused(0)
    end
    local last = tonumber(redis.call('ZRANGE', s.queue, -1, -1, 'WITHSCORES')[2]) or 0
    ticket = math.max(now, last + 1, newest + 1)
  end
  redis.call('HSET', s.waiters, '@' .. channel, whole(now))
  if interrupts and ticket > newest then
    redis.call('HSET', s.waiters, '!', whole(ticket))
    for _, older in ipairs(redis.call('ZRANGEBYSCORE', s.queue, '-inf', '(' .. whole(ticket))) do
      local older_channel = waiter(s, older)
      redis.call('ZREM', s.queue, older)
      redis.call('HSET', s.waiters, older, '^')
      send_message(older_channel, 'superseded', older)
    end
  end
  join(ticket)
  return { ticket, holder }
end

if now > not_after then
  return -now
end
local refusal = record and repeated()
if refusal then
  return refusal
end
if not has_ticket and redis.call('EXISTS', s.lock, s.queue) == 0 then
  return grant()
end
local reply = acquire()
return took_over and { 'took over', reply } or reply
