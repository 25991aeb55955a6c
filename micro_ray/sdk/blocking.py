"""Calling services from plain scripts: the same client without ``await``."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeVar, cast

from micro_ray.router import Entry
from micro_ray.sdk.client import AsyncClient
from micro_ray.settings import Bootstrap

__all__ = ["Client"]

T = TypeVar("T")

#: Seconds that work has to end when a person has interrupted it.
END = 2.0


class Client:
    """``Client().call("helloworld", "Helloworld.Call", {"name": "Alice"})``.

    Runs an :class:`AsyncClient` on a loop of its own in a daemon thread, started by the first call;
    ``close()`` or leaving ``with`` ends it. Safe to use from many threads.
    """

    def __init__(self, bootstrap: Bootstrap | None = None) -> None:
        self._client = AsyncClient(bootstrap)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def call(
        self,
        service: str,
        endpoint: str = "call",
        value: Any = None,
        *,
        into: Any = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
        version: str = "",
        idempotent: bool = False,
    ) -> Any:
        """See :meth:`AsyncClient.call`."""
        return self._run(
            self._client.call(
                service,
                endpoint,
                value,
                into=into,
                timeout=timeout,
                metadata=metadata,
                version=version,
                idempotent=idempotent,
            )
        )

    def stream(
        self, service: str, endpoint: str, value: Any = None, **options: Any
    ) -> Iterator[Any]:
        """See :meth:`AsyncClient.stream`; ``value`` is one request."""
        answers = self._client.stream(service, endpoint, value, **options)
        try:
            while True:
                try:
                    yield self._run(anext(answers))
                except StopAsyncIteration:
                    return
        finally:
            self._run(answers.aclose())  # type: ignore[attr-defined]

    def services(self) -> list[str]:
        """See :meth:`AsyncClient.services`."""
        return list(self._run(self._client.services()))

    def entries(self) -> list[Entry]:
        """See :meth:`AsyncClient.entries`."""
        return list(self._run(self._client.entries()))

    def run(self, work: Callable[[AsyncClient], Awaitable[T]]) -> T:
        """Run ``work(client)`` on the client's loop, for what has no verb of its own here."""

        async def awaited() -> T:
            return await work(self._client)

        return cast(T, self._run(awaited()))

    def close(self) -> None:
        """End the connections and the thread; idempotent."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._client.__aexit__(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, work: Any) -> Any:
        loop, tasks = self._start(), list[asyncio.Task[Any]]()
        running = asyncio.run_coroutine_threadsafe(_await(work, tasks), loop)
        try:
            return running.result()
        except KeyboardInterrupt:
            # Nobody waits for it any more, and what is run next must find it ended.
            with contextlib.suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(_end(tasks), loop).result(END)
            raise

    def _start(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=loop.run_forever, name="micro-client", daemon=True)
                thread.start()
                try:
                    opened: Coroutine[Any, Any, Any] = self._client.__aenter__()
                    asyncio.run_coroutine_threadsafe(opened, loop).result(10)
                except BaseException:
                    loop.call_soon_threadsafe(loop.stop)
                    thread.join(10)
                    loop.close()
                    raise
                self._loop, self._thread = loop, thread
            return self._loop


async def _await(work: Any, tasks: list[asyncio.Task[Any]]) -> Any:
    task = asyncio.current_task()
    assert task is not None
    tasks.append(task)
    return await work


async def _end(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
