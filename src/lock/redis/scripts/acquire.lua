-- KEYS: lock, fence, line, waiters
-- ARGV: token, lease in ms, not after in µs, a dead holder's token or '', how long it must have held (µs),
--       and of a turn that waits: id, channel, ticket or 0, most waiters, 1 if it interrupts
-- Takes the lock if it is free and nobody waits for it, if it has this token already (a repeated command,
-- or one that was handed over), or if its holder is dead. Otherwise joins the line, if it is to wait.
-- Gives the fence; minus the time if the command came too late; the holder's token if the lock is busy;
-- {ticket, holder's token} in the line; {0} if the line is full; {-1} if a newer turn has replaced this.
-- After an error the token doesn't hold the lock, and stands in the line only if it has come back to it: all keys are
-- read, and so found to be of their types, before the first write; the lock's own is the last, or the line's.
local s = session(1)
local token, lease, id = ARGV[1], ARGV[2], ARGV[6]

local function granted()
  local fence = math.max(now, (last_fence(s) or 0) + 1)
  redis.call('SET', s.fence, whole(fence), 'PX', lease)
  redis.call('SET', s.lock, token, 'PX', lease)
  return fence
end

-- The line comes last: whoever stands in it has an entry, and both have a time to live.
local function join(ticket)
  redis.call('HSET', s.waiters, id, ARGV[7] .. ' ' .. token)
  redis.call('PEXPIRE', s.waiters, KEPT)
  redis.call('ZADD', s.line, whole(ticket), id)
  redis.call('PEXPIRE', s.line, KEPT)
end

-- Whether so many wait already. Of a long line some places are looked at, anywhere in it, for waiters who are
-- dead: each call frees some if there are many, and none costs more when the line is longer.
local function is_full(most)
  local count = redis.call('ZCARD', s.line)
  if count < most then
    return false
  end
  local first = now % math.max(count - LOOKED_AT + 1, 1)
  for _, other in ipairs(redis.call('ZRANGE', s.line, first, first + LOOKED_AT - 1)) do
    if not is_alive(s, (entry(s, other))) then
      leave(s, other)
      count = count - 1
    end
  end
  return count >= most
end

if now > tonumber(ARGV[3]) then
  return -now
end
local ticket = tonumber(ARGV[8]) or 0
local comes_back = ticket > 0
if not comes_back and redis.call('EXISTS', s.lock, s.line) == 0 then
  return granted()
end
local holder = redis.call('GET', s.lock)
local newest = id and tonumber(redis.call('HGET', s.waiters, '!')) or 0
if comes_back and holder ~= token then
  if ticket < newest then
    -- It has lost its place to a newer turn, and has not heard of it.
    leave(s, id)
    return { -1 }
  end
  -- Before the lock is handed over, perhaps to somebody who came later. What isn't a line is found out first.
  redis.call('ZCARD', s.line)
  join(ticket)
end
if is_dead(s, holder, ARGV[4], ARGV[5]) then
  holder = false
end
if not holder then
  -- Whoever is dropped from the line on the way is older than a new turn that replaces everybody.
  local replaces = ARGV[10] == '1' and not comes_back and redis.call('EXISTS', s.line) == 1
  holder = hand_over(s, id) or token
  if replaces and holder == token then
    redis.call('HSET', s.waiters, '!', whole(math.max(now, newest)))
    redis.call('PEXPIRE', s.waiters, KEPT)
  end
end
if holder == token then
  if id then
    leave(s, id)
  end
  return granted()
end
if not id then
  return holder
end

local interrupts = ARGV[10] == '1'
local place = redis.call('ZSCORE', s.line, id)
if place then
  ticket = tonumber(place)
else
  if not interrupts and is_full(tonumber(ARGV[9])) then
    return { 0 }
  end
  local last = tonumber(redis.call('ZRANGE', s.line, -1, -1, 'WITHSCORES')[2]) or 0
  ticket = math.max(now, last + 1, newest + 1)
end
redis.call('HSET', s.waiters, '@' .. ARGV[7], whole(now))
if interrupts and ticket > newest then
  redis.call('HSET', s.waiters, '!', whole(ticket))
  for _, older in ipairs(redis.call('ZRANGEBYSCORE', s.line, '-inf', '(' .. whole(ticket))) do
    local its_channel = entry(s, older)
    leave(s, older)
    tell(its_channel, 'superseded', older)
  end
end
join(ticket)
return { ticket, holder }
