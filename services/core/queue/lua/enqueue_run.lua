-- Accepts one operation of a training run: appends it to the run's log if it is next, parks it if it is early.
-- A refused operation (error given) keeps its position in the order and is finished at once.
-- KEYS  1 operation  2 log  3 meta  4 early  5 skipped  6 waiting runs  7 events
-- ARGV  1 seq_id  2 operation name  3 run  4 entry (job or its blob)  5 digest  6 method  7 tenant
--       8 error or ''  9 ms to keep a finished operation  10 bytes of the job  11 most operations of one run waiting
--       12.. limits (see `overload`)
-- Returns {'accepted', state, ms since the epoch} | {'known', state} | {'conflict'} | {'expired'} | {'full', ...}
local operation, log, meta, early, skipped, waiting_runs, events = unpack(KEYS)
local seq = tonumber(ARGV[1])
local name, run, entry, digest, method, tenant = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local failure, keep_ms, bytes, most = ARGV[8], ARGV[9], tonumber(ARGV[10]), tonumber(ARGV[11])

local known = redis.call('HMGET', operation, 'state', 'digest')
if known[1] then
  if known[2] ~= digest then return {'conflict'} end
  return {'known', known[1]}
end
local next_seq = tonumber(redis.call('HGET', meta, 'next_seq') or '0')
if seq < next_seq then return {'expired'} end
local done_seq = tonumber(redis.call('HGET', meta, 'done_seq') or '-1')
local parked = redis.call('HLEN', early)
local waiting = next_seq - done_seq - 1 + parked
if waiting >= most or seq - next_seq >= most then return {'full', run, 'operations', waiting, most} end
-- The operation that parked ones wait for is accepted over the limits: they count too, and could never run otherwise.
local closes_gap = seq == next_seq and parked > 0
if failure == '' and not closes_gap then
  local full = overload(prefix_of(operation, name), tenant, 'operations', bytes, {unpack(ARGV, 12)})
  if full then return full end
end

local now = now_ms()
local state = 'queued'
if seq > next_seq then state = 'parked' end
if failure ~= '' then state = 'failed' end
redis.call('HSET', operation, 'state', state, 'digest', digest, 'method', method, 'tenant', tenant, 'time', now)
redis.call('HSET', meta, 'last_request', now)
mark_seen(prefix_of(operation, name), string.match(name, '^[^:]+'), tenant, now)
if failure ~= '' then
  finish(operation, events, name, state, 'error', failure, keep_ms)
  redis.call('SADD', skipped, seq)
  entry = ''
else
  count_in(operation, name, tenant, 'operations', bytes)
end

if seq > next_seq then
  redis.call('HSET', early, seq, entry)
  return {'accepted', state, now}
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
  redis.call('XADD', waiting_runs, '*', 'run', run)
end
return {'accepted', state, now}
