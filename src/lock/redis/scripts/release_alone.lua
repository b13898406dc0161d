-- Frees the turn's lock if nobody waits for it and the turn has no once id. Stands before common.lua, so that no function
-- is made for it: Redis runs a script anew for each call. release.lua names the arguments, and serves everything else.
if not KEYS[5] and redis.call('EXISTS', KEYS[3], KEYS[4]) == 0 and redis.pcall('GET', KEYS[1]) == ARGV[1] then
  -- A key of the wrong type gives an error, which is no number either.
  local fence = tonumber(redis.pcall('GET', KEYS[2]))
  if fence and fence < now then
    redis.call('DEL', KEYS[1], KEYS[2])
    return now > tonumber(ARGV[2]) and 3 or 1
  end
end

