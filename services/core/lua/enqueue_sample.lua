-- Accepts one sampling operation.
-- KEYS  1 operation  2 queue  3 events
-- ARGV  1 operation name  2 entry (job or its blob; unused if refused)  3 digest  4 method  5 tenant
--       6 most operations waiting  7 error or ''  8 ms to keep a finished operation
-- Returns {'accepted', state} | {'known', state} | {'conflict'} | {'full', waiting}
local operation, queue, events = unpack(KEYS)
local known = redis.call('HMGET', operation, 'state', 'digest')
if known[1] then
  if known[2] ~= ARGV[3] then return {'conflict'} end
  return {'known', known[1]}
end
local waiting = redis.call('XLEN', queue)
if waiting >= tonumber(ARGV[6]) then return {'full', waiting} end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local state = ARGV[7] == '' and 'queued' or 'failed'
redis.call('HSET', operation, 'state', state, 'digest', ARGV[3], 'method', ARGV[4], 'tenant', ARGV[5], 'time', now_ms)
if state == 'failed' then
  redis.call('HSET', operation, 'error', ARGV[7])
  redis.call('PEXPIRE', operation, ARGV[8])
  redis.call('XADD', events, 'MAXLEN', '~', 100000, '*', 'operation', ARGV[1])
else
  redis.call('XADD', queue, '*', 'operation', ARGV[1], 'entry', ARGV[2])
end
return {'accepted', state}
