-- Reads an instance's heartbeat.
--
-- KEYS: instance
-- Reply: {epoch, ttl_ms}, or nothing if the instance isn't alive
local instance = KEYS[1]

local epoch = redis.call('GET', instance)
return epoch and { epoch, redis.call('PTTL', instance) }
