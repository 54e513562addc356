-- Removes sessions that have ended, or were last seen, a while ago, with their sampling sessions. Training runs stay.
-- KEYS  1 sessions of the tenant
-- ARGV  1 prefix of all keys  2 tenant  3.. sessions to look at
-- Returns the number of those that were removed
local prefix, before, removed = ARGV[1], now_ms() - KEEP_SESSIONS_MS, 0
for i = 3, #ARGV do
  local seen = redis.call('HMGET', prefix .. 'session:' .. ARGV[i], 'ended', 'seen')
  local last = tonumber(seen[1] or seen[2] or '0') * 1000
  if last < before then
    forget_session(prefix, ARGV[i], ARGV[2])
    removed = removed + 1
  end
end
return removed
