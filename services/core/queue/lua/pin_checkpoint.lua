-- Keeps the files of a checkpoint for somebody who may read it, whatever becomes of the checkpoint.
-- KEYS  1 checkpoint
-- ARGV  1 tenant  2 who pins  3 prefix of the keys of pins
-- Returns the checkpoint's fields, or 'missing' (nobody's, expired, or not this tenant's to read)
local now = now_ms()
local state = redis.call('HMGET', KEYS[1], 'tenant', 'public', 'expires', 'location')
if not state[1] or (state[1] ~= ARGV[1] and not state[2]) then return 'missing' end
if state[3] and tonumber(state[3]) <= now then return 'missing' end
redis.call('SADD', ARGV[3] .. state[4], ARGV[2])
return redis.call('HGETALL', KEYS[1])
