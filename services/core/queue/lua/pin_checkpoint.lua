-- Pins the files of a checkpoint that the tenant may read, also after the checkpoint is deleted or replaced.
-- KEYS  1 checkpoint
-- ARGV  1 tenant  2 session or operation that pins  3 prefix of the keys of pins
-- Returns the checkpoint's fields, or 'missing' (no such checkpoint, expired, or not readable for the tenant)
local now = now_ms()
local state = redis.call('HMGET', KEYS[1], 'tenant', 'public', 'expires', 'location')
if not state[1] or (state[1] ~= ARGV[1] and not state[2]) then return 'missing' end
if state[3] and tonumber(state[3]) <= now then return 'missing' end
redis.call('SADD', ARGV[3] .. state[4], ARGV[2])
return redis.call('HGETALL', KEYS[1])
