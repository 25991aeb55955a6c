"""Connections to the database, made by whoever needs one and kept for the next.

There is no task in the background: a failure to connect is raised where a connection was asked for,
with its reason, and a server that is back is found by the next attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus

from micro_ray.errors import Unavailable
from micro_ray.store.postgres_errors import crowded

__all__ = ["Connection", "Pool"]

Connection = psycopg.AsyncConnection[Any]

#: Seconds that one answer may take before its connection is cut.
ANSWER = 15.0
#: Seconds of rest after which a connection is tried before it is used: a round trip before each
#: statement would double its price.
REST = 1.0


class Pool:
    """At most ``size`` connections; ``configure`` prepares each new one."""

    def __init__(
        self,
        options: Mapping[str, str],
        *,
        size: int,
        name: str,
        configure: Callable[[Connection], Awaitable[None]],
    ) -> None:
        self._options = dict(options)
        self._size = size
        self._name = name
        self._configure = configure
        self._loop = asyncio.get_running_loop()
        self._free = asyncio.Semaphore(size)
        #: Those at rest, with the time since; the last used is used first.
        self._resting: list[tuple[Connection, float]] = []
        self._used: set[Connection] = set()
        self._closed = False

    async def close(self) -> None:
        """Connections at rest are closed, those in use are cut."""
        self._closed = True
        for connection in self._used:
            _cut(connection)
        while self._resting:
            await self._resting.pop()[0].close()

    async def connect(self) -> Connection:
        """A connection of the caller's own. Raises what psycopg raises."""
        return await psycopg.AsyncConnection.connect(**self._options, autocommit=True)  # type: ignore[arg-type]  # all are strings of libpq

    @contextlib.asynccontextmanager
    async def connection(self, end: float) -> AsyncIterator[Connection]:
        """One of the pool, by the time ``end`` of the loop; it is cut when it gives no answer for
        too long. Raises Unavailable when there is none by then, psycopg's errors when none can be
        made."""
        connection = self._at_hand()
        if connection is None:
            connection = await self._wait(end)
        else:
            await self._free.acquire()  # which is free, so nobody comes between
        cut = self._loop.call_later(ANSWER, _cut, connection)
        self._used.add(connection)
        try:
            yield connection
        except psycopg.Error as error:
            with contextlib.suppress(psycopg.Error):
                await (connection.rollback() if crowded(error) else connection.close())
            raise
        finally:
            cut.cancel()
            self._used.discard(connection)
            self._free.release()
            if self._closed or not _at_rest(connection):
                await connection.close()
            else:
                self._resting.append((connection, self._loop.time()))

    def _at_hand(self) -> Connection | None:
        """One that was just used, where nothing needs waiting for: the common case."""
        if self._closed or self._free.locked() or not self._resting:
            return None
        if self._loop.time() - self._resting[-1][1] > REST:
            return None
        return self._resting.pop()[0]

    async def _wait(self, end: float) -> Connection:
        slot = False
        try:
            async with asyncio.timeout_at(max(end, self._loop.time() + 0.05)):
                slot = await self._free.acquire()
                return await self._take()
        except TimeoutError:
            if slot:
                self._free.release()
            busy = f"all {self._size} connections are busy"
            raise Unavailable(
                "store", f"{self._name}: {'no answer' if slot else busy}; try again", 1.0
            ) from None
        except BaseException:
            if slot:
                self._free.release()
            raise

    async def _take(self) -> Connection:
        if self._closed:
            raise Unavailable("store", "the store is closed")
        while self._resting:
            connection, since = self._resting.pop()
            if self._loop.time() - since <= REST or await _lives(connection):
                return connection
        connection = await self.connect()
        try:
            await self._configure(connection)
        except BaseException:
            await connection.close()
            raise
        return connection


def _at_rest(connection: Connection) -> bool:
    """Whether the next one may use it as it is."""
    wire = connection.pgconn
    return (
        wire.transaction_status == TransactionStatus.IDLE
        and wire.pipeline_status == PipelineStatus.OFF
    )


async def _lives(connection: Connection) -> bool:
    try:
        await connection.execute("")
    except psycopg.Error:
        await connection.close()
        return False
    except BaseException:
        await connection.close()
        raise
    return True


def _cut(connection: Connection) -> None:
    """End a connection under whoever waits for its answer."""
    with contextlib.suppress(OSError, psycopg.Error):
        handle = os.dup(connection.fileno())
        with socket.socket(fileno=handle) as line:
            line.shutdown(socket.SHUT_RDWR)
