-- Cancels an operation that has not begun (a sampling one also while it runs). In a run, its seq_id stays used.
-- KEYS  1 operation  2 events  3 skipped  4 cancelled (stream that samplers read)
-- ARGV  1 operation name  2 seq_id  3 error  4 ms to keep a finished operation  5 'trains' | 'samples'
--       6 waiting  7 jobs of a base model's sampling (prefixes of keys)  8 reader or '': only if it is the last reader
-- Returns nil if nothing was cancelled, else the operation's entry; '' if the entry stays in its log or queue
local operation, events, skipped, cancelled = unpack(KEYS)
local trains = ARGV[5] == 'trains'
local state = redis.call('HGET', operation, 'state')
local cancellable = state == 'parked' or state == 'queued' or (state == 'running' and not trains)
if not cancellable then return nil end
if ARGV[8] ~= '' and redis.call('HGET', operation, 'reader') ~= ARGV[8] then return nil end
local entry = ''
if trains then
  redis.call('SADD', skipped, ARGV[2])
elseif state == 'running' then
  redis.call('XADD', cancelled, 'MAXLEN', '~', 10000, '*', 'operation', ARGV[1])
else
  local base_model = redis.call('HGET', operation, 'base_model')
  if redis.call('ZREM', ARGV[6] .. base_model, ARGV[1]) == 1 then
    entry = redis.call('HGET', ARGV[7] .. base_model, ARGV[1])
    redis.call('HDEL', ARGV[7] .. base_model, ARGV[1])
  end
end
finish(operation, events, ARGV[1], 'cancelled', 'error', ARGV[3], ARGV[4])
return entry
