"""What the stream's server does in one piece. All scripts touch the stream's key alone."""

MAKE = """
-- Make a group that begins with the oldest message, and the stream where it is missing. KEYS: stream. ARGV: group.
local answer = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if type(answer) == 'table' and answer.err and not string.find(answer.err, 'BUSYGROUP') then return answer end
"""

APPEND = """
-- Append messages; give them to a consumer at once where nothing of its group waits before them.
-- KEYS: stream. ARGV: field, group, consumer ('' for nobody), bodies. Gives 1 or 0 (taken), then the ids.
local taken = 0
if ARGV[2] ~= '' then
  local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
  for _, row in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for place = 1, #row, 2 do group[row[place]] = row[place + 1] end
    if group['name'] == ARGV[2] then
      if #newest == 0 then
        taken = 1
      else
        local waiting = redis.call('XRANGE', KEYS[1], '(' .. group['last-delivered-id'], '+', 'COUNT', 1)
        if #waiting == 0 then taken = 1 end
      end
    end
  end
end
local answer = {taken}
for place = 4, #ARGV do
  answer[place - 2] = redis.call('XADD', KEYS[1], '*', ARGV[1], ARGV[place])
end
if taken == 1 then
  redis.call('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', #ARGV - 3, 'STREAMS', KEYS[1], '>')
end
return answer
"""

CLAIM = """
-- What consumers were given and did not acknowledge for so long, oldest first, with how often it was given.
-- KEYS: stream. ARGV: group, consumer, milliseconds, most.
local given = redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], '-', '+', ARGV[4])
local answer = {}
for _, row in ipairs(given) do
  local claimed = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], row[1])
  if #claimed > 0 and claimed[1] and claimed[1][2] then
    table.insert(answer, {row[1], claimed[1][2], tostring(row[4] + 1)})
  elseif #redis.call('XRANGE', KEYS[1], row[1], row[1]) == 0 then
    redis.call('XACK', KEYS[1], ARGV[1], row[1]) -- it was erased meanwhile
  end
end
return answer
"""

LAG = """
-- How far a group is behind. KEYS: stream. ARGV: group, most that are counted one by one.
-- Gives length, messages that are not acknowledged, id of the oldest, seconds of the server's clock.
local last, pending, waiting = '0-0', 0, nil
for _, row in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for place = 1, #row, 2 do group[row[place]] = row[place + 1] end
  if group['name'] == ARGV[1] then
    last, pending, waiting = group['last-delivered-id'], group['pending'], group['lag']
  end
end
local first = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)
if #first == 0 then
  waiting = 0
elseif not waiting then
  waiting = #redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', ARGV[2])
end
local oldest = '0-0'
if pending > 0 then
  oldest = redis.call('XPENDING', KEYS[1], ARGV[1])[2] or '0-0'
elseif #first > 0 then
  oldest = first[1][1]
end
local time = redis.call('TIME')
return {redis.call('XLEN', KEYS[1]), pending + waiting, oldest, time[1] .. '.' .. string.format('%06d', time[2])}
"""

TRIM = """
-- Drop the oldest messages that all groups have acknowledged, but leave so many; forget consumers that are gone.
-- KEYS: stream. ARGV: messages to leave, milliseconds. Gives how many went.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local function before(one, other)
  local a, b = string.match(one, '^(%d+)-(%d+)$')
  local c, d = string.match(other, '^(%d+)-(%d+)$')
  if a ~= c then return tonumber(a) < tonumber(c) end
  return tonumber(b) < tonumber(d)
end
local floor
for _, row in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for place = 1, #row, 2 do group[row[place]] = row[place + 1] end
  for _, told in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], group['name'])) do
    local consumer = {}
    for place = 1, #told, 2 do consumer[told[place]] = told[place + 1] end
    if consumer['pending'] == 0 and consumer['idle'] > tonumber(ARGV[2]) then
      redis.call('XGROUP', 'DELCONSUMER', KEYS[1], group['name'], consumer['name'])
    end
  end
  local least = group['last-delivered-id']
  if group['pending'] > 0 then least = redis.call('XPENDING', KEYS[1], group['name'])[2] end
  if not floor or before(least, floor) then floor = least end
end
local many = redis.call('XLEN', KEYS[1]) - tonumber(ARGV[1])
if not floor or many <= 0 then return 0 end
return redis.call('XTRIM', KEYS[1], 'MINID', '~', floor, 'LIMIT', many)
"""

LEAVE = """
-- A consumer ends: what it holds may be claimed at once; one that holds nothing is forgotten.
-- KEYS: stream. ARGV: group, consumer.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local given = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 10000, ARGV[2])
for _, row in ipairs(given) do
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, row[1], 'IDLE', 86400000, 'RETRYCOUNT', row[4], 'JUSTID')
end
if #given == 0 then redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2]) end
return #given
"""
