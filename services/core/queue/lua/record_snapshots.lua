-- Records which snapshots of a run are kept, once their files are on the disk.
-- KEYS  1 own  2 meta
-- ARGV  1 epoch  2 names, newest first, with a space between them
-- Returns 'recorded' | 'fenced'
local own, meta = unpack(KEYS)
if redis.call('HGET', own, 'epoch') ~= ARGV[1] then return 'fenced' end
redis.call('HSET', meta, 'snapshots', ARGV[2])
return 'recorded'
