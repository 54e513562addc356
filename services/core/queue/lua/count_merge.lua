-- Counts a merge of a tenant for as long as its export may be there, unless there are too many; counting it again
-- changes nothing.
-- KEYS  1 merges of the tenant
-- ARGV  1 operation name  2 ms to count it  3 most
-- Returns 1, or 0 if there are too many
local now = now_ms()
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 1 end
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
