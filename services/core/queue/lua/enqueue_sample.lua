-- Accepts one sampling operation: gives it a turn among those that wait, and wakes the samplers that wait for work.
--
-- Turns are fair between tenants (start-time fair queueing, Goyal, Vin and Cheng 1997): an operation's turn is the end
-- of the tenant's previous turn, or the turn that was taken last if that is later; it ends later by the cost.
-- KEYS  1 operation  2 waiting (turns)  3 jobs  4 shares  5 wake stream
-- ARGV  1 operation name  2 entry (job or its blob)  3 digest  4 method  5 tenant  6 base model  7 adapter's location or ''
--       8 sequences  9 most tokens that it may cost  10 bytes of the job  11.. limits (see `overload`)
-- Returns {'accepted', state, ms since the epoch} | {'known', state} | {'conflict'} | {'gone'} | {'full', ...}
local operation, waiting, jobs, shares, wake = unpack(KEYS)
local name, entry, digest, method, tenant, base_model, location = unpack(ARGV, 1, 7)
local known = redis.call('HMGET', operation, 'state', 'digest')
if known[1] then
  if known[2] ~= digest then return {'conflict'} end
  return {'known', known[1]}
end
local bytes, prefix = tonumber(ARGV[10]), prefix_of(operation, name)
local weights = unnamed_weights(prefix, location)
if weights and redis.call('EXISTS', weights) == 0 then return {'gone'} end
local full = overload(prefix, tenant, 'samples', bytes, {unpack(ARGV, 11)})
if full then return full end

local now = now_ms()
redis.call('HSET', operation, 'state', 'queued', 'digest', digest, 'method', method, 'tenant', tenant, 'time', now)
redis.call('HSET', operation, 'base_model', base_model, 'location', location, 'sequences', ARGV[8])
count_in(operation, name, tenant, 'samples', bytes)
if weights then redis.call('HINCRBY', weights, 'operations', 1) end
local ends = redis.call('HMGET', shares, 'clock', 'tenant:' .. tenant)
local turn = math.max(tonumber(ends[1] or '0'), tonumber(ends[2] or '0'))
redis.call('HSET', shares, 'tenant:' .. tenant, string.format('%.0f', turn + tonumber(ARGV[9])))
redis.call('ZADD', waiting, string.format('%.0f', turn), name)
redis.call('HSET', jobs, name, entry)
redis.call('XADD', wake, 'MAXLEN', 1, '*', 'rung', 1)
return {'accepted', 'queued', now}
