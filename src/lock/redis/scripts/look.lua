-- KEYS: lock, fence, line, waiters, ...   ARGV: how many waiters of each line are to be named
-- Says how locks stand. Changes nothing, and is not put out by keys that aren't what they are taken for.
-- Gives the time in µs, and for each lock {its holder's token, PTTL, fence or 0, how many wait, their tokens};
-- the PTTL of one that nobody holds is -2.
local looked, most = { now }, tonumber(ARGV[1])
for n = 1, #KEYS / 4 do
  local s = session(n)
  local holder = redis.pcall('GET', s.lock)
  local is_held = type(holder) == 'string'
  local count = redis.pcall('ZCARD', s.line)
  local named = {}
  if type(count) ~= 'number' then
    count = 0
  elseif most > 0 then
    for _, id in ipairs(redis.call('ZRANGE', s.line, 0, most - 1)) do
      local is_there, _, token = pcall(entry, s, id)
      named[#named + 1] = is_there and token or ''
    end
  end
  looked[n + 1] = {
    is_held and holder or '',
    is_held and redis.call('PTTL', s.lock) or -2,
    last_fence(s) or 0,
    count,
    named,
  }
end
return looked
