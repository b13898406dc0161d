-- KEYS: lock, fence   ARGV: token, not after in µs
-- Frees the lock if it has this token. The fence goes with it, unless the clock was set back and
-- only the key knows how far the fence has come.
-- Gives 1 if the lock was freed, plus 2 if no acquisition by this token can come any more.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local final = now > tonumber(ARGV[2]) and 2 or 0
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return final
end
if (tonumber(redis.call('GET', KEYS[2])) or 0) < now then
  redis.call('DEL', KEYS[1], KEYS[2])
else
  redis.call('DEL', KEYS[1])
end
return final + 1
