-- Opens a session, unless too many are alive. Of a tenant's sessions that are not open the oldest go where there would
-- be more than as many of these as may be open: those that have ended first.
-- KEYS  1 session  2 the tenant's sessions  3 open sessions in all  4 open sessions of the tenant
-- ARGV  1 prefix of all keys  2 session_id  3 tenant  4 metadata  5 ms for which a silent session counts as alive
--       6 most of a tenant  7 most in all
-- Returns {'opened'} | {'full', whose, how many, limit}
local session, sessions = KEYS[1], KEYS[2]
local prefix, session_id, tenant, metadata = unpack(ARGV, 1, 4)
local now = now_ms()
local scopes = {{KEYS[4], tenant, tonumber(ARGV[6])}, {KEYS[3], '', tonumber(ARGV[7])}}
for _, scope in ipairs(scopes) do
  local open, whose, most = unpack(scope)
  redis.call('ZREMRANGEBYSCORE', open, '-inf', now - tonumber(ARGV[5]))
  local alive = redis.call('ZCARD', open)
  if alive >= most then return {'full', whose, alive, most} end
end
local kept = 2 * tonumber(ARGV[6])
for _, must_have_ended in ipairs({true, false}) do
  if redis.call('ZCARD', sessions) < kept then break end
  for _, other in ipairs(redis.call('ZRANGE', sessions, 0, -1)) do
    if redis.call('ZCARD', sessions) < kept then break end
    local ended = redis.call('HEXISTS', prefix .. 'session:' .. other, 'ended') == 1
    if ended or not (must_have_ended or redis.call('ZSCORE', KEYS[4], other)) then
      forget_session(prefix, other, tenant)
    end
  end
end
redis.call('HSET', session, 'tenant', tenant, 'metadata', metadata, 'created', now / 1000)
redis.call('ZADD', sessions, now / 1000, session_id)
mark_seen(prefix, session_id, tenant, now)
return {'opened'}
