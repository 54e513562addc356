-- Sets or removes one property of a checkpoint, for its owner.
-- KEYS  1 checkpoint  2 expiring
-- ARGV  1 tenant  2 path  3 'public' | 'expires'  4 '1', or ms from now on; '' removes the property
-- Returns the checkpoint's fields, or 'missing' (no such checkpoint, expired, or not readable) | 'denied'
local checkpoint, expiring = KEYS[1], KEYS[2]
local now = now_ms()
local state = redis.call('HMGET', checkpoint, 'tenant', 'public', 'expires')
if not state[1] or (state[3] and tonumber(state[3]) <= now) then return 'missing' end
if state[1] ~= ARGV[1] then return state[2] and 'denied' or 'missing' end
local field, value = ARGV[3], ARGV[4]
if field == 'expires' then
  if value == '' then
    redis.call('ZREM', expiring, ARGV[2])
  else
    value = string.format('%.0f', now + tonumber(value))
    redis.call('ZADD', expiring, value, ARGV[2])
  end
end
if value == '' then
  redis.call('HDEL', checkpoint, field)
else
  redis.call('HSET', checkpoint, field, value)
end
return redis.call('HGETALL', checkpoint)
