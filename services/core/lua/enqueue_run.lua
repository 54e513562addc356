-- Accepts one operation of a training run: appends it to the run's log if it is next, parks it if it is early.
-- A refused operation (error given) takes its place in the order, finished.
-- KEYS  1 operation  2 log  3 meta  4 early  5 skipped  6 place  7 events  8 session
-- ARGV  1 seq_id  2 operation name  3 run  4 entry (job or its blob)  5 digest  6 method  7 tenant
--       8 most operations waiting  9 error or ''  10 ms to keep a finished operation
-- Returns {'accepted', state, ms since the epoch} | {'known', state} | {'conflict'} | {'expired'} | {'full', waiting}
local operation, log, meta, early, skipped, place, events, session = unpack(KEYS)
local seq = tonumber(ARGV[1])
local name, run, entry, digest, method, tenant = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local failure = ARGV[9]

local known = redis.call('HMGET', operation, 'state', 'digest')
if known[1] then
  if known[2] ~= digest then return {'conflict'} end
  return {'known', known[1]}
end
local next_seq = tonumber(redis.call('HGET', meta, 'next_seq') or '0')
if seq < next_seq then return {'expired'} end
local done_seq = tonumber(redis.call('HGET', meta, 'done_seq') or '-1')
local waiting = next_seq - done_seq - 1 + redis.call('HLEN', early)
if waiting >= tonumber(ARGV[8]) or seq - next_seq >= tonumber(ARGV[8]) then return {'full', waiting} end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local state = 'queued'
if seq > next_seq then state = 'parked' end
if failure ~= '' then state = 'failed' end
redis.call('HSET', operation, 'state', state, 'digest', digest, 'method', method, 'tenant', tenant, 'time', now_ms)
redis.call('HSET', meta, 'last_request', now_ms)
redis.call('HSET', session, 'seen', now_ms / 1000)
if failure ~= '' then
  redis.call('HSET', operation, 'error', failure)
  redis.call('PEXPIRE', operation, ARGV[10])
  redis.call('SADD', skipped, seq)
  redis.call('XADD', events, 'MAXLEN', '~', 100000, '*', 'operation', name)
  entry = ''
end

if seq > next_seq then
  redis.call('HSET', early, seq, entry)
  return {'accepted', state, now_ms}
end
local prefix = string.sub(operation, 1, #operation - #tostring(ARGV[1]))
while entry do
  redis.call('XADD', log, seq .. '-1', 'entry', entry)
  if redis.call('HGET', prefix .. seq, 'state') == 'parked' then
    redis.call('HSET', prefix .. seq, 'state', 'queued')
  end
  redis.call('HDEL', early, seq)
  seq = seq + 1
  entry = redis.call('HGET', early, seq)
end
redis.call('HSET', meta, 'next_seq', seq)
if redis.call('HSETNX', meta, 'placed', 1) == 1 then
  redis.call('XADD', place, '*', 'run', run)
end
return {'accepted', state, now_ms}
