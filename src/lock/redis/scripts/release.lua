-- KEYS: lock, fence   ARGV: token, not after in µs
-- Frees the lock if it has this token. The fence goes with it; where the clock has not passed it yet
-- (it was set back, or both happened in one microsecond), it stays until then, or for its lease.
-- Gives 1 if the lock was freed, plus 2 if no acquisition by this token can come any more.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local final = now > tonumber(ARGV[2]) and 2 or 0
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return final
end
local ahead = (tonumber(redis.call('GET', KEYS[2])) or 0) - now
if ahead < 0 then
  redis.call('DEL', KEYS[1], KEYS[2])
else
  redis.call('DEL', KEYS[1])
  local left = math.floor(ahead / 1000) + 1
  if left < redis.call('PTTL', KEYS[2]) then
    redis.call('PEXPIRE', KEYS[2], left)
  end
end
return final + 1
