-- Leaves the queue. If the lock has this token, frees it and offers it to the first waiter. The fence is deleted
-- with the lock. If the clock has not passed the fence yet (it was set back, or both happened in one microsecond),
-- the fence stays until then, or for its lease.
--
-- KEYS: lock, fence, queue, waiters
-- ARGV: token, not_after (µs), id
-- Reply: 1 if the lock was freed, plus 2 if no acquisition with this token can be executed any more
local token, not_after, id = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local s = session(1)

local final = now > not_after and 2 or 0
local has_queue = redis.call('EXISTS', s.queue) == 1
if has_queue then
  -- If the queue is another program's key, nobody leaves it and nobody gets the lock, which is freed all the same.
  ignoring_types(leave, s, id)
end
if ignoring_types(redis.call, 'GET', s.lock) ~= token then
  return final
end
local ahead = (last_fence(s) or 0) - now
if ahead < 0 then
  redis.call('DEL', s.lock, s.fence)
else
  redis.call('DEL', s.lock)
  local ahead_ms = math.floor(ahead / 1000) + 1
  if ahead_ms < redis.call('PTTL', s.fence) then
    redis.call('PEXPIRE', s.fence, ahead_ms)
  end
end
if has_queue then
  pcall(offer, s)
end
return final + 1
