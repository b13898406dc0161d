-- Deletes an instance's heartbeat, if it belongs to this epoch.
--
-- KEYS: instance
-- ARGV: epoch
-- Reply: 1
local epoch = ARGV[1]
local instance = KEYS[1]

if redis.call('GET', instance) == epoch then
  redis.call('DEL', instance)
end
return 1
