-- Moves waiting operations, in the order of their turns, to the queue of those under way, for one sampler with free
-- slots. One whose adapter another sampler used last is left to that sampler while it waits for work; it was woken too.
-- KEYS  1 waiting (turns)  2 jobs  3 shares  4 wake stream  5 queue  6 free slots of this sampler
--       7 mark that a sampler has free slots
-- ARGV  1 sampler  2 its free slots  3 group  4 ms that it waits if slots stay free
--       5 operation  6 last user of an adapter  7 free slots of a sampler (prefixes of keys)
-- Returns {last entry of the wake stream, {queue entry, fields} of each}
local waiting, jobs, shares, wake, queue, free_slots = unpack(KEYS)
local sampler, free, group = ARGV[1], tonumber(ARGV[2]), ARGV[3]

local function is_left_to_another(location)
  local user = location ~= '' and redis.call('GET', ARGV[6] .. location)
  return user and user ~= sampler and redis.call('EXISTS', ARGV[7] .. user) == 1
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
  redis.call('XADD', wake, 'MAXLEN', 1, '*', 'rung', 1)
end
if free > 0 and taken == 0 then
  redis.call('SET', free_slots, free, 'PX', ARGV[4])
  redis.call('SET', KEYS[7], sampler, 'PX', ARGV[4])
else
  redis.call('DEL', free_slots)
  if redis.call('GET', KEYS[7]) == sampler then redis.call('DEL', KEYS[7]) end
end
local newest = redis.call('XREVRANGE', wake, '+', '-', 'COUNT', 1)
local reply = {newest[1] and newest[1][1] or '0-0'}
if taken > 0 then
  local read = redis.call('XREADGROUP', 'GROUP', group, sampler, 'COUNT', taken, 'STREAMS', queue, '>')
  for _, found in ipairs(read[1][2]) do reply[#reply + 1] = found end
end
return reply
