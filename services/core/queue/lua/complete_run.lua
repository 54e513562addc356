-- Ends an operation of a run with its one result, advances the log past it, and executes the writes that must become
-- visible with it. A second result of the same operation changes nothing.
-- KEYS  1 own  2 meta  3 operation  4 skipped  5 events  (and the keys of the writes)
-- ARGV  1 epoch  2 operation name  3 seq_id  4 state  5 result field  6 result  7 ms to keep a finished operation
--       8.. writes: number of words, then the words of one Redis command, and so on
-- Returns 'completed' | 'known' | 'fenced'
local own, meta, operation, skipped, events = unpack(KEYS)
if redis.call('HGET', own, 'epoch') ~= ARGV[1] then return 'fenced' end
redis.call('HSET', meta, 'done_seq', ARGV[3])
local state = redis.call('HGET', operation, 'state')
if state ~= 'queued' and state ~= 'running' then return 'known' end
if ARGV[4] ~= 'succeeded' then redis.call('SADD', skipped, ARGV[3]) end
local at = 8
while at <= #ARGV do
  local words = tonumber(ARGV[at])
  redis.call(unpack(ARGV, at + 1, at + words))
  at = at + words + 1
end
finish(operation, events, ARGV[2], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
keep_pace(meta, tonumber(ARGV[3]) + 1 < tonumber(redis.call('HGET', meta, 'next_seq')))
return 'completed'
