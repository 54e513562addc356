-- Removes a run that has no checkpoint, no unfinished operation, no trainer, and had no request for long.
-- KEYS  1 run  2 meta  3 own  4 checkpoints of the run  5 runs of the tenant  6 runs of the session  7.. all else of it
-- ARGV  1 run  2 ms to keep an idle one
-- Returns 1 if it was removed, else 0
local run, meta, own, checkpoints, of_tenant, of_session = unpack(KEYS, 1, 6)
local seqs = redis.call('HMGET', meta, 'next_seq', 'done_seq', 'last_request')
local created = redis.call('ZSCORE', of_tenant, ARGV[1])
if not created or redis.call('ZCARD', checkpoints) > 0 then return 0 end
if redis.call('HEXISTS', own, 'worker') == 1 then return 0 end
if tonumber(seqs[1] or '0') - tonumber(seqs[2] or '-1') > 1 then return 0 end
if tonumber(seqs[3] or created * 1000) >= now_ms() - tonumber(ARGV[2]) then return 0 end
redis.call('DEL', run, meta, own, checkpoints, unpack(KEYS, 7))
redis.call('ZREM', of_tenant, ARGV[1])
redis.call('ZREM', of_session, ARGV[1])
return 1
