-- Accepts one sampling operation. If the sampler that holds its adapter waits for work, the queue's oldest job is taken
-- in that sampler's name at once; else it goes to whoever asks next. Either way jobs leave the queue in order.
-- KEYS  1 operation  2 queue  3 holder of the adapter
-- ARGV  1 operation name  2 entry (job or its blob)  3 digest  4 method  5 tenant  6 most operations waiting
--       7 adapter's location or ''  8 sequences  9 group  10 room of a sampler  11 inbox of a sampler (prefixes of keys)
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
redis.call('XADD', queue, '*', 'operation', ARGV[1], 'entry', ARGV[2], 'location', ARGV[7])

local sampler = ARGV[7] ~= '' and redis.call('GET', KEYS[3])
local room = sampler and ARGV[10] .. sampler
if room and tonumber(redis.call('GET', room) or '0') > 0 then
  local read = redis.call('XREADGROUP', 'GROUP', ARGV[9], sampler, 'COUNT', 1, 'STREAMS', queue, '>')
  local id, fields = unpack(read[1][2][1])
  redis.call('XADD', ARGV[11] .. sampler, '*', 'taken', id, unpack(fields))
  redis.call('DECRBY', room, ARGV[8])
end
return {'accepted', 'queued', now_ms}
