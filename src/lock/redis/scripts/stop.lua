-- KEYS: instance   ARGV: epoch
-- Takes an instance's key away, if it is still this epoch's.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
