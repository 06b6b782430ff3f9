"""What Redis or Valkey does in one piece. Each script touches keys of one slot only, so all of them but OWN_AND_KEEP
run on a cluster.

Numbers of the journal are microseconds of the server's clock: a server that lost its last second to a power cut, or a
replica that took over, gives no number twice.
"""

ADD = """
-- Take events of users of one part: their ids, their profiles, and one entry in the part's journal for the rest.
-- KEYS: journal, last number, then of each user profile, ids of this week, ids of the week before.
-- ARGV: events by user (MessagePack), events and searches of a profile, its milliseconds, end of this week's ids.
local users = cmsgpack.unpack(ARGV[1])
local most = {tonumber(ARGV[2]), tonumber(ARGV[3])}
local accepted, order, counts, waiting = 0, {}, {}, {}
-- Rows are compared as profiles.py says, texts by their bytes: Lua's own comparison asks the server's locale.
local function above(one, other)
  for place = 1, math.min(#one, #other) do
    local first, second = string.byte(one, place), string.byte(other, place)
    if first ~= second then return first > second end
  end
  return #one > #other
end
-- ``order`` are places of a row: its time, whether it was received, then what decides between received ones.
local function later(one, other, order)
  if one[order[1]] ~= other[order[1]] then return one[order[1]] > other[order[1]] end
  local first, second = one[order[2]], other[order[2]]
  if not first or not second then return first and not second end
  for number = 3, #order do
    local mine, theirs = one[order[number]], other[order[number]]
    if mine ~= theirs then
      if type(mine) == 'string' then return above(mine, theirs) end
      return mine > theirs
    end
  end
  return false
end
local by_event, by_search = {3, 5, 4, 2, 1}, {1, 3, 2}
local function insert(rows, row, order, most)
  local place = #rows
  while place > 0 and later(rows[place], row, order) do place = place - 1 end
  table.insert(rows, place + 1, row)
  while #rows > most do table.remove(rows, 1) end
end
for number, events in ipairs(users) do
  local profile_key, ids, ids_before = KEYS[3 * number], KEYS[3 * number + 1], KEYS[3 * number + 2]
  local profile
  for _, event in ipairs(events) do
    local id, kind, item, timestamp, weight, query, raw, received = unpack(event, 1, 8)
    if redis.call('SISMEMBER', ids_before, id) == 0 and redis.call('SADD', ids, id) == 1 then
      if not profile then
        local kept = redis.call('GET', profile_key)
        profile = kept and cmsgpack.unpack(kept) or {{}, {}, {}}
      end
      profile[3][kind] = (profile[3][kind] or 0) + 1
      if kind == 'search' then
        if query ~= '' then insert(profile[2], {timestamp, query, received}, by_search, most[2]) end
      elseif item ~= '' then
        insert(profile[1], {item, kind, timestamp, weight, received}, by_event, most[1])
      end
      if item ~= '' then
        if not counts[item] then
          counts[item] = {}
          table.insert(order, item)
        end
        counts[item][kind] = (counts[item][kind] or 0) + 1
      end
      if raw ~= '' then table.insert(waiting, raw) end
      accepted = accepted + 1
    end
  end
  if profile then
    redis.call('SET', profile_key, cmsgpack.pack(profile), 'PX', ARGV[4])
    redis.call('EXPIREAT', ids, ARGV[5])
  end
end
if accepted > 0 then
  local rows = {}
  for _, item in ipairs(order) do
    for kind, count in pairs(counts[item]) do table.insert(rows, {item, kind, count}) end
  end
  local time = redis.call('TIME')
  local number = math.max(time[1] * 1000000 + time[2], tonumber(redis.call('GET', KEYS[2]) or 0) + 1)
  local text = string.format('%.0f', number)
  redis.call('SET', KEYS[2], text)
  redis.call('RPUSH', KEYS[1], text .. ':' .. cmsgpack.pack({rows, waiting}))
end
return accepted
"""

COUNT = """
-- Add to the counters of items what they do not hold yet of a part's journal.
-- KEYS: counters. ARGV: field with the part's last number, then of each item {number, type, count, ...} (MessagePack).
local items = cmsgpack.unpack(ARGV[2])
for place, key in ipairs(KEYS) do
  local last, newest = tonumber(redis.call('HGET', key, ARGV[1]) or 0), nil
  local rows = items[place]
  for row = 1, #rows, 3 do
    if tonumber(rows[row]) > last then
      redis.call('HINCRBY', key, rows[row + 1], rows[row + 2])
      newest = rows[row]
    end
  end
  if newest then redis.call('HSET', key, ARGV[1], newest) end
end
"""

SEND = """
-- Move events of a part's journal to the outbox, those that it does not hold yet.
-- KEYS: outbox, its last number, last number of each part. ARGV: part, then number and event, ...
local last, newest = tonumber(redis.call('HGET', KEYS[3], ARGV[1]) or 0), nil
for place = 2, #ARGV, 2 do
  if tonumber(ARGV[place]) > last then
    local number = redis.call('INCR', KEYS[2])
    redis.call('ZADD', KEYS[1], number, number .. ':' .. ARGV[place + 1])
    newest = ARGV[place]
  end
end
if newest then redis.call('HSET', KEYS[3], ARGV[1], newest) end
"""

TRIM = """
-- Drop entries of a journal up to a number. KEYS: journal. ARGV: number.
while true do
  local entry = redis.call('LINDEX', KEYS[1], 0)
  if not entry or tonumber(string.match(entry, '^%d+')) > tonumber(ARGV[1]) then return end
  redis.call('LPOP', KEYS[1])
end
"""

DONE = """
-- Drop events of the outbox up to a number. KEYS: outbox, log position. ARGV: number.
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
if tonumber(ARGV[1]) > tonumber(redis.call('GET', KEYS[2]) or 0) then redis.call('SET', KEYS[2], ARGV[1]) end
"""

CHANGE = """
-- Change items. KEYS: version, versions by item, fields by item. ARGV: item, fields, ...
local time = redis.call('TIME')
for place = 1, #ARGV, 2 do
  local version = redis.call('INCR', KEYS[1])
  redis.call('ZADD', KEYS[2], version, ARGV[place])
  redis.call('HSET', KEYS[3], ARGV[place], time[1] .. '.' .. string.format('%06d', time[2]) .. ':' .. ARGV[place + 1])
end
return tonumber(redis.call('GET', KEYS[1]) or 0)
"""

OWN = """
-- Remember that a value belongs to a user. KEYS: the user's values by their end. ARGV: name, milliseconds.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('PEXPIREAT', KEYS[1], redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2])
"""

OWN_AND_KEEP = f"""{OWN}
-- And keep the value, where both keys are on one server. KEYS: also the value's. ARGV: also the value.
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2])
"""

KEEP_NEW = """
-- Keep a value unless there is one. KEYS: the value's. ARGV: value, milliseconds.
local kept = redis.call('GET', KEYS[1])
if kept then return kept end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""

LEASE = """
-- Take a lease. KEYS: lease. ARGV: owner, milliseconds.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""

GIVE = """
-- Give a lease back. KEYS: lease. ARGV: owner.
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

ERASE = """
-- Remove what lies in a user's part. KEYS: profile, values by their end, ids of two weeks.
local pages = redis.call('ZRANGE', KEYS[2], 0, -1)
local ids = redis.call('SCARD', KEYS[3]) + redis.call('SCARD', KEYS[4])
local profiles = redis.call('DEL', KEYS[1])
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
return {profiles, ids, pages}
"""
