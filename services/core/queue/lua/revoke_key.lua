-- Makes an API key unusable and tells the gateways, which end what its callers have open. A tenant without another key
-- is marked: no worker begins its operations.
-- KEYS  1 digests of keys by id  2 revocations (stream)  3 tenants without a key
-- ARGV  1 id of the key  2 prefix of the keys of API keys
-- Returns the tenant, or nil if there is no such key
local digests, revocations, keyless = unpack(KEYS)
local digest = redis.call('HGET', digests, ARGV[1])
if not digest then return nil end
local tenant = redis.call('HGET', ARGV[2] .. digest, 'tenant') or ''
redis.call('DEL', ARGV[2] .. digest)
redis.call('HDEL', digests, ARGV[1])
local last = 1
for _, other in ipairs(redis.call('HVALS', digests)) do
  if redis.call('HGET', ARGV[2] .. other, 'tenant') == tenant then last = 0 end
end
if last == 1 then redis.call('SADD', keyless, tenant) end
redis.call('XADD', revocations, 'MAXLEN', '~', 1000, '*', 'digest', digest, 'tenant', tenant, 'last', last)
return tenant
