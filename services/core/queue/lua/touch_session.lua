-- Records that a session's client was seen.
-- KEYS  1 session
-- ARGV  1 prefix of all keys  2 session_id
local tenant = redis.call('HGET', KEYS[1], 'tenant')
if tenant then mark_seen(ARGV[1], ARGV[2], tenant, now_ms()) end
return 1
