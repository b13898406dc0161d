-- Takes the lock of a session of which nothing is stored, as grant and note of acquire.lua do. Stands before common.lua,
-- so that no function is made for it: Redis runs a script anew for each call. acquire.lua names the arguments, and serves
-- everything else.
local later = KEYS[5] and 7 or 5 -- only a turn with a ticket or with a dead holder has this argument
if not ARGV[later] and now <= tonumber(ARGV[3]) and redis.call('EXISTS', unpack(KEYS)) == 0 then
  local token, lease_ms = ARGV[1], ARGV[2]
  redis.call('SET', KEYS[2], string.format('%.0f', now), 'PX', lease_ms)
  if KEYS[5] then
    redis.call('SET', KEYS[5], 'r ' .. ARGV[4] .. ' ' .. token, 'PX', ARGV[5])
  end
  redis.call('SET', KEYS[1], token, 'PX', lease_ms)
  return now
end

