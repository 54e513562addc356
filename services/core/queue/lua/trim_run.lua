-- Removes the beginning of a run's log, which no replay from a kept snapshot needs.
-- KEYS  1 own  2 log  3 skipped  4 sources
-- ARGV  1 epoch  2 last seq_id to remove
-- Returns 'trimmed' | 'fenced'
local own, log, skipped, sources = unpack(KEYS)
if redis.call('HGET', own, 'epoch') ~= ARGV[1] then return 'fenced' end
local last = tonumber(ARGV[2])
redis.call('XTRIM', log, 'MINID', (last + 1) .. '-0')
for _, seq in ipairs(redis.call('SMEMBERS', skipped)) do
  if tonumber(seq) <= last then redis.call('SREM', skipped, seq) end
end
for _, seq in ipairs(redis.call('HKEYS', sources)) do
  if tonumber(seq) <= last then redis.call('HDEL', sources, seq) end
end
return 'trimmed'
