"""The chat of a person at a terminal: a line is read, a command carried out or a question answered, until Ctrl-D."""

from __future__ import annotations

import asyncio
import signal
from importlib.metadata import version
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ws_chat.client.chat import Chat, connect
from ws_chat.client.errors import ClientError
from ws_chat.terminal.answering import Answering
from ws_chat.terminal.commands import COMMANDS, KEYS, UnknownCommandError, read_command
from ws_chat.terminal.faults import exit_status, no_server
from ws_chat.terminal.keys import history_path, line_editor
from ws_chat.terminal.plain import tell
from ws_chat.terminal.remarks import fail, say
from ws_chat.terminal.saving import save
from ws_chat.terminal.turns import Conversation
from ws_chat.terminal.waiting import telling_of_waits

if TYPE_CHECKING:
    from pathlib import Path

    from ws_chat.terminal.options import Options


def chat(options: Options, where: str) -> int:
    """Chat until the person leaves; return the exit status. `where` says who answers."""
    return asyncio.run(_run(options, where))


async def _run(options: Options, where: str) -> int:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task  # noqa: S101  (this is one)
    ended_by: list[int] = []

    def end(number: int) -> None:
        ended_by.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, end, number)
    client = connect(options.url, api_key=options.key)
    try:
        await client.open()
        await Interactive(client, options, where).run()
    except ClientError as error:
        tell(no_server(error, options))
        return exit_status(error)
    except asyncio.CancelledError:
        if not ended_by:
            raise
        return 128 + ended_by[0]
    finally:
        await client.close()
    return 0


class Interactive:
    """A chat over one connection."""

    def __init__(self, client: Chat, options: Options, where: str) -> None:
        self._where = where
        self._console = Console(highlight=False, markup=False, emoji=False)
        self._conversation = Conversation(system=options.system, model=options.model)
        self._answering = Answering(client, self._conversation, self._console, stats=options.stats)
        self._saved: Path | None = None
        self._left = False

    async def run(self) -> None:
        """Read and answer until the person leaves."""
        lines = line_editor(history_path(), dumb=self._console.is_dumb_terminal)
        say(self._console, f"ws_chat {version('ws-chat')} · {self._where}", "/help shows what there is, Ctrl-D leaves.")
        # All the time, so that one which comes as an answer ends does not end the program.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._answering.interrupt)
        with telling_of_waits(self._answering.wait):
            while not self._left:
                self._console.print()
                try:
                    line = await lines.prompt_async(handle_sigint=False)
                except KeyboardInterrupt:
                    say(self._console, "Ctrl-D leaves.")
                except EOFError:
                    return
                else:
                    await self._take(line)

    async def _take(self, line: str) -> None:
        try:
            command = read_command(line)
        except UnknownCommandError as error:
            fail(self._console, str(error))
            return
        if command is None:
            if line.strip():
                await self._answering.ask(line.strip())
        elif command[0] == "retry":
            await self._retry()
        else:
            does = {
                "model": self._choose_model,
                "system": self._put_first,
                "new": self._begin_anew,
                "save": self._save,
                "stats": self._switch_stats,
                "help": self._help,
                "quit": self._leave,
            }
            does[command[0]](command[1])

    async def _retry(self) -> None:
        if question := self._conversation.take_back():
            say(self._console, f"› {question}")
            await self._answering.ask(question)
        else:
            fail(self._console, "Nothing has been asked yet.")

    def _choose_model(self, name: str) -> None:
        if name:
            self._conversation.model = None if name == "-" else name
        if self._conversation.model:
            say(self._console, f"The model is {self._conversation.model}.")
        else:
            last = self._conversation.turns[-1].model if self._conversation.turns else None
            say(self._console, "The server chooses the model" + (f"; the last one was {last}." if last else "."))

    def _put_first(self, text: str) -> None:
        if text:
            self._conversation.system = None if text == "-" else text
        system = self._conversation.system
        say(self._console, f"The system message: {system}" if system else "There is no system message.")

    def _begin_anew(self, _: str) -> None:
        self._conversation.clear()
        say(self._console, "A new conversation.")

    def _save(self, name: str) -> None:
        if not self._conversation.turns:
            fail(self._console, "There is nothing to save yet.")
            return
        try:
            self._saved = save(self._conversation, name, again=self._saved)
        except FileExistsError as error:
            fail(self._console, f"{error.filename} is there already, and was left as it is.")
        except OSError as error:
            fail(self._console, f"{error.filename} cannot be written: {error.strerror}.")
        except (RuntimeError, ValueError) as error:  # of a user that there is not; of a name that no file can have
            fail(self._console, f"That is no name for a file: {error}.")
        else:
            say(self._console, f"Written to {self._saved}")

    def _switch_stats(self, _: str) -> None:
        self._answering.stats = not self._answering.stats
        say(self._console, f"Figures after each answer: {'on' if self._answering.stats else 'off'}.")

    def _help(self, _: str) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for command in COMMANDS:
            table.add_row(f"/{command.name} {command.argument}", command.does)
        table.add_row()
        for key, does in KEYS:
            table.add_row(key, does)
        self._console.print(table)

    def _leave(self, _: str) -> None:
        self._left = True
