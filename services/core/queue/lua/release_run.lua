-- Gives a run's lease back. A run with operations waiting is placed again for another trainer, an idle one by its next
-- operation.
-- KEYS  1 own  2 meta  3 place
-- ARGV  1 epoch  2 group  3 place entry  4 run
-- Returns 1, or 0 if the lease was lost already
local own, meta, place = unpack(KEYS)
if redis.call('HGET', own, 'epoch') ~= ARGV[1] then return 0 end
redis.call('HDEL', own, 'worker', 'expires')
redis.call('XACK', place, ARGV[2], ARGV[3])
redis.call('XDEL', place, ARGV[3])
local seqs = redis.call('HMGET', meta, 'next_seq', 'done_seq')
if tonumber(seqs[1] or '0') - tonumber(seqs[2] or '-1') > 1 then
  redis.call('XADD', place, '*', 'run', ARGV[4])
else
  redis.call('HDEL', meta, 'placed')
end
return 1
