"""The interactive chat: read a line, carry out a command or draw the answer to a question, until Ctrl-D."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ws_chat.client import Chat, ClientError, ConnectionLostError
from ws_chat.terminal.conversation import Conversation
from ws_chat.terminal.messages import (
    Stopwatch,
    connection_failure,
    exit_status,
    explained,
    is_forgotten,
    lost_with_server,
    remarks,
    report,
    visible,
)
from ws_chat.terminal.prompt import COMMANDS, KEYS, UnknownCommandError, history_path, line_editor, read_command
from ws_chat.terminal.requests import fetch_models, image
from ws_chat.terminal.screen import Screen, Teletype
from ws_chat.terminal.state import save_last

if TYPE_CHECKING:
    from pathlib import Path

    from ws_chat.client import Reply
    from ws_chat.terminal.main import Options

ATTEMPTS: Final = 4
"""Attempts for one question when servers forget the conversation or shut down."""
CANCEL_TIMEOUT: Final = 2.0
"""Seconds to wait for the end of a cancelled answer, which does not arrive while the network is down."""


def chat(options: Options, server: str, conversation: Conversation) -> int:
    """Chat until the person leaves; return the exit status. `server` describes the server to the person."""
    return asyncio.run(_run(options, server, conversation))


async def _run(options: Options, server: str, conversation: Conversation) -> int:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task  # noqa: S101  (for the type checker)
    received: list[int] = []

    def end(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end, number)
    interactive = InteractiveChat(options, server, conversation)
    try:
        await interactive.client.open()
        await interactive.run()
    except ClientError as error:
        report(connection_failure(error, options.url, key=options.key))
        return exit_status(error)
    except asyncio.CancelledError:
        if not received:
            raise
        return 128 + received[0]
    finally:
        await interactive.client.close()
    return 0


class _Running(NamedTuple):
    """The answer that is being drawn: the task that reads it, its display, and the cancels that were sent."""

    reply: Reply
    reading: asyncio.Task[None]
    display: Screen | Teletype
    cancels: list[asyncio.Task[None]]


class InteractiveChat:
    """A conversation over one client, drawn on a console."""

    def __init__(self, options: Options, server: str, conversation: Conversation) -> None:
        self.client = Chat(options.url, api_key=options.key, on_retry=self._show_wait)
        self._server = server
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._conversation = conversation
        self._options = options
        self._models: list[str] = []
        self._stats = options.stats
        self._running: _Running | None = None
        self._saved: Path | None = None
        self._left = False

    async def run(self) -> None:
        lines = line_editor(history_path(), self._known_models, dumb=self._console.is_dumb_terminal)
        self._say(f"ws_chat {version('ws-chat')} · {self._server}", "/help lists the commands, Ctrl-D exits.")
        if self._conversation.turns:
            count = len(self._conversation.turns)
            self._say(
                f"Continues after {count} question{'' if count == 1 else 's'}: {self._conversation.turns[-1].question}"
            )
        # For the whole time, so that a Ctrl-C just after an answer has ended does not end the program.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupt)
        while not self._left:
            self._console.print()
            try:
                line = await lines.prompt_async(handle_sigint=False)
            except KeyboardInterrupt:
                self._say("Ctrl-D exits.")
            except EOFError:
                return
            else:
                await self._handle(line)

    async def _handle(self, line: str) -> None:
        try:
            command = read_command(line)
        except UnknownCommandError as error:
            self._fail(str(error))
            return
        match command:
            case None:
                if line.strip():
                    await self._ask(line.strip())
            case "retry", _:
                await self._retry()
            case "model", name:
                self._set_model(name)
            case "models", _:
                await self._list_models()
            case "attach", place:
                self._attach(place)
            case "system", text:
                self._set_system(text)
            case "new", _:
                self._conversation.clear()
                self._say("A new conversation.")
            case "save", name:
                self._save(name)
            case "stats", _:
                self._stats = not self._stats
                self._say(f"Figures after each answer: {'on' if self._stats else 'off'}.")
            case "help", _:
                self._help()
            case "quit", _:
                self._left = True

    async def _ask(self, question: str) -> None:
        watch = Stopwatch()
        self._console.print()
        reply = await self._answer(question, watch)
        if reply is None:
            return
        self._conversation.record(question, reply)
        save_last(self._conversation)
        stopped = reply.status in ("cancelled", "running")  # running: Ctrl-C did not wait for its end
        lines = [f"({remark})" for remark in (*(["stopped"] if stopped else ()), *remarks(reply))]
        if self._stats and reply.seq:
            lines.append(watch.summary(reply))
        if lines:
            if reply.text or reply.reasoning or reply.refusal:
                self._console.print()
            self._say(*lines)

    async def _answer(self, question: str, watch: Stopwatch) -> Reply | None:
        """Return the reply to a question; None when it could not be sent."""
        reply, whole = None, False
        for attempt in range(1, ATTEMPTS + 1):
            try:
                reply = self._conversation.ask(self.client, question, whole=whole)
                await self._draw(reply, watch)
            except ClientError as error:
                if attempt < ATTEMPTS and (lost_with_server(error) or is_forgotten(error)):
                    whole = True
                    if reply and reply.text:
                        self._console.print()
                        self._say("(the server went away with this answer: asking again)")
                        self._console.print()
                    continue
                self._fail(explained(error, self._options.url) + ("\n/retry asks again." if error.retryable else ""))
            except ValueError as error:  # a lone surrogate, pasted
                self._fail(str(error))
            return reply
        return reply

    async def _draw(self, reply: Reply, watch: Stopwatch) -> None:
        """Draw an answer until it has ended, or Ctrl-C gave up on it. Raises ClientError."""

        async def read() -> None:
            async for frame in reply:
                watch.token()
                display.show(frame)

        display = Teletype(self._console) if self._console.is_dumb_terminal else Screen(self._console)
        async with display, reply:  # leaving it cancels the answer
            reading = asyncio.create_task(read())
            self._running = _Running(reply, reading, display, [])
            try:
                await asyncio.wait({reading})
            finally:
                self._running = None
                reading.cancel()
        if not reading.cancelled():
            reading.result()

    def _interrupt(self) -> None:
        """Stop the running answer at Ctrl-C; a second one does not wait for the server."""
        if not (running := self._running):
            return
        if running.cancels:
            running.reading.cancel()
        else:
            running.cancels.append(asyncio.create_task(running.reply.cancel()))
            asyncio.get_running_loop().call_later(CANCEL_TIMEOUT, running.reading.cancel)

    def _show_wait(self, reason: ClientError, _: float) -> None:
        if self._running:
            why = "the connection is lost" if isinstance(reason, ConnectionLostError) else str(reason)
            self._running.display.notice = f"{why}, trying again"

    async def _retry(self) -> None:
        if question := self._conversation.pop_question():
            self._say(f"› {question}")
            await self._ask(question)
        else:
            self._fail("There is no question to ask again yet.")

    def _set_model(self, name: str) -> None:
        if name:
            self._conversation.model = None if name == "-" else name
        if self._conversation.model:
            self._say(f"Model: {self._conversation.model}")
        else:
            last = self._conversation.turns[-1].model if self._conversation.turns else None
            self._say("Model: the server's default" + (f" (last: {last})" if last else ""))

    def _known_models(self) -> list[str]:
        """Return the server's models; none where it does not list them. Blocks."""
        if not self._models:
            with contextlib.suppress(ValueError):
                self._models = fetch_models(self._options.url, self._options.key)
        return self._models

    async def _list_models(self) -> None:
        try:
            self._models = await asyncio.to_thread(fetch_models, self._options.url, self._options.key)
        except ValueError as error:
            self._fail(f"{error}\n/model NAME uses any model that the server allows.")
            return
        used = self._conversation.model or next(iter(self._models), None)
        self._say(*(f"{name}{'  (in use)' if name == used else ''}" for name in self._models))

    def _attach(self, place: str) -> None:
        try:
            self._conversation.images += (image(place),)
        except ValueError as error:
            self._fail(str(error) if place else "Name a file, or an https address: /attach FILE")
            return
        count = len(self._conversation.images)
        self._say(f"{count} image{'' if count == 1 else 's'} will be sent with the next question.")

    def _set_system(self, text: str) -> None:
        if text:
            self._conversation.system = None if text == "-" else text
        self._say(f"System message: {self._conversation.system or 'none'}")

    def _save(self, name: str) -> None:
        if not self._conversation.turns:
            self._fail("There is nothing to save yet.")
            return
        try:
            self._saved = self._conversation.save(name, last=self._saved)
        except FileExistsError as error:
            self._fail(f"{error.filename} exists already and was not changed. Give another name.")
        except OSError as error:
            self._fail(f"{error.filename} cannot be written: {error.strerror}.")
        except (RuntimeError, ValueError) as error:  # an unknown ~user; a NUL
            self._fail(f"{name!r} is not a file name: {error}.")
        else:
            self._say(f"Written to {self._saved}")

    def _help(self) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for command in COMMANDS:
            table.add_row(f"/{command.name} {command.argument}", command.help)
        table.add_row()
        for key, does in KEYS:
            table.add_row(key, does)
        self._console.print(table)

    def _say(self, *lines: str) -> None:
        self._console.print(Text(visible("\n".join(lines)), style="dim"))

    def _fail(self, text: str) -> None:
        self._console.print(Text(visible(text), style="red"))
