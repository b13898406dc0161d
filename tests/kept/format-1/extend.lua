-- Starts a new lease for each lock that still has its token.
--
-- KEYS: for each lock: lock, fence
-- ARGV: for each lock: token, lease_ms
-- Reply: for each lock 1 if it was extended, 0 if it has another token
local extended = {}
for i = 1, #KEYS, 2 do
  local lock, fence = KEYS[i], KEYS[i + 1]
  local token, lease_ms = ARGV[i], ARGV[i + 1]
  -- If the key has the wrong type, pcall gives an error, which isn't the token either.
  local is_own = redis.pcall('GET', lock) == token
  if is_own then
    redis.call('PEXPIRE', lock, lease_ms)
    redis.call('PEXPIRE', fence, lease_ms)
  end
  extended[#extended + 1] = is_own and 1 or 0
end
return extended
