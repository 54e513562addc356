-- Marks an operation as begun by the lease's holder. One that has crashed its workers too often is failed instead.
-- KEYS  1 own  2 operation  3 skipped  4 dead  5 events
-- ARGV  1 epoch  2 operation name  3 seq_id  4 most attempts  5 error for too many
--       6 ms to keep a finished operation  7 error for a tenant without an API key
-- Returns 'run' | 'skip' (finished already) | 'fenced'
local own, operation, skipped, dead, events = unpack(KEYS)
if redis.call('HGET', own, 'epoch') ~= ARGV[1] then return 'fenced' end
local state = redis.call('HGET', operation, 'state')
if state ~= 'queued' and state ~= 'running' then return 'skip' end
if end_if_keyless(operation, events, ARGV[2], ARGV[7], ARGV[6]) then
  redis.call('SADD', skipped, ARGV[3])
  return 'skip'
end
if count_attempt(operation, 'epoch ' .. ARGV[1]) > tonumber(ARGV[4]) then
  redis.call('SADD', skipped, ARGV[3])
  redis.call('XADD', dead, 'MAXLEN', '~', 10000, '*', 'operation', ARGV[2])
  finish(operation, events, ARGV[2], 'failed', 'error', ARGV[5], ARGV[6])
  return 'skip'
end
redis.call('HSET', operation, 'state', 'running', 'begun', now_ms())
return 'run'
