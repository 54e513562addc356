-- Opens a sampling session, unless its tenant has too many; opening it again keeps the first record. Those of the
-- tenant that nobody has used for long are removed first, and those of ended sessions where there would be too many.
-- KEYS  1 sampling session  2 sampling sessions of its session  3 of its tenant, by their last use (ms)
-- ARGV  1 prefix of all keys  2 sampling_session_id  3 tenant  4 location  5 record  6 run that it follows or ''
--       7 most of a tenant
-- Returns 'opened' | 'known' | 'full'
local sampling, of_session, of_tenant = unpack(KEYS)
local prefix, name, tenant = unpack(ARGV, 1, 3)
if redis.call('EXISTS', sampling) == 1 then return 'known' end
local now = now_ms()
for _, unused in ipairs(redis.call('ZRANGEBYSCORE', of_tenant, '-inf', now - KEEP_SESSIONS_MS, 'LIMIT', 0, 100)) do
  forget_sampling(prefix, unused, tenant)
end
local most = tonumber(ARGV[7])
if redis.call('ZCARD', of_tenant) >= most then
  for _, other in ipairs(redis.call('ZRANGE', of_tenant, 0, 999)) do
    local session = prefix .. 'session:' .. string.match(other, '^[^:]+')
    if redis.call('HEXISTS', session, 'ended') == 1 then forget_sampling(prefix, other, tenant) end
  end
  if redis.call('ZCARD', of_tenant) >= most then return 'full' end
end
redis.call('HSET', sampling, 'tenant', tenant, 'location', ARGV[4], 'record', ARGV[5])
if ARGV[6] ~= '' then redis.call('HSET', sampling, 'follows', ARGV[6]) end
redis.call('PEXPIRE', sampling, KEEP_SESSIONS_MS)
redis.call('ZADD', of_session, now / 1000, name)
redis.call('ZADD', of_tenant, now, name)
return 'opened'
