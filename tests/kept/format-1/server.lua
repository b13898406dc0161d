-- Names the server.
--
-- KEYS: none
-- Reply: its run_id, or nothing if it has none
return string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
