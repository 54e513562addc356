-- Notes who reads the tokens of an operation; the reader before it no longer counts.
-- KEYS  1 operation
-- ARGV  1 reader
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'reader', ARGV[1]) end
return 1
