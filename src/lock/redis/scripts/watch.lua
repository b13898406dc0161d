-- KEYS: lock, fence, line, waiters, ...
-- ARGV: channel, and for each session: a dead holder's token or '', how many wait, their ids
-- Says for each line that this instance's waiters in it are alive, and hands over a lock that is free.
-- Gives for each {how many of them are in the line, holder's token or ''}.
local found, at = {}, 2
for n = 1, #KEYS / 4 do
  local s = session(n)
  local dead, count = ARGV[at], tonumber(ARGV[at + 1])
  local present = 0
  for i = at + 2, at + 1 + count do
    if redis.call('ZSCORE', s.line, ARGV[i]) then
      present = present + 1
    end
  end
  at = at + 2 + count
  if present > 0 then
    redis.call('HSET', s.waiters, '@' .. ARGV[1], whole(now))
    redis.call('PEXPIRE', s.line, KEPT)
    redis.call('PEXPIRE', s.waiters, KEPT)
  end
  -- Of a key that isn't a lock at all, this gives an error, which isn't a token either.
  local holder = redis.pcall('GET', s.lock)
  if holder and holder == dead then
    redis.call('DEL', s.lock)
    holder = false
  end
  if not holder then
    holder = hand_over(s)
  end
  found[n] = { present, type(holder) == 'string' and holder or '' }
end
return found
