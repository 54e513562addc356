-- Ends a sampling operation with its one result and removes it from the queue. Only the first result counts.
-- KEYS  1 operation  2 queue  3 events  4 waiting  5 pace
-- ARGV  1 group  2 queue entry  3 operation name  4 state  5 result field  6 result  7 ms to keep a finished operation
-- Returns 'completed' | 'known'
local operation, queue, events, waiting, pace = unpack(KEYS)
redis.call('XACK', queue, ARGV[1], ARGV[2])
redis.call('XDEL', queue, ARGV[2])
local state = redis.call('HGET', operation, 'state')
if state ~= 'queued' and state ~= 'running' then return 'known' end
finish(operation, events, ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
keep_pace(pace, redis.call('ZCARD', waiting) > 0)
return 'completed'
