"""The chat protocol over WebSocket: one JSON object per message, many generations on one socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET

from ws_chat.protocol.errors import ChatError
from ws_chat.protocol.frames import InvalidFrameError, Refused, decode, encode
from ws_chat.relay.reader import Reader
from ws_chat.relay.session import CancelGeneration, FollowGeneration, SendFrame, Session, StartGeneration
from ws_chat.server.sockets import Socket

if TYPE_CHECKING:
    from ws_chat.relay.session import Action
    from ws_chat.stores.base import Log

ANSWER_TIMEOUT: Final = 9.0
"""Seconds after which a frame without an answer is refused as `overloaded`: with ORDER_TIMEOUT of the frame before it, 10."""


class ChatSocket(Socket):
    """One open socket, and its session."""

    transport = "websocket"
    encode = staticmethod(encode)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._session = Session(limit=self.endpoint.max_generations, new_id=self.endpoint.new_id)
        self._latest: dict[str | None, asyncio.Task[None]] = {}  # the last task for each generation id

    async def receive(self, data: bytes) -> None:
        """Decide about a frame, and answer it in a task, after earlier frames with the same ids.

        Frames without an id are answered in their order, because only that identifies their answers.
        """
        action: Action | ChatError
        frame_id = None
        ids: set[str | None] = set()
        try:
            self.check_size(data)
            frame = decode(data)
            frame_id = getattr(frame, "id", None) or None
            action = self._session.receive(frame)
        except ChatError as error:
            action = error
            if isinstance(error, InvalidFrameError):
                frame_id = error.id
        match action:
            case SendFrame(reply) if not frame_id:
                await self.sender.reply(reply)
                return
            case StartGeneration(generation_id, chat):
                ids = {generation_id, chat.previous_id or generation_id}
                self._session.follows(generation_id, named=chat.id is not None)
            case FollowGeneration(generation_id):
                self._session.follows(generation_id, named=True)
            case CancelGeneration(generation_id):
                ids = {generation_id}
        ids.add(frame_id)
        before = {task for each in ids if (task := self._latest.get(each))}
        task = self.answer(self._answer(action, frame_id, len(data), before), len(data))
        self._latest |= dict.fromkeys(ids, task)

        def forget(_: object) -> None:
            for each in ids:
                if self._latest.get(each) is task:
                    del self._latest[each]

        task.add_done_callback(forget)
        await self.pace(task)

    async def _answer(
        self, action: Action | ChatError, frame_id: str | None, size: int, before: set[asyncio.Task[None]]
    ) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                if before:
                    await asyncio.wait(before)
                await self._carry_out(action)
            return
        except ChatError as error:
            refusal = error
        except TimeoutError:
            refusal = ChatError("overloaded", "The frame could not be answered in time.", retry_after=1)
        except Exception as error:  # noqa: BLE001  (logged there)
            await self.fail(error)
            return
        if isinstance(action, StartGeneration | FollowGeneration) and action.id not in self.readers:
            self._session.ended(action.id)
        if not isinstance(action, FollowGeneration):  # which is counted already
            refusal = await self.relay.count_refusal(self.caller, refusal, size)
        self.refuse(refusal)
        await self.sender.reply(Refused(id=frame_id or UNSET, error=refusal.info))

    async def _carry_out(self, action: Action | ChatError) -> None:
        match action:
            case StartGeneration(generation_id, chat):
                log = await self.relay.start(self.caller, generation_id, chat)
                self._follow(log, 0, named=chat.id is not None)
            case FollowGeneration(generation_id, position):
                log = await self.relay.find(self.caller, generation_id, position)
                self._follow(log, position.seq, named=True)
            case CancelGeneration(generation_id):
                await self.relay.cancel(self.caller, generation_id)
            case SendFrame(reply):
                await self.sender.reply(reply)
            case ChatError():
                raise action

    def _follow(self, log: Log, after: int, *, named: bool) -> None:
        """Read a log from after a seq, in place of a reader that this socket has of it."""
        generation_id = log.start.id
        key = self.caller.key(generation_id, named=named)

        def on_end() -> None:
            self.unfollow(key)
            self._session.ended(generation_id)

        self._session.follows(generation_id, named=named)
        self.follow(Reader(log, after, self.sender, on_end), key)
