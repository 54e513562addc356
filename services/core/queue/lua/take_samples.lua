-- Takes operations off what waits, in turn, onto the queue of those at work, in the name of one sampler, while it has room.
-- One whose adapter another sampler holds that waits for work is left to that one, which has been rung for too.
-- KEYS  1 waiting (turns)  2 jobs  3 shares  4 bell  5 queue  6 room of this sampler
-- ARGV  1 sampler  2 sequences that it has room for  3 group  4 ms that it waits if it has room left
--       5 operation  6 holder of an adapter  7 room of a sampler (prefixes of keys)
-- Returns {last entry of the bell, {queue entry, fields} of each}
local waiting, jobs, shares, bell, queue, room = unpack(KEYS)
local sampler, free, group = ARGV[1], tonumber(ARGV[2]), ARGV[3]

local function is_left_to_another(location)
  local holder = location ~= '' and redis.call('GET', ARGV[6] .. location)
  return holder and holder ~= sampler and redis.call('EXISTS', ARGV[7] .. holder) == 1
end

local names = free > 0 and redis.call('ZRANGE', waiting, 0, free - 1, 'WITHSCORES') or {}
local taken, clock = 0, tonumber(redis.call('HGET', shares, 'clock') or '0')
for i = 1, #names, 2 do
  if free <= 0 then break end
  local name, turn = names[i], names[i + 1]
  local location, sequences = unpack(redis.call('HMGET', ARGV[5] .. name, 'location', 'sequences'))
  if not is_left_to_another(location) then
    redis.call('XADD', queue, '*', 'operation', name, 'entry', redis.call('HGET', jobs, name), 'location', location)
    redis.call('ZREM', waiting, name)
    redis.call('HDEL', jobs, name)
    taken, free, clock = taken + 1, free - sequences, math.max(clock, tonumber(turn))
  end
end
if redis.call('ZCARD', waiting) == 0 then
  redis.call('DEL', shares)
elseif taken > 0 then
  redis.call('HSET', shares, 'clock', string.format('%.0f', clock))
  redis.call('XADD', bell, 'MAXLEN', 1, '*', 'rung', 1)
end
if free > 0 and taken == 0 then
  redis.call('SET', room, free, 'PX', ARGV[4])
else
  redis.call('DEL', room)
end
local rung = redis.call('XREVRANGE', bell, '+', '-', 'COUNT', 1)
local reply = {rung[1] and rung[1][1] or '0-0'}
if taken > 0 then
  local read = redis.call('XREADGROUP', 'GROUP', group, sampler, 'COUNT', taken, 'STREAMS', queue, '>')
  for _, found in ipairs(read[1][2]) do reply[#reply + 1] = found end
end
return reply
