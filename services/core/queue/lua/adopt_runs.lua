-- Moves the waiting runs of one name of a base model to those of another.
-- KEYS  1 waiting runs to move  2 where to
-- Returns how many were moved
local from, to = unpack(KEYS)
local moved = redis.call('XRANGE', from, '-', '+')
for _, entry in ipairs(moved) do redis.call('XADD', to, '*', unpack(entry[2])) end
redis.call('DEL', from)
return #moved
