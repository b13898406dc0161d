-- Takes a waiter out of the queue, for an operator, and sends its instance a message. If the message gets lost, the
-- waiter asks again and finds a mark: its entry in the hash is "-".
--
-- KEYS: lock, fence, queue, waiters
-- ARGV: id
-- Reply: 1 if the waiter was in the queue, otherwise 0
local id = ARGV[1]
local s = session(1)

local function dequeue()
  local channel = waiter(s, id)
  if redis.call('ZREM', s.queue, id) == 0 then
    return 0
  end
  redis.call('HSET', s.waiters, id, '-')
  -- "!" keeps the hash, in which the mark is, until its TTL ends. No ticket is smaller than 0.
  if redis.call('HEXISTS', s.waiters, '!') == 0 then
    redis.call('HSET', s.waiters, '!', 0)
  end
  redis.call('PEXPIRE', s.waiters, QUEUE_TTL)
  send_message(channel, 'dequeued', id)
  -- For an instance of an older version, which doesn't know the other message.
  send_message(channel, 'superseded', id)
  return 1
end

return ignoring_types(dequeue) or 0
