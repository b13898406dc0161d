-- KEYS: lock, fence, line, waiters, ...
-- ARGV: channel, and for each session: a dead holder's token or '', how long it must have held (µs), how
--       many wait, their ids
-- Says for each line that this instance's waiters in it are alive, and hands over a lock that is free.
-- Gives for each {how many of them are in the line, holder's token or ''}.
local function look_after(s, dead, age, first, last)
  local present = 0
  for i = first, last do
    if redis.call('ZSCORE', s.line, ARGV[i]) then
      present = present + 1
    end
  end
  if present > 0 then
    redis.call('HSET', s.waiters, '@' .. ARGV[1], whole(now))
    redis.call('PEXPIRE', s.line, KEPT)
    redis.call('PEXPIRE', s.waiters, KEPT)
  end
  -- Of a key that isn't a lock at all, this gives an error, which isn't a token either.
  local holder = redis.pcall('GET', s.lock)
  if is_dead(s, holder, dead, age) then
    redis.call('DEL', s.lock)
    holder = false
  end
  if not holder then
    holder = hand_over(s)
  end
  return { present, type(holder) == 'string' and holder or '' }
end

local found, at = {}, 2
for n = 1, #KEYS / 4 do
  local first, last = at + 3, at + 2 + tonumber(ARGV[at + 2])
  -- A line that is none is nobody's: who waits there asks again, and hears the error. The others go on.
  found[n] = despite_types(look_after, session(n), ARGV[at], ARGV[at + 1], first, last) or { 0, '' }
  at = last + 1
end
return found
