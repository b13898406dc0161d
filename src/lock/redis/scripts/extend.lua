-- KEYS: lock, fence, lock, fence, ...   ARGV: token, lease in ms, token, lease in ms, ...
-- Promises each lock that has its token for the whole lease anew.
-- Gives a list with 1 for each that was extended and 0 for each that isn't the token's any more.
local extended = {}
for i = 1, #KEYS, 2 do
  -- Of a key that isn't a lock at all, this gives an error, which isn't the token either.
  local own = redis.pcall('GET', KEYS[i]) == ARGV[i]
  if own then
    redis.call('PEXPIRE', KEYS[i], ARGV[i + 1])
    redis.call('PEXPIRE', KEYS[i + 1], ARGV[i + 1])
  end
  extended[#extended + 1] = own and 1 or 0
end
return extended
