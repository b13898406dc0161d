-- Adds entries to a kept answer, and makes it the session's newest one. Does nothing but renew the TTLs if the entries
-- are there already (a repeated command). If what was written before is gone, deletes the rest.
--
-- KEYS: answer (a stream), newest (the claim id of the newest kept answer), lock
-- ARGV: after (the id of the last entry before; 0-0: none), ttl_ms, claim id, number of forgotten entries, their ids;
--       for each new entry its id and its payload
-- Reply: 1 if the store has the whole answer, 0 if it has lost some of it
local answer, newest, lock = KEYS[1], KEYS[2], KEYS[3]
local after, ttl_ms, claim, forgotten = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local first = 5 + forgotten

local top = redis.call('XREVRANGE', answer, '+', '-', 'COUNT', 1)[1]
top = top and top[1] or '0-0'
local last = ARGV[first] and ARGV[#ARGV - 1] or after
if top ~= after and top ~= last then
  redis.call('DEL', answer)
  return 0
end
if top == after then
  -- The first write: Redis refuses it if its memory is full, and nothing has changed.
  for n = first, #ARGV, 2 do
    redis.call('XADD', answer, ARGV[n], 'd', ARGV[n + 1])
  end
end
for n = 5, first - 1 do
  redis.call('XDEL', answer, ARGV[n])
end
redis.call('PEXPIRE', answer, ttl_ms)

-- A late command doesn't hide the answer of the turn that holds the lock now. In the token, which is JSON, an id stands
-- between quotes; without them it would be found in a longer one.
local known = redis.call('GET', newest)
if known == claim then
  redis.call('PEXPIRE', newest, ttl_ms)
else
  local holder = redis.pcall('GET', lock)
  if not (known and type(holder) == 'string' and string.find(holder, '"' .. known .. '"', 1, true)) then
    redis.call('SET', newest, claim, 'PX', ttl_ms)
  end
end
return 1
