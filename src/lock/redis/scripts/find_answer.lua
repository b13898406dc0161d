-- Finds out which answers there are for a session. Changes nothing.
--
-- KEYS: lock, newest
-- Reply: {holder's token or '', claim id of the newest kept answer or ''}
local function text(key)
  -- A lock that is no string is another program's, and has no answer.
  local value = redis.pcall('GET', key)
  return type(value) == 'string' and value or ''
end

return { text(KEYS[1]), text(KEYS[2]) }
