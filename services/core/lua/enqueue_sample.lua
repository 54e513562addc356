-- Accepts one sampling operation.
-- KEYS  1 operation  2 queue
-- ARGV  1 operation name  2 entry (job or its blob)  3 digest  4 method  5 tenant  6 most operations waiting
-- Returns {'accepted', state, ms since the epoch} | {'known', state} | {'conflict'} | {'full', waiting}
local operation, queue = KEYS[1], KEYS[2]
local known = redis.call('HMGET', operation, 'state', 'digest')
if known[1] then
  if known[2] ~= ARGV[3] then return {'conflict'} end
  return {'known', known[1]}
end
local waiting = redis.call('XLEN', queue)
if waiting >= tonumber(ARGV[6]) then return {'full', waiting} end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', operation, 'state', 'queued', 'digest', ARGV[3], 'method', ARGV[4], 'tenant', ARGV[5], 'time', now_ms)
redis.call('XADD', queue, '*', 'operation', ARGV[1], 'entry', ARGV[2])
return {'accepted', 'queued', now_ms}
