"""How a job changes its state: one Lua script each, so that no two processes ever disagree about who owns a job.

    queued --claim--> running --finish--> finished | failed | cancelled
       ^                 |
       +---- release ----+  (its worker died, once; or gave it back)

An execution is named by its `attempt`: a worker that was thought dead and comes back cannot overwrite its successor's
result.
KEYS are the job's hash, its input and what else is deleted with the end; ARGV is said by each script. All are sent by
`store`.
"""

from __future__ import annotations

# ARGV: worker, worker_name, now. Answers the state found (`queued`: claimed), the attempt, the input, policy, image.
CLAIM = """
local state = redis.call('HGET', KEYS[1], 'state')
if state ~= 'queued' then return {state or '', 0, false, '', ''} end
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSET', KEYS[1], 'state', 'running', 'worker', ARGV[1], 'worker_name', ARGV[2], 'started_at', ARGV[3])
local names = redis.call('HMGET', KEYS[1], 'policy', 'image')
return {'queued', attempt, redis.call('GET', KEYS[2]), names[1], names[2]}
"""

_END = """
local function finish(state, result, finished_at, ttl, channel, id)
  redis.call('HSET', KEYS[1], 'state', state, 'finished_at', finished_at)
  if result ~= '' then redis.call('HSET', KEYS[1], 'result', result) end
  redis.call('HDEL', KEYS[1], 'cancel', 'worker_name')
  redis.call('EXPIRE', KEYS[1], ttl)
  for index = 2, #KEYS do redis.call('DEL', KEYS[index]) end
  redis.call('PUBLISH', channel, id)
end
"""

# ARGV: attempt, state, result, now, ttl, channel, id. Answers 1, or 0 when this execution no longer owns the job.
FINISH = (
    _END
    + """
local now = redis.call('HMGET', KEYS[1], 'state', 'attempt')
if now[1] ~= 'running' or now[2] ~= ARGV[1] then return 0 end
finish(ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
return 1
"""
)

# The execution ended without a result. ARGV: attempt ("": any), `lost` or `returned`, result, now, ttl, channel, id,
# attempts at most.
# Answers the state the job has then.
RELEASE = (
    _END
    + """
local now = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'cancel')
if now[1] ~= 'running' or (ARGV[1] ~= '' and now[2] ~= ARGV[1]) then return now[1] or '' end
if now[3] then
  finish('cancelled', '', ARGV[4], ARGV[5], ARGV[6], ARGV[7])
  return 'cancelled'
end
if ARGV[2] == 'lost' and tonumber(now[2]) >= tonumber(ARGV[8]) then
  finish('failed', ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
  return 'failed'
end
if ARGV[2] ~= 'lost' then redis.call('HINCRBY', KEYS[1], 'attempt', -1) end
redis.call('HSET', KEYS[1], 'state', 'queued')
redis.call('HDEL', KEYS[1], 'worker', 'worker_name', 'started_at')
return 'queued'
"""
)

# ARGV: attempt, attempts at most. Answers the next attempt's number, or 0.
AGAIN = """
local now = redis.call('HMGET', KEYS[1], 'state', 'attempt')
if now[1] ~= 'running' or now[2] ~= ARGV[1] or tonumber(ARGV[1]) >= tonumber(ARGV[2]) then return 0 end
return redis.call('HINCRBY', KEYS[1], 'attempt', 1)
"""

# ARGV: owner, now, ttl, channel, id. Answers the state found ("": no such job of this owner) and the RQ name of its
# worker.
CANCEL = (
    _END
    + """
local now = redis.call('HMGET', KEYS[1], 'state', 'owner', 'worker_name')
if not now[1] or now[2] ~= ARGV[1] then return {'', ''} end
if now[1] == 'queued' then
  finish('cancelled', '', ARGV[2], ARGV[3], ARGV[4], ARGV[5])
  return {'queued', ''}
end
if now[1] == 'running' then redis.call('HSET', KEYS[1], 'cancel', '1') end
return {now[1], now[3] or ''}
"""
)
