-- Notes that a tenant uses its unnamed weights.
-- KEYS  1 weights
-- ARGV  1 tenant
-- Returns the fields, or 'gone'
if redis.call('HGET', KEYS[1], 'tenant') ~= ARGV[1] then return 'gone' end
redis.call('HSET', KEYS[1], 'used', now_ms())
return redis.call('HGETALL', KEYS[1])
