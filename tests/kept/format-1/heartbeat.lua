-- Renews an instance's heartbeat, or registers the instance.
--
-- KEYS: instance
-- ARGV: epoch, ttl_ms, take_name (1 or 0)
-- Reply: 1 if the epoch had the name and keeps it, 2 if it has the name from now on, 0 if another epoch has it
local epoch, ttl_ms, take_name = ARGV[1], ARGV[2], ARGV[3] == '1'
local instance = KEYS[1]

local owner = redis.call('GET', instance)
if owner == epoch then
  -- Not SET, which Redis refuses when its memory is full.
  redis.call('PEXPIRE', instance, ttl_ms)
  return 1
end
if owner and not take_name then
  return 0
end
redis.call('SET', instance, epoch, 'PX', ttl_ms)
return 2
