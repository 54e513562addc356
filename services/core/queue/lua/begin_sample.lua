-- Marks a sampling operation as begun. One that has crashed its workers too often is failed instead.
-- KEYS  1 operation  2 events  3 dead  4 last user of the adapter
-- ARGV  1 operation name  2 most attempts  3 error for too many  4 ms to keep a finished operation  5 sampler
--       6 adapter's location or ''  7 ms to keep the adapter's last user  8 error for a tenant without an API key
-- Returns 'run' | 'skip' (finished already)
local operation, events, dead = unpack(KEYS)
local state = redis.call('HGET', operation, 'state')
if state ~= 'queued' and state ~= 'running' then return 'skip' end
if end_if_keyless(operation, events, ARGV[1], ARGV[8], ARGV[4]) then return 'skip' end
if count_attempt(operation, ARGV[5]) > tonumber(ARGV[2]) then
  redis.call('XADD', dead, 'MAXLEN', '~', 10000, '*', 'operation', ARGV[1])
  finish(operation, events, ARGV[1], 'failed', 'error', ARGV[3], ARGV[4])
  return 'skip'
end
redis.call('HSET', operation, 'state', 'running', 'begun', now_ms())
if ARGV[6] ~= '' then redis.call('SET', KEYS[4], ARGV[5], 'PX', ARGV[7]) end
return 'run'
