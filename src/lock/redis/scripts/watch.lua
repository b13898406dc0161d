-- KEYS: lock, fence, line, waiters, ...   ARGV: channel, a dead holder's token or '' for each session
-- Says for each line that this instance's waiters in it are alive, and hands over a lock that is free.
-- Gives for each the holder's token, '' if there is none, and 0 if the line doesn't know the instance, or
-- not all of its waiters.
local found = {}
for n = 1, #KEYS / 4 do
  local s = session(n)
  local seen = '@' .. ARGV[1]
  local passed_over = redis.call('HDEL', s.waiters, '?' .. ARGV[1]) == 1
  if passed_over or redis.call('HEXISTS', s.waiters, seen) == 0 then
    found[n] = 0
  else
    redis.call('HSET', s.waiters, seen, whole(now))
    redis.call('PEXPIRE', s.line, KEPT)
    redis.call('PEXPIRE', s.waiters, KEPT)
    -- Of a key that isn't a lock at all, this gives an error, which isn't a token either.
    local holder = redis.pcall('GET', s.lock)
    if holder and holder == ARGV[n + 1] then
      redis.call('DEL', s.lock)
      holder = false
    end
    if not holder then
      holder = hand_over(s)
    end
    found[n] = type(holder) == 'string' and holder or ''
  end
end
return found
