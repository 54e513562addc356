-- Removes checkpoints from the catalog: one for its owner, or those that have expired. Their locations become
-- unreferenced: the files are deleted once no pin is left.
-- KEYS  1 expiring  2 unreferenced
-- ARGV  1 prefix of all keys  2 path of the one, or '' for the expired  3 its tenant  4 most expired ones to remove
-- Returns the one's fields, or 'missing' | 'denied'; or the number of expired ones that were removed
local expiring, unreferenced = KEYS[1], KEYS[2]
local prefix, path, tenant = ARGV[1], ARGV[2], ARGV[3]
local now = now_ms()

local function remove(path)
  local checkpoint = prefix .. 'checkpoint:' .. path
  local fields = redis.call('HMGET', checkpoint, 'tenant', 'location')
  local run, kind = string.match(path, '^tinker://([^/]+)/([^/]+)/')
  redis.call('DEL', checkpoint)
  redis.call('ZREM', expiring, path)
  if fields[1] then
    redis.call('ZREM', prefix .. 'checkpoints:' .. fields[1], path)
    redis.call('ZREM', prefix .. 'run-checkpoints:' .. run, path)
    redis.call('ZREM', prefix .. 'run-' .. kind .. ':' .. run, path)
    redis.call('ZADD', unreferenced, now, fields[2])
  end
end

if path == '' then
  local due = redis.call('ZRANGEBYSCORE', expiring, '-inf', now, 'LIMIT', 0, ARGV[4])
  for _, expired in ipairs(due) do remove(expired) end
  return #due
end
local checkpoint = prefix .. 'checkpoint:' .. path
local state = redis.call('HMGET', checkpoint, 'tenant', 'public', 'expires')
if not state[1] or (state[3] and tonumber(state[3]) <= now) then return 'missing' end
if state[1] ~= tenant then return state[2] and 'denied' or 'missing' end
local fields = redis.call('HGETALL', checkpoint)
remove(path)
return fields
