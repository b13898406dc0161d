-- KEYS: lock, fence, line, waiters   ARGV: token, not after in µs, id
-- Leaves the line, and frees the lock if it has this token: it goes to the next in the line. The fence goes
-- with it; where the clock has not passed it yet (it was set back, or both happened in one microsecond), it
-- stays until then, or for its lease.
-- Gives 1 if the lock was freed, plus 2 if no acquisition by this token can come any more.
local s = session(1)
local final = now > tonumber(ARGV[2]) and 2 or 0
local has_line = redis.call('EXISTS', s.line) == 1
if has_line then
  -- Of a line that is none, nobody is taken out, and below nobody gets the lock, which is freed all the same.
  despite_types(leave, s, ARGV[3])
end
if despite_types(redis.call, 'GET', s.lock) ~= ARGV[1] then
  return final
end
local ahead = (last_fence(s) or 0) - now
if ahead < 0 then
  redis.call('DEL', s.lock, s.fence)
else
  redis.call('DEL', s.lock)
  local left = math.floor(ahead / 1000) + 1
  if left < redis.call('PTTL', s.fence) then
    redis.call('PEXPIRE', s.fence, left)
  end
end
if has_line then
  pcall(hand_over, s)
end
return final + 1
