-- Moves waiting operations of tenants that wait for nothing yet to the queue of those under way, for a sampler without
-- free slots, which gives them turns beside what it runs. At most one of each tenant; none while another sampler has
-- free slots and waits for work. Turns of the others stay as they are.
-- KEYS  1 waiting (turns)  2 jobs  3 queue  4 mark that a sampler has free slots
-- ARGV  1 sampler  2 group  3 prefix of the keys of operations  4 most operations  5 most waiting ones to look at
--       6.. tenants that wait for this sampler
-- Returns {{queue entry, fields} of each}
local waiting, jobs, queue = KEYS[1], KEYS[2], KEYS[3]
local sampler, group, operations, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if most <= 0 or redis.call('EXISTS', KEYS[4]) == 1 then return {} end
local passed_over = {}
for i = 6, #ARGV do passed_over[ARGV[i]] = true end
local taken = 0
for _, name in ipairs(redis.call('ZRANGE', waiting, 0, tonumber(ARGV[5]) - 1)) do
  if taken == most then break end
  local tenant, location = unpack(redis.call('HMGET', operations .. name, 'tenant', 'location'))
  if not passed_over[tenant] then
    passed_over[tenant] = true
    redis.call('XADD', queue, '*', 'operation', name, 'entry', redis.call('HGET', jobs, name), 'location', location)
    redis.call('ZREM', waiting, name)
    redis.call('HDEL', jobs, name)
    taken = taken + 1
  end
end
if taken == 0 then return {} end
return redis.call('XREADGROUP', 'GROUP', group, sampler, 'COUNT', taken, 'STREAMS', queue, '>')[1][2]
