-- Extends the leases that the caller still holds.
-- KEYS  own of each run
-- ARGV  1 lease in ms  2.. epoch of each run
-- Returns a list of 1 (extended) and 0 (lost), in the order of KEYS
local now = now_ms()
local held = {}
for i, own in ipairs(KEYS) do
  if redis.call('HGET', own, 'epoch') == ARGV[i + 1] and redis.call('HEXISTS', own, 'worker') == 1 then
    redis.call('HSET', own, 'expires', now + tonumber(ARGV[1]))
    held[i] = 1
  else
    held[i] = 0
  end
end
return held
