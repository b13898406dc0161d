-- Leaves the queue. If the lock has this token, frees it and offers it to the first waiter. The fence is deleted
-- with the lock. If the clock has not passed the fence yet (it was set back, or both happened in one microsecond),
-- the fence stays until then, or for its lease.
--
-- The record of a turn that is executed once is deleted if it has this token and the turn's backend has not run it; if
-- somebody else ended the turn, it says that for a while. If the backend may have run the turn, the record says from
-- now on that the turn has ended, even if the lock was lost before.
--
-- KEYS: lock, fence, queue, waiters; only if the turn is executed once: record
-- ARGV: token, not_after (µs), id; only with a record: "fingerprint turn id", for how long an ended turn is remembered
--       (ms), e if the backend may have run the turn; otherwise s or q if the turn is not to run, or ''
-- Reply: 1 if the lock was freed, plus 2 if no acquisition with this token can be executed any more
local token, not_after, id = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local record, once, keep_ms, fate = KEYS[5], ARGV[4], ARGV[5], ARGV[6]
local s = session(1)

-- Repeated with the command, it changes nothing.
local function settle_record()
  local state, _, turn, _, record_token = read_record(record)
  local is_own = turn == string.match(once, '^%S+ (%S+)')
  local is_sent = fate == 'e'
  if is_sent and state ~= 'e' and (is_own or not state) then
    -- Behind a write that needs no memory, for a Redis whose memory is full.
    redis.call('DEL', record)
    redis.call('SET', record, 'e ' .. once .. ' ', 'PX', keep_ms)
  elseif not is_sent and record_token == token and state ~= 's' and state ~= 'q' then
    -- The message about a mark may have got lost.
    local why = fate ~= '' and fate or ignoring_types(dismissal, s, id)
    if why then
      dismiss(record, once, token, why)
    else
      redis.call('DEL', record)
    end
  end
end

-- Leaves the queue, and deletes the mark of a turn that a newer one replaced.
local function leave_for_good()
  leave(s, id)
  if redis.call('HGET', s.waiters, id) == '^' then
    redis.call('HDEL', s.waiters, id)
  end
end

if record then
  -- Whatever comes of it, the lock is freed.
  pcall(settle_record)
end

local final = now > not_after and 2 or 0
local has_queue = redis.call('EXISTS', s.queue, s.waiters) > 0
if has_queue then
  -- If the queue is another program's key, nobody leaves it and nobody gets the lock, which is freed all the same.
  ignoring_types(leave_for_good)
end
if ignoring_types(redis.call, 'GET', s.lock) ~= token then
  return final
end
local ahead = (last_fence(s) or 0) - now
if ahead < 0 then
  redis.call('DEL', s.lock, s.fence)
else
  redis.call('DEL', s.lock)
  local ahead_ms = math.floor(ahead / 1000) + 1
  if ahead_ms < redis.call('PTTL', s.fence) then
    redis.call('PEXPIRE', s.fence, ahead_ms)
  end
end
if has_queue then
  pcall(offer, s)
end
return final + 1
