-- Ends a sampling operation with its one result and takes it off the queue. Only the first result counts.
-- KEYS  1 operation  2 queue  3 events
-- ARGV  1 group  2 queue entry  3 operation name  4 state  5 result field  6 result  7 ms to keep a finished operation
-- Returns 'completed' | 'known'
local operation, queue, events = unpack(KEYS)
redis.call('XACK', queue, ARGV[1], ARGV[2])
redis.call('XDEL', queue, ARGV[2])
local state = redis.call('HGET', operation, 'state')
if state ~= 'queued' and state ~= 'running' then return 'known' end
redis.call('HSET', operation, 'state', ARGV[4], ARGV[5], ARGV[6])
redis.call('PEXPIRE', operation, ARGV[7])
redis.call('XADD', events, 'MAXLEN', '~', 100000, '*', 'operation', ARGV[3])
return 'completed'
