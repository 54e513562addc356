-- Functions that several scripts share; put before each of them, behind `local EVENTS_KEPT = ...` and KEEP_SESSIONS_MS (connection.py).

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function announce(events, name)
  redis.call('XADD', events, 'MAXLEN', '~', EVENTS_KEPT, '*', 'operation', name)
end

-- The prefix of all keys, given the key of the operation of this name.
local function prefix_of(operation, name)
  return string.sub(operation, 1, #operation - #name - #'operation:')
end

-- Records that a session was seen; an ended one does not open again. One that was forgotten keeps that mark for an hour:
-- its runs are in use.
local function mark_seen(prefix, session_id, tenant, now)
  local session = prefix .. 'session:' .. session_id
  redis.call('HSET', session, 'seen', now / 1000)
  redis.call('PEXPIRE', session, KEEP_SESSIONS_MS)
  if redis.call('HEXISTS', session, 'tenant') == 0 then
    redis.call('EXPIRE', session, 3600)
    return
  end
  if redis.call('HEXISTS', session, 'ended') == 1 then return end
  redis.call('ZADD', prefix .. 'open-sessions', now, session_id)
  redis.call('ZADD', prefix .. 'open-sessions:' .. tenant, now, session_id)
end

local function forget_sampling(prefix, name, tenant)
  local session_id = string.match(name, '^[^:]+')
  redis.call('DEL', prefix .. 'sampling:' .. name)
  redis.call('ZREM', prefix .. 'session-samplings:' .. session_id, name)
  redis.call('ZREM', prefix .. 'samplings:' .. tenant, name)
end

-- Removes a session with its sampling sessions; its training runs stay.
local function forget_session(prefix, session_id, tenant)
  for _, name in ipairs(redis.call('ZRANGE', prefix .. 'session-samplings:' .. session_id, 0, -1)) do
    forget_sampling(prefix, name, tenant)
  end
  redis.call('DEL', prefix .. 'session:' .. session_id, prefix .. 'session-runs:' .. session_id)
  redis.call('ZREM', prefix .. 'sessions:' .. tenant, session_id)
  redis.call('ZREM', prefix .. 'open-sessions', session_id)
  redis.call('ZREM', prefix .. 'open-sessions:' .. tenant, session_id)
end

local function add_load(prefix, tenant, kind, number, bytes)
  for _, load in ipairs({prefix .. 'load', prefix .. 'load:' .. tenant}) do
    redis.call('HINCRBY', load, kind, number)
    redis.call('HINCRBY', load, 'bytes', bytes)
  end
end

-- Counts an accepted operation as load of its tenant and of all, until it is finished.
local function count_in(operation, name, tenant, kind, bytes)
  redis.call('HSET', operation, 'kind', kind, 'bytes', bytes)
  add_load(prefix_of(operation, name), tenant, kind, 1, bytes)
end

-- The limit that one more operation would exceed: {'full', whose, what, load, limit}; nil if none. A request that is
-- larger than the byte limit is accepted while there is no other load.
-- limits: number of the tenant's, number in all, bytes of the tenant's, bytes in all
local function overload(prefix, tenant, kind, bytes, limits)
  local scopes = {{prefix .. 'load:' .. tenant, tenant}, {prefix .. 'load', ''}}
  for i, scope in ipairs(scopes) do
    local waiting = redis.call('HMGET', scope[1], kind, 'bytes')
    local number, waiting_bytes = tonumber(waiting[1] or '0'), tonumber(waiting[2] or '0')
    if number >= tonumber(limits[i]) then return {'full', scope[2], kind, number, limits[i]} end
    if waiting_bytes > 0 and waiting_bytes + bytes > tonumber(limits[i + 2]) then
      return {'full', scope[2], 'bytes', waiting_bytes, limits[i + 2]}
    end
  end
  return nil
end

-- The record of the unnamed weights at a location; nil if the location is one of a checkpoint or empty.
local function unnamed_weights(prefix, location)
  if not string.find(location or '', '/unnamed/', 1, true) then return nil end
  return prefix .. 'unnamed:' .. location
end

-- Ends an operation with its one result.
local function finish(operation, events, name, state, field, content, keep_ms)
  local record = redis.call('HMGET', operation, 'tenant', 'kind', 'bytes', 'location')
  redis.call('HSET', operation, 'state', state, field, content)
  redis.call('PEXPIRE', operation, keep_ms)
  if record[2] then
    redis.call('HDEL', operation, 'kind', 'bytes')
    local prefix = prefix_of(operation, name)
    add_load(prefix, record[1], record[2], -1, -record[3])
    local weights = unnamed_weights(prefix, record[4] or '')
    if weights and redis.call('EXISTS', weights) == 1 then
      redis.call('HINCRBY', weights, 'operations', -1)
      redis.call('HSET', weights, 'used', now_ms())
    end
  end
  announce(events, name)
end

-- Ends an operation that waits, if its tenant has no API key any more; returns whether it did.
local function end_if_keyless(operation, events, name, content, keep_ms)
  local prefix, tenant = prefix_of(operation, name), redis.call('HGET', operation, 'tenant') or ''
  if redis.call('SISMEMBER', prefix .. 'keyless-tenants', tenant) == 0 then return false end
  finish(operation, events, name, 'cancelled', 'error', content, keep_ms)
  return true
end

-- Counts the attempts at an operation, one per beginner: a call that is repeated for a lost reply is the same one.
-- Returns the number of attempts.
local function count_attempt(operation, beginner)
  if redis.call('HGET', operation, 'begun_by') == beginner then
    return tonumber(redis.call('HGET', operation, 'attempts'))
  end
  redis.call('HSET', operation, 'begun_by', beginner)
  return redis.call('HINCRBY', operation, 'attempts', 1)
end

-- Records that an operation of a queue has ended: busy / ended is the mean time in ms between two ends while others
-- waited, over about the last fifty.
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

