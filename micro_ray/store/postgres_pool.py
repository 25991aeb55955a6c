"""Connections to the database, made by whoever needs one and kept for the next.

There is no task in the background: a failure to connect is raised where a connection was asked for,
with its reason, and a server that is back is found by the next attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType

import psycopg
from psycopg.pq import PipelineStatus, TransactionStatus

from micro_ray.errors import Unavailable
from micro_ray.store.postgres_connection import Connection, Cursor
from micro_ray.store.postgres_errors import crowded

__all__ = ["Pool"]

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
        #: Those in use, with the time by which they must have answered.
        self._used: dict[Connection, float] = {}
        self._watch: asyncio.TimerHandle | None = None
        self._closed = False

    async def close(self) -> None:
        """Connections at rest are closed, those in use are cut."""
        self._closed = True
        if self._watch is not None:
            self._watch.cancel()
        for connection in self._used:
            _cut(connection)
        while self._resting:
            await self._resting.pop()[0].close()

    async def connect(self) -> Connection:
        """A connection of the caller's own. Raises what psycopg raises."""
        return await Connection.connect(
            **self._options,  # type: ignore[arg-type]  # all are strings of libpq
            autocommit=True,
            cursor_factory=Cursor,
        )

    def connection(self, end: float, about: str | None) -> Lease:
        """One of the pool for an ``async with``, by the time ``end`` of the loop, for statements
        ``about`` a namespace (see Connection); it is cut when it gives no answer for too long.
        Raises Unavailable when there is none by then, psycopg's errors when none can be made."""
        return Lease(self, end, about)

    async def lend(self, end: float, about: str | None) -> Connection:
        """See :meth:`connection`, which gives it back."""
        connection = self._at_hand()
        if connection is None:
            connection = await self._wait(end)
        else:
            await self._free.acquire()  # which is free, so nobody comes between
        connection.about = about
        due = self._used[connection] = self._loop.time() + ANSWER
        if self._watch is None or due < self._watch.when():
            self._look_at(due)
        return connection

    async def take_back(self, connection: Connection, error: BaseException | None) -> None:
        """``error`` is what its user ended with."""
        try:
            if isinstance(error, psycopg.Error):
                with contextlib.suppress(psycopg.Error):
                    await (connection.rollback() if crowded(error) else connection.close())
        finally:
            connection.about = None
            self._used.pop(connection, None)
            self._free.release()
            if self._closed or not _at_rest(connection):
                await connection.close()
            else:
                self._resting.append((connection, self._loop.time()))

    def _look_at(self, due: float) -> None:
        """One timer for all: one for each use would cost more than handing a connection out."""
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        """Cut those that have had no answer for too long."""
        self._watch = None
        now = self._loop.time()
        for connection, due in list(self._used.items()):
            if due <= now:
                _cut(connection)
                del self._used[connection]
        if self._used and not self._closed:
            self._look_at(min(self._used.values()))

    def _at_hand(self) -> Connection | None:
        """One that was just used, where nothing needs waiting for: the common case."""
        if self._closed or self._free.locked() or not self._resting:
            return None
        connection, since = self._resting[-1]
        if self._loop.time() - since > REST or _stirs(connection):
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
            fresh = self._loop.time() - since <= REST and not _stirs(connection)
            if fresh or await _lives(connection):
                return connection
        connection = await self.connect()
        try:
            await self._configure(connection)
        except BaseException:
            await connection.close()
            raise
        return connection


class Lease:
    """A connection while it is in use. Not made by contextlib: this is on the way of each read and
    write."""

    __slots__ = ("_about", "_connection", "_end", "_pool")

    def __init__(self, pool: Pool, end: float, about: str | None) -> None:
        self._about = about
        self._pool = pool
        self._end = end

    async def __aenter__(self) -> Connection:
        self._connection = await self._pool.lend(self._end, self._about)
        return self._connection

    async def __aexit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.take_back(self._connection, error)


def _at_rest(connection: Connection) -> bool:
    """Whether the next one may use it as it is."""
    wire = connection.pgconn
    return (
        wire.transaction_status == TransactionStatus.IDLE
        and wire.pipeline_status == PipelineStatus.OFF
    )


def _stirs(connection: Connection) -> bool:
    """Whether there is something to read on a connection at rest: most likely its end. A statement
    sent on it would have an end that nobody knows."""
    if connection.closed:
        return True
    waiting = select.poll()
    waiting.register(connection.fileno(), select.POLLIN)
    return bool(waiting.poll(0))


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
