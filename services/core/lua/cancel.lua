-- Ends an operation that has not begun (a sampling one also while it runs). It keeps its place in its run's order.
-- KEYS  1 operation  2 events  3 skipped (training operations only)
-- ARGV  1 operation name  2 seq_id  3 error  4 ms to keep a finished operation
-- Returns 1 if it was cancelled now, else 0
local operation, events, skipped = KEYS[1], KEYS[2], KEYS[3]
local state = redis.call('HGET', operation, 'state')
local cancellable = state == 'parked' or state == 'queued' or (state == 'running' and not skipped)
if not cancellable then return 0 end
redis.call('HSET', operation, 'state', 'cancelled', 'error', ARGV[3])
redis.call('PEXPIRE', operation, ARGV[4])
if skipped then redis.call('SADD', skipped, ARGV[2]) end
redis.call('XADD', events, 'MAXLEN', '~', 100000, '*', 'operation', ARGV[1])
return 1
