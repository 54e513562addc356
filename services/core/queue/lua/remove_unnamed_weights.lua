-- Removes unnamed weights that nobody needs, of those whose turn it is; the others' turn comes again.
-- KEYS  1 due (locations by the time of the next look)  2 unreferenced
-- ARGV  1 prefix of all keys  2 ms to keep after the last use  3 newest ones of a run that are kept
--       4 ms that a session may be silent  5 ms until the next look  6 most to look at
-- Returns how many it has looked at
local due, unreferenced = KEYS[1], KEYS[2]
local prefix, unused_ms, newest, silent_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_ms()

local function session_lives(run)
  local session = redis.call('HMGET', prefix .. 'session:' .. string.match(run, '^[^:]+'), 'seen', 'ended')
  return session[1] and not session[2] and now - session[1] * 1000 < silent_ms
end

local function is_needed(location, run, used, operations)
  if tonumber(operations or '0') > 0 or now - tonumber(used) < unused_ms then return true end
  if not session_lives(run) then return false end
  for _, kept in ipairs(redis.call('ZREVRANGE', prefix .. 'run-unnamed:' .. run, 0, newest - 1)) do
    if kept == location then return true end
  end
  local inflight = redis.call('ZREVRANGE', prefix .. 'inflight:' .. run, 0, 0)[1]
  return inflight ~= nil and string.match(inflight, '^[^ ]*') == location
end

local looked_at = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, ARGV[6])
for _, location in ipairs(looked_at) do
  local weights = prefix .. 'unnamed:' .. location
  local fields = redis.call('HMGET', weights, 'run', 'used', 'operations')
  if fields[1] and is_needed(location, unpack(fields)) then
    redis.call('ZADD', due, now + ARGV[5], location)
  else
    redis.call('DEL', weights)
    redis.call('ZREM', due, location)
    if fields[1] then
      redis.call('ZREM', prefix .. 'run-unnamed:' .. fields[1], location)
      redis.call('ZADD', unreferenced, now, location)
    end
  end
end
return #looked_at
