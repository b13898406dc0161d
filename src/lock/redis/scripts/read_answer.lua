-- Reads entries of a kept answer. Changes nothing.
--
-- KEYS: answer
-- ARGV: the id of the first entry to read, and the number of entries at most
-- Reply: for each entry {id, {'d', payload}}, or nothing if there is no such answer
local entries = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])
if #entries == 0 and redis.call('EXISTS', KEYS[1]) == 0 then
  return false
end
return entries
