"""What stands in Redis under which name, and the scripts that change it as one. Everything begins with `ws_chat:{n}:`.

The number tells shards apart. It is in braces, so that Redis Cluster keeps all of a shard in one slot.

- `named/<principal>/<id>`: hash of a named generation: `replica`, `start`, `request`; at its end `terminal`, `deltas`.
- `journal:<replica>`: stream; an entry holds the new deltas of all that runs at a replica (`journal`).
- `inbox:<replica>`: stream; what other replicas ask of this one: `cancel`, `watch`, `unwatch` a key.
- `running:<replica>`: set; the keys of what runs there.
- `lease:<replica>`: there while the replica lives; `replicas`: set; all that are or were alive.
- `burial:<replica>`: there while somebody ends what a dead replica has left.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Final

import msgspec
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from ws_chat.protocol.frames import Done, Failed, Start, Terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ws_chat.protocol.deltas import Delta
    from ws_chat.stores.base import GenerationKey


def redis_name(key: GenerationKey) -> str:
    """Return what a named generation is called in all of these, below the shard's prefix."""
    return f"named/{key.owner}/{key.id}"


class Names:
    """The names of one shard of several."""

    def __init__(self, shard: int, shards: int) -> None:
        # Their slots lie as far from each other as the primaries' ranges do in a cluster of so many.
        slots = ((number, key_slot(b"%d" % number)) for number in count())
        number = next(number for number, slot in slots if slot * shards // REDIS_CLUSTER_HASH_SLOTS == shard)
        self.prefix = f"ws_chat:{{{number}}}:"
        self.replicas = f"{self.prefix}replicas"

    def log(self, key: str) -> str:
        """Return the name of a generation's hash."""
        return self.prefix + key

    def journal(self, replica: str) -> str:
        """Return the name of a replica's journal."""
        return f"{self.prefix}journal:{replica}"

    def inbox(self, replica: str) -> str:
        """Return the name of a replica's inbox."""
        return f"{self.prefix}inbox:{replica}"

    def running(self, replica: str) -> str:
        """Return the name of the set of what runs at a replica."""
        return f"{self.prefix}running:{replica}"

    def lease(self, replica: str) -> str:
        """Return the name of a replica's lease."""
        return f"{self.prefix}lease:{replica}"

    def burial(self, replica: str) -> str:
        """Return the name of what tells that somebody buries a replica."""
        return f"{self.prefix}burial:{replica}"


def raw(deltas: Sequence[Delta]) -> list[msgspec.Raw]:
    """Return deltas as values that are encoded as they are."""
    return [msgspec.Raw(delta) for delta in deltas]


def deltas_of(array: bytes | msgspec.Raw) -> list[Delta]:
    """Return the deltas in a JSON array."""
    return [bytes(delta) for delta in msgspec.json.decode(array, type=list[msgspec.Raw])]


start_of: Final[Callable[[bytes], Start]] = msgspec.json.Decoder(Start).decode
terminal_of: Final[Callable[[bytes], Terminal]] = msgspec.json.Decoder(Done | Failed).decode


CREATE: Final = """
-- KEYS: log, running. ARGV: replica, start, request, expiry, key. Returns whether there was none.
if redis.call('HSETNX', KEYS[1], 'replica', ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'start', ARGV[2], 'request', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('SADD', KEYS[2], ARGV[5])
return 1
"""

RESTORE: Final = """
-- The same, for one that runs and may have been lost. Returns whether it is still the replica's own to write.
local found = redis.call('HMGET', KEYS[1], 'replica', 'terminal')
if found[2] or (found[1] and found[1] ~= ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'replica', ARGV[1], 'start', ARGV[2], 'request', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('SADD', KEYS[2], ARGV[5])
return 1
"""

DISOWN: Final = """
-- KEYS: log, running. ARGV: replica, key. A log that its replica does not know is none, unless it has ended.
redis.call('SREM', KEYS[2], ARGV[2])
local found = redis.call('HMGET', KEYS[1], 'replica', 'terminal')
if found[1] == ARGV[1] and not found[2] then redis.call('DEL', KEYS[1]) end
"""

END: Final = """
-- KEYS: log, running, journal. ARGV: replica, terminal, deltas, expiry, key, entry. The first terminal frame wins.
local found = redis.call('HMGET', KEYS[1], 'replica', 'terminal')
if not found[1] then return 'absent' end
if found[2] then return found[2] end
if found[1] ~= ARGV[1] then return 'foreign' end
redis.call('HSET', KEYS[1], 'terminal', ARGV[2], 'deltas', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('SREM', KEYS[2], ARGV[5])
redis.call('XADD', KEYS[3], '*', 'entry', ARGV[6])
return ARGV[2]
"""

FOLLOW: Final = """
-- KEYS: log. ARGV: replica that asks, key, prefix.
-- Returns replica, start, request, terminal, deltas, journal's last id.
local log = redis.call('HMGET', KEYS[1], 'replica', 'start', 'request', 'terminal', 'deltas')
if not log[1] or log[4] or log[1] == ARGV[1] then return {log[1], log[2], log[3], log[4], log[5], ''} end
if redis.call('EXISTS', ARGV[3] .. 'lease:' .. log[1]) == 0 then return {log[1], log[2], log[3], '', '', ''} end
local last = redis.call('XREVRANGE', ARGV[3] .. 'journal:' .. log[1], '+', '-', 'COUNT', 1)
redis.call('XADD', ARGV[3] .. 'inbox:' .. log[1], 'MAXLEN', '~', 10000, '*', 'watch', ARGV[2], 'by', ARGV[1])
redis.call('XADD', ARGV[3] .. 'inbox:' .. ARGV[1], 'MAXLEN', '~', 10000, '*', 'wake', '')
return {log[1], log[2], log[3], '', '', last[1] and last[1][1] or '0-0'}
"""

ASK: Final = """
-- KEYS: lease, inbox. ARGV: what, key, replica that asks. The inbox of a dead replica would stay.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 10000, '*', ARGV[1], ARGV[2], 'by', ARGV[3])
return 1
"""

LOSE: Final = """
-- KEYS: log, lease. ARGV: replica, terminal, deltas, expiry. Ends what a dead replica has left, if it is dead.
if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
local found = redis.call('HMGET', KEYS[1], 'replica', 'terminal')
if found[1] ~= ARGV[1] or found[2] then return 0 end
redis.call('HSET', KEYS[1], 'terminal', ARGV[2], 'deltas', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1
"""

BURY: Final = """
-- KEYS: lease, journal, inbox, running, replicas. ARGV: replica. Removes what a dead replica held.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
redis.call('SREM', KEYS[5], ARGV[1])
return 1
"""
