-- Says that a sampler is about to wait for work, and makes its inbox if there is none.
-- KEYS  1 room  2 inbox
-- ARGV  1 sequences it has room for  2 ms that this holds  3 group  4 ms to keep the inbox of a sampler that is gone
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if redis.call('EXISTS', KEYS[2]) == 0 then redis.call('XGROUP', 'CREATE', KEYS[2], ARGV[3], '0', 'MKSTREAM') end
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
