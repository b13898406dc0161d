-- KEYS: instance   ARGV: epoch, time to live in ms, 1 if the name is to be taken over
-- Keeps an instance's key alive, or makes it. Gives 1 if it was this epoch's and is, 2 if it is from now on, 0 if
-- it is another's.
local epoch = redis.call('GET', KEYS[1])
local own = epoch == ARGV[1]
if epoch and not own and ARGV[3] ~= '1' then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return own and 1 or 2
