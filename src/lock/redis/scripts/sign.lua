-- KEYS: instance
-- Gives {epoch, how long its key lives yet in ms} of an instance that is alive, nothing otherwise.
local epoch = redis.call('GET', KEYS[1])
return epoch and { epoch, redis.call('PTTL', KEYS[1]) }
