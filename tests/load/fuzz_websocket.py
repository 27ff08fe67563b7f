"""The WebSocket's part of the fuzz: frames on a socket, each answered as the contract says, and the ways it ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from support.contract import ContractError, Followed, check, check_error, expected, read_frame
from support.hostile import MAX_BYTES, hostile
from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    import random
    from collections import Counter

    from support.service import Service, Socket

FRAMES = 200
"""How many frames are tried on one socket."""
MARKER = "the-marker"


async def try_socket(service: Service, chance: random.Random, ids: list[str], answers: Counter[str]) -> None:
    """Try frames on one socket, some at a time, and end it in one of the ways in which a socket ends."""
    async with service.socket(compression=None, ping_interval=None, max_queue=None) as socket:
        talk = Talk(socket, answers)
        left = FRAMES
        while left:
            names = talk.running if talk.running and chance.random() < 0.3 else [*ids, *list(talk.followed)[-3:]]
            batch = [frame_for(chance, names) for _ in range(min(left, chance.choice([1, 5])))]
            left -= len(batch)
            await talk.ask(chance, batch)
        # What runs is followed from another position, and then left.
        await talk.ask(chance, [json.dumps({"type": "resume", "id": name}).encode() for name in talk.running])
        match chance.randrange(4):
            case 0:
                socket.connection.transport.abort()
            case 1:
                await socket.connection.send(b"x" * (MAX_BYTES + 1), text=chance.random() < 0.5)
                await closed(talk, 1009)
            case 2:
                await socket.connection.send([b'{"type":"ping"}', b"\xff"], text=True)
                await closed(talk, 1007)
            case 3:
                await talk.end_all()


async def closed(talk: Talk, code: int) -> None:
    """Read to the end of a socket that the server closes."""
    try:
        while True:
            await talk.receive()
    except ConnectionClosed as error:
        check(error.rcvd and error.rcvd.code == code, "it is closed with this code", error, code)


def frame_for(chance: random.Random, ids: list[str]) -> bytes:
    """Return a frame that is not too big, which would close the socket."""
    while True:
        data = hostile(chance, ids)
        if len(data) <= MAX_BYTES:
            return data


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class Talk:
    """One socket: what is sent on it, what it is answered by, and every generation that it follows."""

    def __init__(self, socket: Socket, answers: Counter[str]) -> None:
        self.socket = socket
        self.followed: dict[str, Followed] = {}
        self._answers = answers

    @property
    def running(self) -> list[str]:
        """The ids of what has not ended, as far as it was read."""
        return [followed.id for followed in self.followed.values() if not followed.ended]

    async def ask(self, chance: random.Random, batch: list[bytes]) -> None:
        """Send some frames, and check the answer to each."""
        for data in batch:
            await self._send(chance, data)
        for data in batch:
            try:
                await self._check_answer(data)
            except (ContractError, ConnectionClosed) as error:
                error.add_note(f"after {data!r:.3000} of {batch!r:.5000}")
                raise

    async def _send(self, chance: random.Random, data: bytes) -> None:
        """Send a frame as text or binary, whole or in fragments; then one whose answer tells that it was dealt with."""
        message: Any = data
        if chance.random() < 0.2:
            cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(1, 4)))
            message = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        await self.socket.connection.send(message, text=is_text(data) and chance.random() < 0.8)
        await self.socket.send({"type": "resume", "id": MARKER})

    async def _check_answer(self, data: bytes) -> None:
        """Read until the frame has been dealt with, and check what came of it."""
        kind, allowed, given_id, after = expected(data)
        direct = []
        while (frame := await self.receive()) and frame.get("id") != MARKER:
            if frame["type"] in ("start", "pong") or "seq" not in frame:
                direct.append(frame)
        if not direct:
            check(None in allowed, "a frame is answered", allowed)
            self._answers["nothing"] += 1
            return
        check(len(direct) == 1, "a frame is answered once", direct)
        (answer,) = direct
        name = answer["error"]["code"] if answer["type"] == "error" else answer["type"]
        check(name in allowed, "this may be the answer", answer, allowed)
        if kind != "ping" and name != "invalid_json":  # what cannot be read has no id
            check(given_id in (None, answer.get("id")), "the answer has the id of the frame", answer)
        check(name != "start" or answer["seq"] == after, "it starts after the seq that was asked for", answer)
        self._answers[name] += 1

    async def receive(self) -> dict[str, Any]:
        """Return the next frame, checked against those before it."""
        frame = read_frame(await self.socket.connection.recv())
        match frame:
            case {"type": "start"}:
                self.followed[frame["id"]] = Followed(frame)
            case {"type": "pong"}:
                check(list(frame) == ["type"], "a pong has nothing else", frame)
            case {"type": "error", "error": error} if "seq" not in frame:
                check(list(frame) in (["type", "error"], ["type", "id", "error"]), "a refusal has these keys", frame)
                check_error(error)
            case _:
                check(frame.get("id") in self.followed, "a generation begins with a start", frame)
                self.followed[frame["id"]].take(frame)
        return frame

    async def end_all(self) -> None:
        """Cancel what runs, and read every end."""
        for name in self.running:
            await self.socket.send({"type": "cancel", "id": name})
        while self.running:
            await self.receive()
