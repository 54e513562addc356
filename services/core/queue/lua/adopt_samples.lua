-- Moves the sampling operations of one name of a base model to the queue of another, those that a sampler had taken too:
-- the samplers that served that name are gone.
-- KEYS  1 waiting (turns)  2 jobs  3 shares  4 pace  5 queue, all to be moved  6 waiting (turns)  7 jobs  8 shares
--       9 wake stream, where to
-- ARGV  1 operation (prefix of keys)  2 base model
-- Returns how many were moved
local from_waiting, from_jobs, from_shares, from_pace, from_queue, waiting, jobs, shares, wake = unpack(KEYS)
local turn = redis.call('HGET', shares, 'clock') or '0'
local moved = 0

local function adopt(name, entry)
  redis.call('HSET', ARGV[1] .. name, 'base_model', ARGV[2])
  redis.call('ZADD', waiting, turn, name)
  redis.call('HSET', jobs, name, entry)
  moved = moved + 1
end

for _, found in ipairs(redis.call('XRANGE', from_queue, '-', '+')) do
  local fields = {}
  for i = 1, #found[2], 2 do fields[found[2][i]] = found[2][i + 1] end
  adopt(fields.operation, fields.entry)
end
for _, name in ipairs(redis.call('ZRANGE', from_waiting, 0, -1)) do
  adopt(name, redis.call('HGET', from_jobs, name))
end
redis.call('DEL', from_waiting, from_jobs, from_shares, from_pace, from_queue)
if moved > 0 then redis.call('XADD', wake, 'MAXLEN', 1, '*', 'rung', 1) end
return moved
