-- Marks an instance's waiters in any number of queues as alive, and offers each lock that is free, or whose holder is
-- dead, to the first waiter.
--
-- KEYS: for each session: lock, fence, queue, waiters
-- ARGV: channel of the instance, and for each session: dead_token or '', min_age of the dead holder's lock (µs),
--       wants_places (1 or 0), count of the instance's waiters, their ids
-- Reply: for each session {the ids of these waiters that aren't in the queue, holder's token or '', 1 if the dead holder
--        lost the lock, and if places are wanted a list: for each waiter its place among those that are alive, or 0}
local channel = ARGV[1]

-- How many waiters are counted for the places: a longer queue would cost Redis too much time.
local MOST_COUNTED = 1000

-- The places of the waiters that are the arguments from first to last.
local function places(s, first, last)
  local count, found, is_counted = 0, {}, {}
  for _, id in ipairs(redis.call('ZRANGE', s.queue, 0, MOST_COUNTED - 1)) do
    local of = waiter(s, id) or ''
    if is_counted[of] == nil then
      is_counted[of] = is_alive(s, of)
    end
    if is_counted[of] then
      count = count + 1
      found[id] = count
    end
  end
  local of_waiters = {}
  for i = first, last do
    of_waiters[i - first + 1] = found[ARGV[i]] or 0
  end
  return of_waiters
end

-- The instance's waiters are the arguments from first to last.
local function watch(s, dead_token, min_age, wants_places, first, last)
  local missing = {}
  for i = first, last do
    local id = ARGV[i]
    if not redis.call('ZSCORE', s.queue, id) then
      missing[#missing + 1] = id
    end
  end
  if #missing < last - first + 1 then
    -- First, so that a Redis whose memory is full lets waiters live.
    redis.call('PEXPIRE', s.queue, QUEUE_TTL)
    redis.call('HSET', s.waiters, '@' .. channel, whole(now))
    redis.call('PEXPIRE', s.waiters, QUEUE_TTL)
  end
  local holder = current_holder(s)
  local took_over = is_dead(s, holder, dead_token, min_age)
  if took_over then
    redis.call('DEL', s.lock)
    holder = false
  end
  if not holder then
    holder = offer(s)
  end
  return { missing, holder or '', took_over and 1 or 0, wants_places and places(s, first, last) or {} }
end

local reply, at = {}, 2
for n = 1, #KEYS / 4 do
  local dead_token, min_age = ARGV[at], ARGV[at + 1]
  local wants_places, count = ARGV[at + 2] == '1', tonumber(ARGV[at + 3])
  local first, last = at + 4, at + 3 + count
  -- If the queue is another program's key, the reply says that nobody has the lock: all its waiters ask again, which
  -- replaces the key. The other sessions go on.
  reply[n] = ignoring_types(watch, session(n), dead_token, min_age, wants_places, first, last)
    or { {}, '', 0, {} }
  at = last + 1
end
return reply
