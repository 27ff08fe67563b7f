"""What happened in a run of the chaos program: plain records, written by the program and read by the checker.

All times are seconds of the monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

FaultKind: TypeAlias = Literal[
    "killed",  # a replica, by SIGKILL
    "stopped",  # a replica, by SIGSTOP
    "drained",  # a replica, by SIGTERM
    "cut off",  # one replica has no Redis
    "away",  # no replica has a Redis
    "lost all",  # Redis has lost its data
    "lost tail",  # Redis has lost its last writes
    "full",  # Redis refuses writes
    "clock",  # the wall clock of Redis was stepped
]


@dataclass
class Fault:
    """A fault from `start` to `end` (None: until the end of the history), of one replica or of Redis."""

    kind: FaultKind
    start: float
    end: float | None = None
    replica: str | None = None


@dataclass
class Run:
    """An upstream request: the number that its text names, the generation's id and use, and the replica it came from.

    Delta k of run n is `delta(n, k)`, so every text shows where it comes from. An id may be used for several bodies, one
    after the other: each is a use, counted from 0.
    """

    number: int
    id: str
    use: int
    owner: str
    size: int
    """Deltas of the whole answer."""
    started: float
    sent: int = 0
    ended: float | None = None
    """When it was completed, or its connection was closed."""
    completed: bool = False


def delta(run: int, seq: int) -> str:
    """Return the text of a delta."""
    return f"{run}.{seq}\n"


@dataclass
class Event:
    """An action of a reader, or a frame that it received.

    `send`: it sent a chat, resume, cancel or ping (`data["what"]`; `after` and `epoch` where they apply). `frame`: it
    received `data`; an HTTP response without a stream is a frame, too: an error object, or
    `{"type": "status", "status": 204}`. `closed`: its connection was closed, by either side. `over`: it stopped reading by
    its own choice.
    """

    time: float
    kind: Literal["send", "frame", "closed", "over"]
    replica: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class Reader:
    """All that one reader of a generation did and got, over as many connections as it took."""

    name: str
    id: str
    use: int
    events: list[Event] = field(default_factory=list)


@dataclass
class History:
    """All that happened, from start to end."""

    seed: int
    nemesis: str
    retention: float
    resume_window: float
    start: float = 0.0
    end: float = 0.0
    runs: list[Run] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lags: list[tuple[float, float]] = field(default_factory=list)
    """When, and how late, this program or a healthy replica did something that takes no time: a slow machine."""
    left: dict[str, float | None] = field(default_factory=dict)
    """The keys in Redis after the end, with the seconds until they expire; None: never."""
    crashes: list[str] = field(default_factory=list)
    """What replicas logged that they should not: tracebacks, unexpected ends."""
