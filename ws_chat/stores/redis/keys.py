"""The keys in Redis, and the scripts that change them atomically.

Of a named generation, all in one slot of a Redis Cluster:

- `ws_chat:{n}:id/<principal>/<id>`: string; the epoch of the generation that has this id, and the replica that runs it.
- `ws_chat:{n}:log/<principal>/<id>/<epoch>`: stream; the generation's log. Its entries have explicit ids: `0-1` has the
  head of the request and the start frame, `0-2` the messages, `1-<seq>` the deltas up to that seq, one per line, and `2-0`
  the terminal frame; if it is empty, the generation was never started. Redis refuses an id that is not the highest, so a
  repeated write changes nothing, and nothing is added after the end. A replica writes from the first delta that Redis has
  not confirmed, so entries may overlap; none may be missing.
- `ws_chat:{n}:read/<principal>/<id>/<epoch>`: exists while another replica has a reader.

Of the slot: `ws_chat:{n}:marker`, the `master_replid` of the Redis to which everything in the slot was written, and a
random value. It is missing when Redis has lost everything, and has another replid after a failover, when the latest writes
may be missing. `ws_chat:{n}:hold` exists after either until all replicas had time to write their logs again.

Of a replica: `ws_chat:{<replica>}:lease`, which exists while it lives, and `ws_chat:{<replica>}:cancels`, the set of its
logs that are to be cancelled or, with FORGET in front, forgotten.

Every key expires.
"""

from __future__ import annotations

from itertools import count
from typing import Final, NamedTuple
from zlib import crc32

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from ws_chat.stores.turns import Turns

HEAD: Final = "0-1"
MESSAGES: Final = "0-2"
TERMINAL: Final = "2-0"
FORGET: Final = b"forget "


class Slot:
    """The generations whose keys share one slot of a Redis Cluster, and what this replica knows of that slot."""

    def __init__(self, tag: str, turns: Turns) -> None:
        self.turns = turns
        self.prefix = f"ws_chat:{{{tag}}}:"
        self.keys = (f"{self.prefix}marker", f"{self.prefix}hold")
        self.marker: bytes | None = None
        """The marker when it was last read. Another one means that Redis may have lost data."""
        self.held = True
        self.up = False
        """Whether Redis answers."""
        self.written = True
        """Whether the last write succeeded."""


def slots(number: int) -> list[Slot]:
    """Return `number` slots, spread evenly over those of a Redis Cluster."""
    tags = []
    for part in range(number):
        places = ((str(tag), key_slot(str(tag).encode()) * number // REDIS_CLUSTER_HASH_SLOTS) for tag in count())
        tags.append(next(tag for tag, place in places if place == part))
    turns = Turns()
    return [Slot(tag, turns) for tag in tags]


def slot_of(name: str, among: list[Slot]) -> Slot:
    return among[crc32(name.encode()) % len(among)]


class Names(NamedTuple):
    """The keys of one generation, and the value of its pointer."""

    pointer: str
    stream: str
    read: str
    value: bytes

    @classmethod
    def of(cls, slot: Slot, name: str, value: bytes) -> Names:
        """`name` is that of the generation's key, `value` its epoch and its replica."""
        unique = f"{name}/{value.partition(b' ')[0].decode()}"
        return cls(f"{slot.prefix}id/{name}", f"{slot.prefix}log/{unique}", f"{slot.prefix}read/{unique}", value)

    @property
    def replica(self) -> str:
        return self.value.partition(b" ")[2].decode()


def lease_key(replica: str) -> str:
    return f"ws_chat:{{{replica}}}:lease"


def cancels(replica: str) -> str:
    return f"ws_chat:{{{replica}}}:cancels"


_STATE: Final = """
-- KEYS: marker, hold. ARGV: a random value, milliseconds of the marker, of the hold.
local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or ''
local marker = redis.call('GET', KEYS[1])
if not marker or string.sub(marker, 1, #replid) ~= replid then
  marker = replid .. ':' .. ARGV[1]
  redis.call('SET', KEYS[1], marker, 'PX', ARGV[2])
  redis.call('SET', KEYS[2], '', 'PX', ARGV[3])
end
local held = redis.call('EXISTS', KEYS[2])
"""

RENEW: Final = f"""{_STATE}
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {{marker, held}}
"""

FIND: Final = f"""{_STATE}
-- KEYS: pointer.
return {{marker, held, redis.call('GET', KEYS[3])}}
"""

CREATE: Final = f"""{_STATE}
-- KEYS: pointer, stream. ARGV: pointer's value, expiry, head, messages. Returns what is in the pointer then, or nothing.
local found = redis.call('GET', KEYS[3])
-- A stream without its pointer: this create was rolled back before it was executed.
if found or held == 1 or redis.call('EXISTS', KEYS[4]) == 1 then return {{marker, held, found}} end
redis.call('SET', KEYS[3], ARGV[4], 'PX', ARGV[5])
redis.call('XADD', KEYS[4], '{HEAD}', 'head', ARGV[6])
redis.call('XADD', KEYS[4], '{MESSAGES}', 'messages', ARGV[7])
redis.call('PEXPIRE', KEYS[4], ARGV[5])
return {{marker, held, ARGV[4]}}
"""

UNDO: Final = f"""
-- KEYS: pointer, stream. ARGV: pointer's value, expiry. Rolls back a create, also one that is executed later.
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
redis.pcall('XADD', KEYS[2], '{TERMINAL}', 'terminal', '')
redis.call('PEXPIRE', KEYS[2], ARGV[2])
"""

LOSE: Final = f"""
-- KEYS: stream. ARGV: the terminal frame of a lost generation, before and after its seq.
-- Ends a log after its last delta here; a copy may have more. Returns 0 if there is no log.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not last then return 0 end
local seq = string.match(last[1], '^1%-(%d+)$') or string.match(last[1], '^0%-') and 0
if seq then redis.call('XADD', KEYS[1], '{TERMINAL}', 'terminal', ARGV[1] .. string.format('%d', seq + 1) .. ARGV[2]) end
return 1
"""

REPAIR: Final = f"""
-- KEYS: pointer, stream. ARGV: pointer's value, expiry, terminal frame of a lost generation, last id and length of the
-- stream as they were found, then the whole log: id, field, value of each entry.
-- Does nothing if the stream has changed since. If the id names another generation now, this one ends.
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if (last and last[1] or '') .. ' ' .. redis.call('XLEN', KEYS[2]) ~= ARGV[4] then return end
redis.call('DEL', KEYS[2])
for at = 5, #ARGV, 3 do redis.call('XADD', KEYS[2], ARGV[at], ARGV[at + 1], ARGV[at + 2]) end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
local found = redis.call('GET', KEYS[1])
if not found or found == ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
else
  redis.pcall('XADD', KEYS[2], '{TERMINAL}', 'terminal', ARGV[3])
end
"""
