-- Starts a new lease for each lock that still has its token, and renews the record of a turn that is executed once.
--
-- KEYS: for each lock: lock, fence; then the records, in the order of their locks
-- ARGV: for each lock: token, lease_ms, the TTL of its record (ms), or 0 if it has none
-- Reply: for each lock 1 if it was extended, 0 if it has another token
local extended = {}
local locks = #ARGV / 3
local records = 0
for n = 1, locks do
  local lock, fence = KEYS[n * 2 - 1], KEYS[n * 2]
  local token, lease_ms, record_ms = ARGV[n * 3 - 2], ARGV[n * 3 - 1], ARGV[n * 3]
  local record = false
  if record_ms ~= '0' then
    records = records + 1
    record = KEYS[locks * 2 + records]
  end
  -- If the key has the wrong type, pcall gives an error, which isn't the token either.
  local is_own = redis.pcall('GET', lock) == token
  if is_own then
    redis.call('PEXPIRE', lock, lease_ms)
    redis.call('PEXPIRE', fence, lease_ms)
    if record then
      redis.call('PEXPIRE', record, record_ms)
    end
  end
  extended[n] = is_own and 1 or 0
end
return extended
