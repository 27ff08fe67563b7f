"""An event loop in a thread of its own, for callers without async."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")
_CLOSED: Final = "This connection was closed; open another one with `connect_sync`."


class LoopThread:
    """Runs coroutines for any number of threads. Starts with the first coroutine; cannot be restarted after `stop`."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result. After `stop`, waits for the thread to end and raises RuntimeError."""
        with self._lock:
            future = None if self._stopped else self._submit(coroutine)
        if future is None:
            coroutine.close()
            if self._thread:
                self._thread.join()
            raise RuntimeError(_CLOSED)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise RuntimeError(_CLOSED) from None
        except BaseException:
            future.cancel()  # Ctrl-C in this thread must not leave it running in the other
            raise

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="ws_chat client", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def stop(self, last: Coroutine[Any, Any, None]) -> None:
        """Run a last coroutine, cancel all other tasks, and stop. Calling it again does nothing."""
        with self._lock:
            stopped, self._stopped = self._stopped, True
        if stopped or self._loop is None or self._thread is None:
            last.close()
            return
        try:
            asyncio.run_coroutine_threadsafe(_end(last), self._loop).result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


async def _end(last: Coroutine[Any, Any, None]) -> None:
    try:
        await last
    finally:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()
