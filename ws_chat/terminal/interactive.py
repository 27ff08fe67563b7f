"""The chat of a person at a terminal: a line is read, an answer is drawn, and so on until Ctrl-D."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ws_chat.client.chat import Chat, connect
from ws_chat.client.errors import ClientError
from ws_chat.terminal.commands import COMMANDS, KEYS, UnknownCommandError, read_command
from ws_chat.terminal.faults import exit_status, no_server, went_with_its_server
from ws_chat.terminal.keys import history_path, keys_unseen, line_editor
from ws_chat.terminal.plain import tell
from ws_chat.terminal.saving import save
from ws_chat.terminal.screen import Screen
from ws_chat.terminal.stats import Stopwatch
from ws_chat.terminal.teletype import Teletype
from ws_chat.terminal.turns import Conversation, is_forgotten
from ws_chat.terminal.visible import visible
from ws_chat.terminal.waiting import telling_of_waits

if TYPE_CHECKING:
    from pathlib import Path

    from ws_chat.client.reply import Reply
    from ws_chat.terminal.options import Options

ATTEMPTS: Final = 4
"""How often one question is asked of servers that forget or go away."""
CANCELLING: Final = 2.0
"""Seconds that a cancelled answer has to end; without a network it never would."""


def chat(options: Options, where: str) -> int:
    """Chat until the person leaves; return the exit status. `where` says who answers."""
    return asyncio.run(_run(options, where))


async def _run(options: Options, where: str) -> int:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task  # noqa: S101  (this is one)
    ended_by: list[int] = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, lambda number=number: (ended_by.append(number), task.cancel()))
    client = connect(options.url, api_key=options.key)
    try:
        await client.open()
        await Interactive(client, options, where).run()
    except ClientError as error:
        tell(no_server(error, options))
        return exit_status(error)
    except asyncio.CancelledError:
        if ended_by:
            return 128 + ended_by[0]
        raise
    finally:
        await client.close()
    return 0


class Interactive:
    """A chat over one connection."""

    def __init__(self, client: Chat, options: Options, where: str) -> None:
        self._client = client
        self._where = where
        self._stats = options.stats
        self._conversation = Conversation(system=options.system, model=options.model)
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._saved: Path | None = None
        self._screen: Screen | Teletype | None = None

    async def run(self) -> None:
        """Read and answer until the person leaves."""
        lines = line_editor(history_path())
        self._say(f"ws_chat {version('ws-chat')} · {self._where} · /help shows what there is, Ctrl-D leaves")
        with telling_of_waits(self._notice):
            while True:
                self._console.print()
                try:
                    line = await lines.prompt_async()
                except KeyboardInterrupt:
                    self._say("Ctrl-D or /quit leaves.")
                    continue
                except EOFError:
                    return
                if line.strip() and not await self._take(line):
                    return

    async def _take(self, line: str) -> bool:
        """Carry out a command or ask a question; False: the person leaves."""
        try:
            command = read_command(line)
        except UnknownCommandError as error:
            self._fail(str(error))
            return True
        if command is None:
            await self._ask(line.strip())
            return True
        name, argument = command
        match name:
            case "quit":
                return False
            case "retry":
                if question := self._conversation.take_back():
                    await self._ask(question)
                else:
                    self._fail("Nothing has been asked yet.")
            case "model":
                self._choose_model(argument)
            case "system":
                self._put_first(argument)
            case "new":
                self._conversation.clear()
                self._say("A new conversation.")
            case "save":
                self._save(argument)
            case "stats":
                self._stats = not self._stats
                self._say("Each answer tells how fast it came." if self._stats else "No more of that.")
            case _:
                self._help()
        return True

    async def _ask(self, question: str) -> None:
        watch = Stopwatch()
        screen = Teletype(self._console) if self._console.is_dumb_terminal else Screen(self._console)
        self._console.print()
        whole = False
        for attempt in range(1, ATTEMPTS + 1):
            try:
                reply = self._conversation.ask(self._client, question, whole=whole)
            except ValueError as error:
                self._fail(str(error))
                return
            try:
                with keys_unseen():
                    async with screen:
                        self._screen = screen
                        await self._read(reply, screen, watch)
                break
            except ClientError as error:
                lost = went_with_its_server(error)
                if not (lost or is_forgotten(error)) or attempt == ATTEMPTS:
                    self._fail(f"{error}" + ("\n/retry asks again." if error.retryable else ""))
                    break
                if lost and reply.text:
                    self._say("The server was restarted and has lost this answer: asking again.")
                    self._console.print()
                whole = True
                screen = type(screen)(self._console)
            finally:
                self._screen = None
        self._conversation.hear(question, reply)
        self._remark(reply, watch)

    async def _read(self, reply: Reply, screen: Screen | Teletype, watch: Stopwatch) -> None:
        """Draw an answer to its end, or until Ctrl-C. Raises ClientError."""

        async def read() -> None:
            async for frame in reply:
                watch.token()
                screen.take(frame)

        def interrupt() -> None:
            if not cancelling:
                cancelling.append(loop.create_task(reply.cancel()))
                loop.call_later(CANCELLING, reading.cancel)
            else:
                reading.cancel()

        loop = asyncio.get_running_loop()
        cancelling: list[asyncio.Task[None]] = []
        reading = loop.create_task(read())
        loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            await asyncio.wait({reading})
            if not reading.cancelled():
                reading.result()
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            reading.cancel()
            await reply.cancel()  # when it is the program that ends

    def _remark(self, reply: Reply, watch: Stopwatch) -> None:
        """Say what the text of an answer does not."""
        if reply.status in ("cancelled", "running"):
            self._say("(stopped)")
        elif reply.finish_reason not in (None, "stop", "tool_calls"):
            self._say(f"(cut short: {reply.finish_reason})")
        for call in reply.tool_calls:
            function = call.get("function", {})
            self._say(f"(calls {function.get('name')}({function.get('arguments', '')}); there are no tools here)")
        if self._stats and reply.seq:
            self._say(watch.line(reply))

    def _choose_model(self, name: str) -> None:
        if name:
            self._conversation.model = None if name == "-" else name
        last = self._conversation.turns[-1].model if self._conversation.turns else None
        chosen = self._conversation.model
        self._say(
            f"The model is {chosen}." if chosen else f"The server chooses the model{f': {last}' if last else ''}."
        )

    def _put_first(self, text: str) -> None:
        if text:
            self._conversation.system = None if text == "-" else text
        self._say(f"First comes: {self._conversation.system}" if self._conversation.system else "No system message.")

    def _save(self, name: str) -> None:
        if not self._conversation.turns:
            self._fail("There is nothing to save yet.")
            return
        try:
            self._saved = save(self._conversation, name, over=self._saved)
        except FileExistsError:
            self._fail(f"{name} is there already; nothing was written.")
        except OSError as error:
            self._fail(f"{name} cannot be written: {error.strerror}.")
        else:
            self._say(f"Written to {self._saved}.")

    def _help(self) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for command in COMMANDS:
            table.add_row(f"/{command.name} {command.argument}", command.does)
        for key, does in KEYS:
            table.add_row(key, does)
        self._console.print(table)

    def _notice(self, reason: str) -> None:
        if self._screen:
            self._screen.notice = f"{reason}; trying again"

    def _say(self, text: str) -> None:
        self._console.print(Text(visible(text), style="dim"))

    def _fail(self, text: str) -> None:
        self._console.print(Text(visible(text), style="red"))
