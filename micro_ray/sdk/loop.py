"""An event loop in a thread of its own, for code without ``await``."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from micro_ray.errors import BadRequest, Cancelled, Timeout

__all__ = ["Loop"]

T = TypeVar("T")

#: Seconds that work has to end when a person has interrupted it, and all of it at the end.
END = 2.0
CLOSE = 10.0


class Loop:
    """Runs what it is given and waits for it; safe to use from many threads. The thread is a
    daemon: who does not close it is not kept from exiting."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._closing = threading.Event()
        self._pid = os.getpid()
        self._thread.start()

    @property
    def forked(self) -> bool:
        """Whether this is the loop of a process that was forked from: its thread is not here."""
        return self._pid != os.getpid()

    def run(self, work: Awaitable[T], timeout: float | None = None) -> T:
        """What ``work`` gives or raises. Raises BadRequest when this is closed, or when it is asked
        from its own thread, which would wait for itself; Timeout after ``timeout`` seconds."""
        tasks: list[asyncio.Task[Any]] = []
        coroutine = _await(work, tasks)
        try:
            running = self._hand_over(coroutine, work)
            return running.result(timeout)
        except concurrent.futures.CancelledError:
            raise Cancelled(self._name, "it was closed meanwhile") from None
        except KeyboardInterrupt:
            # Nobody waits for it any more, and what is run next must find it ended: also when the
            # interrupt came while it was being handed over.
            self._end(tasks)
            with contextlib.suppress(ValueError):  # it is running still
                coroutine.close()
            raise
        except TimeoutError:
            if running.done():
                raise  # of the work itself
            self._end(tasks)
            raise Timeout(self._name, f"not done within {timeout:g} s") from None

    def _hand_over(
        self, coroutine: Coroutine[Any, Any, T], work: Awaitable[T]
    ) -> concurrent.futures.Future[T]:
        try:
            if threading.current_thread() is self._thread:
                raise BadRequest(self._name, "a blocking call from the loop that would serve it")
            if self._closing.is_set():
                raise BadRequest(self._name, "it has been closed")
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except Exception as error:
            coroutine.close()
            if asyncio.iscoroutine(work):
                work.close()
            if isinstance(error, RuntimeError):
                raise BadRequest(self._name, "it has been closed") from None
            raise

    def close(self, last: Callable[[], Awaitable[object]] | None = None) -> None:
        """Run ``last``, end what is under way, and end the thread; idempotent."""
        if self.forked or self._closing.is_set():
            return
        if last is not None and not sys.is_finalizing():
            with contextlib.suppress(Timeout):
                self.run(last(), CLOSE)
        self._closing.set()
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            # What was handed over in the last moment becomes a task first, and is ended then: its
            # caller waits for an answer.
            self._loop.run_until_complete(_end_all())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def _end(self, tasks: list[asyncio.Task[Any]]) -> None:
        with contextlib.suppress(TimeoutError, RuntimeError):
            asyncio.run_coroutine_threadsafe(_cancel(tasks), self._loop).result(END)


async def _await(work: Awaitable[T], tasks: list[asyncio.Task[Any]]) -> T:
    task = asyncio.current_task()
    assert task is not None
    tasks.append(task)
    return await work


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _end_all() -> None:
    await asyncio.sleep(0)
    while others := [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]:
        async with asyncio.timeout(END):
            await _cancel(others)
