-- Gives a run's lease back. A run with operations left becomes a waiting run for another trainer, an idle
-- one with its next operation.
-- KEYS  1 own  2 meta  3 waiting
-- ARGV  1 epoch  2 group  3 waiting entry  4 run
-- Returns 1, or 0 if the lease was lost already
local own, meta, waiting = unpack(KEYS)
if redis.call('HGET', own, 'epoch') ~= ARGV[1] then return 0 end
redis.call('HDEL', own, 'worker', 'expires')
redis.call('XACK', waiting, ARGV[2], ARGV[3])
redis.call('XDEL', waiting, ARGV[3])
local seqs = redis.call('HMGET', meta, 'next_seq', 'done_seq')
if tonumber(seqs[1] or '0') - tonumber(seqs[2] or '-1') > 1 then
  redis.call('XADD', waiting, '*', 'run', ARGV[4])
else
  redis.call('HDEL', meta, 'placed')
end
return 1
