-- Ends a session; ending it again keeps the first time.
-- KEYS  1 session  2 open sessions in all  3 open sessions of the tenant
-- ARGV  1 session_id  2 what the client says about the end, or ''
if redis.call('HSETNX', KEYS[1], 'ended', now_ms() / 1000) == 1 and ARGV[2] ~= '' then
  redis.call('HSET', KEYS[1], 'finish', ARGV[2])
end
redis.call('PEXPIRE', KEYS[1], KEEP_SESSIONS_MS)
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[3], ARGV[1])
return 1
