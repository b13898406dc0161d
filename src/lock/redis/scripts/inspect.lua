-- Reads locks for an operator. Changes nothing, and accepts keys of the wrong type.
--
-- KEYS: for each session: lock, fence, queue, waiters
-- ARGV: max_listed, the number of waiters to list for each session
-- Reply: for each session {the time (µs), holder's token, PTTL, fence or 0, number of waiters, their tokens}; the PTTL
--        is -2 if nobody holds the lock
local max_listed = tonumber(ARGV[1])

local reply = {}
for n = 1, #KEYS / 4 do
  local s = session(n)
  local holder = current_holder(s)
  local count = redis.pcall('ZCARD', s.queue)
  local tokens = {}
  if type(count) ~= 'number' then
    count = 0
  elseif max_listed > 0 then
    for _, id in ipairs(redis.call('ZRANGE', s.queue, 0, max_listed - 1)) do
      local is_there, _, token = pcall(waiter, s, id)
      tokens[#tokens + 1] = is_there and token or ''
    end
  end
  reply[n] = {
    now,
    holder or '',
    holder and redis.call('PTTL', s.lock) or -2,
    last_fence(s) or 0,
    count,
    tokens,
  }
end
return reply
