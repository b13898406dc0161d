-- KEYS: lock, fence, line, waiters   ARGV: holder's token, its instance's channel or '', its id
-- Takes the lock away from this holder, tells its instance, and hands the lock over as a release would.
-- The fence rises, and stays for as long as the holder may think that it holds: should its message get lost
-- and the clock be set back meanwhile, whoever holds next has a larger one all the same.
-- Gives the fence, or nothing if the lock isn't this holder's.
local s = session(1)
-- Of a key that isn't a lock at all, this gives an error, which isn't a token either.
if redis.pcall('GET', s.lock) ~= ARGV[1] then
  return false
end
local left = redis.call('PTTL', s.lock)
local fence = math.max(now, (last_fence(s) or 0) + 1)
redis.call('DEL', s.lock)
redis.call('SET', s.fence, whole(fence), 'PX', math.max(left, math.floor((fence - now) / 1000) + 1))
if ARGV[2] ~= '' then
  tell(ARGV[2], 'taken', ARGV[3])
end
-- Of a line that is none, nobody gets it.
pcall(hand_over, s)
return fence
