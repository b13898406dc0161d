-- Takes the lock away from this holder, sends its instance a message, and offers the lock to the first waiter.
-- The fence rises, and stays for as long as the holder may think that it has the lock: if the message gets lost and
-- the clock is set back, the next holder still has a larger fence.
--
-- KEYS: lock, fence, queue, waiters
-- ARGV: token of the holder, channel of its instance or '', id or ''
-- Reply: the fence, or nothing if this holder doesn't have the lock
local token, channel, id = ARGV[1], ARGV[2], ARGV[3]
local s = session(1)

-- If the key has the wrong type, pcall gives an error, which isn't the token either.
if redis.pcall('GET', s.lock) ~= token then
  return false
end
local ttl_ms = redis.call('PTTL', s.lock)
local fence = math.max(now, (last_fence(s) or 0) + 1)
redis.call('DEL', s.lock)
redis.call('SET', s.fence, whole(fence), 'PX', math.max(ttl_ms, math.floor((fence - now) / 1000) + 1))
if channel ~= '' then
  send_message(channel, 'taken', id)
end
-- Nobody gets the lock if the queue is another program's key.
pcall(offer, s)
return fence
