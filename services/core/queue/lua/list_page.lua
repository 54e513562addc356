-- One page of a sorted set, highest score first, after a cursor: the score and the member that the previous page
-- ended with. Concurrent changes shift nothing: an entry is listed once or, if it was added later, not at all.
-- KEYS  1 index
-- ARGV  1 size  2 score of the cursor or ''  3 member of the cursor  4 entries to skip
-- Returns {entries in all, 1 if more follow, member, score, member, score, ...}
local index, size, score, member, skip = KEYS[1], tonumber(ARGV[1]), ARGV[2], ARGV[3], tonumber(ARGV[4])
local start = skip
if score ~= '' then
  start = start + redis.call('ZCOUNT', index, '(' .. score, '+inf')
  for _, tied in ipairs(redis.call('ZREVRANGEBYSCORE', index, score, score)) do
    if tied < member then break end
    start = start + 1
  end
end
local found = redis.call('ZREVRANGE', index, start, start + size - 1, 'WITHSCORES')
local total = redis.call('ZCARD', index)
local more = 0
if start + #found / 2 < total then more = 1 end
return {total, more, unpack(found)}
