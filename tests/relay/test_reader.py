"""The pump, without a socket: any pace of the sender, the same text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ws_chat.protocol.deltas import MERGE_LIMIT, decode_delta, encode_delta
from ws_chat.protocol.frames import Done, Start, Token
from ws_chat.relay.reader import Reader
from ws_chat.stores.memory import MemoryLog


class Tap:
    """A sender that takes as many frames as it is open for."""

    def __init__(self, room: int = 10**9) -> None:
        self.room = room
        self.frames = []
        self.waiting = {}

    @property
    def writable(self) -> bool:
        return self.room > 0

    def write(self, frame) -> None:
        assert self.room > 0
        self.room -= 1
        self.frames.append(frame)

    def when_writable(self, callback) -> None:
        self.waiting[callback] = None

    def open(self, room: int) -> None:
        self.room += room
        waiting, self.waiting = self.waiting, {}
        for callback in waiting:
            callback()


def log_of(count: int, *, ended: bool = True) -> MemoryLog:
    log = MemoryLog(Start("r1", 0, "m"))
    if count:
        log.append([content(f"{n} ") for n in range(1, count + 1)])
    if ended:
        log.end(done(count))
    return log


def done(count: int) -> Done:
    return Done("r1", count + 1, "completed", "stop", "m", None, {"ttft_ms": None, "total_ms": 1.0})


def content(text: str) -> bytes:
    return encode_delta({"content": text})


def token(seq: int, text: str) -> Token:
    return Token.of("r1", seq, content(text))


def texts(frames) -> str:
    return "".join(decode_delta(frame.delta)["content"] for frame in frames if isinstance(frame, Token))


def test_a_reader_that_keeps_up_gets_one_frame_per_delta():
    log, tap, ends = log_of(0, ended=False), Tap(), []
    Reader(log, 0, tap, lambda: ends.append(1)).open()
    assert tap.frames == [Start("r1", 0, "m")]
    for n in range(3):
        log.append([content(str(n))])
    assert ends == []
    log.end(done(3))

    assert tap.frames == [
        Start("r1", 0, "m"),
        token(1, "0"),
        token(2, "1"),
        token(3, "2"),
        done(3),
    ]
    assert ends == [1]


def test_deltas_of_one_read_leave_in_one_frame():
    log, tap = log_of(0, ended=False), Tap()
    Reader(log, 0, tap, lambda: None).open()
    log.append([content("a"), content("b")])

    assert tap.frames[1:] == [token(2, "ab")]


def test_a_replay_of_a_long_answer_is_a_few_frames():
    tap = Tap()
    Reader(log_of(2000), 0, tap, lambda: None).open()

    assert len(tap.frames) == 2 + -(-2000 // MERGE_LIMIT)
    assert texts(tap.frames) == "".join(f"{n} " for n in range(1, 2001))


def test_reading_after_a_seq():
    for after in range(5):
        tap = Tap()
        Reader(log_of(3), after, tap, lambda: None).open()
        rest = range(after + 1, 4)
        assert tap.frames[0] == Start("r1", after, "m")
        assert texts(tap.frames) == "".join(f"{n} " for n in rest)
        assert tap.frames[-1] == done(3)


def test_a_closed_reader_sends_nothing_more():
    log, tap = log_of(0, ended=False), Tap(room=1)
    reader = Reader(log, 0, tap, lambda: None)
    reader.open()
    log.append([content("a")])
    reader.close()
    tap.open(10)
    log.append([content("b")])

    assert tap.frames == [Start("r1", 0, "m")]


@given(
    st.lists(st.sampled_from(["append", "append two", "open", "open more"]), max_size=30),
    st.integers(0, 3),
    st.integers(0, 5),
)
def test_any_pace_gives_the_same_frames(steps, room, after):
    log, tap, ends = log_of(after, ended=False), Tap(room), []
    Reader(log, after, tap, lambda: ends.append(1)).open()
    wanted = ""
    for number, step in enumerate(steps):
        match step:
            case "append":
                log.append([content(f"<{number}>")])
                wanted += f"<{number}>"
            case "append two":
                log.append([content(f"<{number}"), content(">")])
                wanted += f"<{number}>"
            case "open":
                tap.open(1)
            case "open more":
                tap.open(3)
    log.end(done(log.last))
    tap.open(100)

    start, *tokens, last = tap.frames
    assert start == Start("r1", after, "m")
    assert texts(tokens) == wanted
    assert [token.seq for token in tokens] == sorted({token.seq for token in tokens})
    assert not tokens or tokens[-1].seq == log.last
    assert last == done(log.last)
    assert ends == [1]
