"""A question is asked and its answer drawn, again where the server went away meanwhile; Ctrl-C stops it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

from ws_chat.client.errors import ClientError, ConnectionLostError
from ws_chat.terminal.faults import went_with_its_server
from ws_chat.terminal.remarks import fail, remarks, say
from ws_chat.terminal.screen import Screen
from ws_chat.terminal.stats import Stopwatch
from ws_chat.terminal.teletype import Teletype
from ws_chat.terminal.turns import is_forgotten

if TYPE_CHECKING:
    from rich.console import Console

    from ws_chat.client.chat import Chat
    from ws_chat.client.reply import Reply
    from ws_chat.terminal.turns import Conversation

ATTEMPTS: Final = 4
"""How often one question is asked of servers that forget or go away."""
CANCELLING: Final = 2.0
"""Seconds that a cancelled answer has to end; without a network it never would."""


class _Running(NamedTuple):
    """An answer that comes: what reads it, what it is drawn on, and the cancel that was sent, if one was."""

    reply: Reply
    reading: asyncio.Task[None]
    screen: Screen | Teletype
    cancelling: list[asyncio.Task[None]]


class Answering:
    """Asks in a conversation, over a connection, and draws on a console. With `stats`, it says how fast it went."""

    def __init__(self, client: Chat, conversation: Conversation, console: Console, *, stats: bool) -> None:
        self.stats = stats
        self._client = client
        self._conversation = conversation
        self._console = console
        self._running: _Running | None = None

    async def ask(self, question: str) -> None:
        """Ask, and draw the answer or say what went wrong."""
        watch = Stopwatch()
        self._console.print()
        reply = await self._answer(question, watch)
        if reply is None:
            return
        self._conversation.hear(question, reply)
        lines = list(remarks(reply))
        if self.stats and reply.seq:
            lines.append(watch.line(reply))
        if lines:
            if reply.text or reply.reasoning or reply.refusal:
                self._console.print()
            say(self._console, *lines)

    def interrupt(self) -> None:
        """Stop the answer that comes, if any: at Ctrl-C, which at any other moment does nothing."""
        if not (running := self._running):
            return
        if running.cancelling:
            running.reading.cancel()
        else:
            running.cancelling.append(asyncio.create_task(running.reply.cancel()))
            asyncio.get_running_loop().call_later(CANCELLING, running.reading.cancel)

    def wait(self, reason: ClientError) -> None:
        """Show why nothing comes for now."""
        if self._running:
            said = "the connection is lost" if isinstance(reason, ConnectionLostError) else str(reason)
            self._running.screen.notice = f"{said}, trying again"

    async def _answer(self, question: str, watch: Stopwatch) -> Reply | None:
        """Return what came of a question, and None where it could not be asked."""
        reply, whole = None, False
        for attempt in range(1, ATTEMPTS + 1):
            try:
                reply = self._conversation.ask(self._client, question, whole=whole)
                await self._draw(reply, watch)
            except ClientError as error:
                lost = went_with_its_server(error)
                if attempt < ATTEMPTS and (lost or is_forgotten(error)):
                    whole = True
                    if reply and reply.text:
                        self._console.print()
                        say(self._console, "(the server went away with this answer: asking again)")
                        self._console.print()
                    continue
                fail(self._console, f"{error}" + ("\n/retry asks again." if error.retryable else ""))
            except ValueError as error:  # half of a character, pasted
                fail(self._console, str(error))
            return reply
        return reply

    async def _draw(self, reply: Reply, watch: Stopwatch) -> None:
        """Draw an answer until it has ended, or Ctrl-C has ended it. Raises ClientError."""

        async def read() -> None:
            async for frame in reply:
                watch.token()
                screen.take(frame)

        dumb = self._console.is_dumb_terminal
        screen: Screen | Teletype = Teletype(self._console) if dumb else Screen(self._console)
        async with screen, reply:  # which is cancelled when the program ends
            reading = asyncio.create_task(read())
            self._running = _Running(reply, reading, screen, [])
            try:
                await asyncio.wait({reading})
            finally:
                self._running = None
                reading.cancel()
        if not reading.cancelled():
            reading.result()
