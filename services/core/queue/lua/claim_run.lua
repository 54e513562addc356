-- Takes a run's lease if it is free, expired, or the caller's own. The epoch only ever grows: it fences older owners.
-- KEYS  1 own
-- ARGV  1 worker  2 lease in ms
-- Returns the new epoch, or 0 if another worker holds the lease
local now = now_ms()
local holder = redis.call('HMGET', KEYS[1], 'worker', 'expires')
if holder[1] and holder[1] ~= ARGV[1] and tonumber(holder[2]) > now then return 0 end
redis.call('HSET', KEYS[1], 'worker', ARGV[1], 'expires', now + tonumber(ARGV[2]))
return redis.call('HINCRBY', KEYS[1], 'epoch', 1)
