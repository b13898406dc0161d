-- Marks an instance's waiters in any number of queues as alive, and offers each lock that is free, or whose holder is
-- dead, to the first waiter.
--
-- KEYS: for each session: lock, fence, queue, waiters
-- ARGV: channel of the instance, and for each session: dead_token or '', min_age of the dead holder's lock (µs),
--       count of the instance's waiters, their ids
-- Reply: for each session {how many of these waiters are in the queue, holder's token or '', 1 if the dead holder
--        lost the lock}
local channel = ARGV[1]

-- The instance's waiters are the arguments from first to last.
local function watch(s, dead_token, min_age, first, last)
  local present = 0
  for i = first, last do
    local id = ARGV[i]
    if redis.call('ZSCORE', s.queue, id) then
      present = present + 1
    end
  end
  if present > 0 then
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
  return { present, holder or '', took_over and 1 or 0 }
end

local reply, at = {}, 2
for n = 1, #KEYS / 4 do
  local dead_token, min_age, count = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 2])
  local first, last = at + 3, at + 2 + count
  -- If the queue is another program's key, its waiters ask again, which replaces it. The other sessions go on.
  reply[n] = ignoring_types(watch, session(n), dead_token, min_age, first, last) or { 0, '', 0 }
  at = last + 1
end
return reply
