-- Ends an operation that has not begun (a sampling one also while it runs). It keeps its place in its run's order.
-- KEYS  1 operation  2 events  3 skipped  4 cancelled (stream that samplers read)
-- ARGV  1 operation name  2 seq_id  3 error  4 ms to keep a finished operation  5 'trains' | 'samples'
-- Returns 1 if it was cancelled now, else 0
local operation, events, skipped, cancelled = unpack(KEYS)
local trains = ARGV[5] == 'trains'
local state = redis.call('HGET', operation, 'state')
local cancellable = state == 'parked' or state == 'queued' or (state == 'running' and not trains)
if not cancellable then return 0 end
redis.call('HSET', operation, 'state', 'cancelled', 'error', ARGV[3])
redis.call('PEXPIRE', operation, ARGV[4])
if trains then
  redis.call('SADD', skipped, ARGV[2])
elseif state == 'running' then
  redis.call('XADD', cancelled, 'MAXLEN', '~', 10000, '*', 'operation', ARGV[1])
end
redis.call('XADD', events, 'MAXLEN', '~', 100000, '*', 'operation', ARGV[1])
return 1
