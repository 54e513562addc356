-- Marks an operation as begun together with others by the lease's holder. One that was begun before must run alone.
-- KEYS  1 own  2 operation  3 skipped  4 events
-- ARGV  1 epoch  2 operation name  3 seq_id  4 ms to keep a finished operation  5 error for a tenant without an API key
-- Returns 'run' | 'alone' (nothing was changed) | 'skip' (finished already) | 'fenced'
local own, operation, skipped, events = unpack(KEYS)
if redis.call('HGET', own, 'epoch') ~= ARGV[1] then return 'fenced' end
local state = redis.call('HGET', operation, 'state')
if state ~= 'queued' and state ~= 'running' then return 'skip' end
if end_if_keyless(operation, events, ARGV[2], ARGV[5], ARGV[4]) then
  redis.call('SADD', skipped, ARGV[3])
  return 'skip'
end
if state == 'running' then return 'alone' end
redis.call('HSET', operation, 'state', 'running', 'begun', now_ms())
return 'run'
