-- Marks an operation as begun together with others by the lease's holder. One that was begun before must run alone.
-- KEYS  1 own  2 operation
-- ARGV  1 epoch
-- Returns 'run' | 'alone' (nothing was changed) | 'skip' (finished already) | 'fenced'
local own, operation = unpack(KEYS)
if redis.call('HGET', own, 'epoch') ~= ARGV[1] then return 'fenced' end
local state = redis.call('HGET', operation, 'state')
if state ~= 'queued' and state ~= 'running' then return 'skip' end
if state == 'running' then return 'alone' end
redis.call('HSET', operation, 'state', 'running')
return 'run'
