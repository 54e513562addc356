-- What several scripts do alike: put before each of them.

local EVENTS_KEPT = 100000

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function announce(events, name)
  redis.call('XADD', events, 'MAXLEN', '~', EVENTS_KEPT, '*', 'operation', name)
end

-- What begins the keys of everything, given the key of the operation of this name.
local function prefix_of(operation, name)
  return string.sub(operation, 1, #operation - #name - #'operation:')
end

-- Says that a session is alive, unless it has ended.
local function hear_of(prefix, session_id, tenant, now)
  local session = prefix .. 'session:' .. session_id
  redis.call('HSET', session, 'seen', now / 1000)
  if redis.call('HEXISTS', session, 'ended') == 1 then return end
  redis.call('ZADD', prefix .. 'open-sessions', now, session_id)
  redis.call('ZADD', prefix .. 'open-sessions:' .. tenant, now, session_id)
end

local function add_load(prefix, tenant, kind, number, bytes)
  for _, load in ipairs({prefix .. 'load', prefix .. 'load:' .. tenant}) do
    redis.call('HINCRBY', load, kind, number)
    redis.call('HINCRBY', load, 'bytes', bytes)
  end
end

-- Counts an operation that was accepted among what waits, of its tenant and in all, until it is finished.
local function count_in(operation, name, tenant, kind, bytes)
  redis.call('HSET', operation, 'kind', kind, 'bytes', bytes)
  add_load(prefix_of(operation, name), tenant, kind, 1, bytes)
end

-- Which limit one more operation would exceed: {'full', whose, what, how much waits, limit}; nil if none. What is larger
-- than all that may wait is accepted while nothing else waits.
-- limits: number of the tenant's, number in all, bytes of the tenant's, bytes in all
local function overload(prefix, tenant, kind, bytes, limits)
  local scopes = {{'load:' .. tenant, tenant}, {'load', ''}}
  for i, scope in ipairs(scopes) do
    local waiting = redis.call('HMGET', prefix .. scope[1], kind, 'bytes')
    local number, waiting_bytes = tonumber(waiting[1] or '0'), tonumber(waiting[2] or '0')
    if number >= tonumber(limits[i]) then return {'full', scope[2], kind, number, limits[i]} end
    if waiting_bytes > 0 and waiting_bytes + bytes > tonumber(limits[i + 2]) then
      return {'full', scope[2], 'bytes', waiting_bytes, limits[i + 2]}
    end
  end
  return nil
end

-- Ends an operation with its one result.
local function finish(operation, events, name, state, field, content, keep_ms)
  local record = redis.call('HMGET', operation, 'tenant', 'kind', 'bytes')
  redis.call('HSET', operation, 'state', state, field, content)
  redis.call('PEXPIRE', operation, keep_ms)
  if record[2] then
    redis.call('HDEL', operation, 'kind', 'bytes')
    add_load(prefix_of(operation, name), record[1], record[2], -1, -record[3])
  end
  announce(events, name)
end

-- Counts whoever begins an operation, once each: a call that is repeated because its reply was lost is no second attempt.
-- Returns how many have begun it.
local function count_attempt(operation, beginner)
  if redis.call('HGET', operation, 'begun_by') == beginner then
    return tonumber(redis.call('HGET', operation, 'attempts'))
  end
  redis.call('HSET', operation, 'begun_by', beginner)
  return redis.call('HINCRBY', operation, 'attempts', 1)
end

-- Notes that one of a queue's operations has ended: busy / ended is the mean time in ms from one to the next while others
-- waited, of about the last fifty.
local function keep_pace(queue, others_wait)
  local now = now_ms()
  local pace = redis.call('HMGET', queue, 'last_end', 'busy', 'ended')
  if pace[1] then
    local busy = tonumber(pace[2] or '0') * 0.98 + now - tonumber(pace[1])
    redis.call('HSET', queue, 'busy', busy, 'ended', tonumber(pace[3] or '0') * 0.98 + 1)
  end
  if others_wait then
    redis.call('HSET', queue, 'last_end', now)
  else
    redis.call('HDEL', queue, 'last_end')
  end
end

