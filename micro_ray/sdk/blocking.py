"""Calling services from plain scripts: the same client without ``await``."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from typing import Any, TypeVar

from micro_ray.errors import BadRequest, MicroError
from micro_ray.router import Entry
from micro_ray.sdk.client import AsyncClient
from micro_ray.sdk.loop import Loop
from micro_ray.settings import Bootstrap

__all__ = ["Client"]

T = TypeVar("T")

#: Seconds that the end of a stream which nobody reads any more may take.
END = 2.0
_END = object()


class Client:
    """``Client().call("helloworld", "Helloworld.Call", {"name": "Alice"})``.

    Runs an :class:`AsyncClient` on a loop of its own in a daemon thread, started by the first call;
    ``close()`` or leaving ``with`` ends it: calls under way end with Cancelled, later ones raise
    BadRequest. Safe to use from many threads, and after a fork. ``bootstrap`` says where the
    platform is (default: from the settings).
    """

    def __init__(self, bootstrap: Bootstrap | None = None) -> None:
        self._bootstrap = bootstrap
        self._lock = threading.Lock()
        self._open: tuple[Loop, AsyncClient] | None = None
        self._closed = False
        #: Of processes that this one was forked from. They must never be collected here: their
        #: sockets are shared with those processes.
        self._abandoned: list[Any] = []

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
        node: str = "",
        idempotent: bool = False,
    ) -> Any:
        """See :meth:`AsyncClient.call`; ``value`` may be an iterator (a generator, for one) of
        requests."""
        return self.run(
            lambda client: client.call(
                service,
                endpoint,
                _requests(value),
                into=into,
                timeout=timeout,
                metadata=metadata,
                version=version,
                node=node,
                idempotent=idempotent,
            )
        )

    def stream(
        self, service: str, endpoint: str, value: Any = None, **options: Any
    ) -> Generator[Any, None, None]:
        """See :meth:`AsyncClient.stream`; ``value`` is one request, or an iterator (a generator,
        for one) of requests, which is read in a thread while answers come."""
        loop, client = self._start()
        answers = client.stream(service, endpoint, _requests(value), **options)
        try:
            while (answer := loop.run(_next(answers))) is not _END:
                yield answer
        finally:
            # At the end of the interpreter no thread answers any more, and a closed client has
            # ended its streams.
            if not sys.is_finalizing() and not loop.forked:
                with contextlib.suppress(MicroError):
                    loop.run(answers.aclose(), END)

    def token(self) -> str:
        """See :meth:`AsyncClient.token`."""
        return self.run(lambda client: client.token())

    def services(self) -> list[str]:
        """See :meth:`AsyncClient.services`."""
        return self.run(lambda client: client.services())

    def entries(self) -> list[Entry]:
        """See :meth:`AsyncClient.entries`."""
        return self.run(lambda client: client.entries())

    def run(self, work: Callable[[AsyncClient], Awaitable[T]]) -> T:
        """Run ``work(client)`` on the client's loop, for what has no verb of its own here."""
        loop, client = self._start()
        return loop.run(work(client))

    def close(self) -> None:
        """End the connections and the thread; idempotent."""
        with self._lock:
            opened, self._open, self._closed = self._open, None, True
        if opened is not None:
            loop, client = opened
            loop.close(client.__aexit__)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start(self) -> tuple[Loop, AsyncClient]:
        with self._lock:
            if self._closed:
                raise BadRequest("client", "it has been closed")
            if self._open is not None and self._open[0].forked:
                self._abandoned.append(self._open)
                self._open = None
            if self._open is None:
                loop, client = Loop("client"), AsyncClient(self._bootstrap)
                try:
                    loop.run(client.__aenter__())
                except BaseException:
                    loop.close()
                    raise
                self._open = (loop, client)
            return self._open


def _requests(value: Any) -> Any:
    return _pulled(value) if isinstance(value, Iterator) else value


async def _pulled(requests: Iterator[Any]) -> AsyncIterator[Any]:
    """An iterator's items; making one may block, so it is asked in a thread."""
    while (item := await asyncio.to_thread(next, requests, _END)) is not _END:
        yield item


async def _next(answers: AsyncIterator[Any]) -> Any:
    return await anext(answers, _END)
