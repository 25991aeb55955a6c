"""Statements and transactions in PostgreSQL or CockroachDB, whose end is known."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import psycopg

from micro_ray.errors import BadGateway, BadRequest, PreconditionFailed, Unavailable
from micro_ray.store.postgres_errors import crowded, lost, refused, told
from micro_ray.store.postgres_pool import Connection, Pool
from micro_ray.store.postgres_schema import migrate
from micro_ray.store.postgres_url import Target

__all__ = ["Database"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a verb tries to reach the database, and to end a transaction others come between.
PATIENCE = 5.0
#: Seconds that a commit whose answer was lost is asked after.
RESOLVE = 10.0
#: Milliseconds that the server lets a statement run, and a transaction hang without one.
_STATEMENT, _IDLE = 12_000, 5_000
#: Seconds between attempts to reach the server at the start: first, and at most.
_BACKOFF = (0.1, 3.0)


class Database:
    """Opened by :meth:`open`. ``size`` is how many connections it may have; at most as many
    verbs are in the database at a time, and the others wait."""

    def __init__(self, target: Target, *, size: int, patience: float = PATIENCE) -> None:
        self.name = target.name
        self.cockroach = False
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._pool = Pool(target.options, size=size, name=target.name, configure=self._configure)

    async def open(self) -> None:
        """Wait until the server is there, saying for what, and bring its schema up to date. Raises
        BadRequest for a user, password, database or TLS that it refuses, PreconditionFailed for a
        schema or encoding that cannot be used."""
        pause, waiting = _BACKOFF[0], False
        while True:
            try:
                async with await self._pool.connect() as connection:
                    await self._prepare(connection)
                break
            except psycopg.Error as error:
                if (what := refused(error)) is not None:
                    raise BadRequest("settings", f"store.url: {self.name}: {what}") from None
                if not lost(error) and not crowded(error):
                    raise told(error, self.name) from None
                if not waiting:
                    log.warning("waiting for the store at %s: %s", self.name, error)
                waiting = True
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, _BACKOFF[1])
        if waiting:
            log.warning("the store at %s is there", self.name)

    async def close(self) -> None:
        """Connections are closed; who asks for one gets Unavailable."""
        await self._pool.close()

    async def _prepare(self, connection: Connection) -> None:
        state = connection.info.parameter_status
        self.cockroach = state("crdb_version") is not None
        encoding = state("server_encoding") or "UTF8"
        if encoding.upper() not in ("UTF8", "UTF-8"):
            raise PreconditionFailed(
                "store", f"{self.name} is encoded in {encoding}: create a database in UTF8"
            )
        await migrate(connection, cockroach=self.cockroach)
        if not self.cockroach:
            cursor = await connection.execute("SHOW fsync")
            if (await cursor.fetchone()) == ("off",):
                log.warning("%s runs with fsync=off: a power failure loses writes", self.name)

    async def _configure(self, connection: Connection) -> None:
        await connection.execute(f"SET statement_timeout = {_STATEMENT}")
        await connection.execute(f"SET idle_in_transaction_session_timeout = {_IDLE}")
        if not self.cockroach:
            # An acknowledged write is on disk, whatever the server's habit.
            await connection.execute(
                "SELECT set_config('synchronous_commit', 'on', false)"
                " WHERE current_setting('synchronous_commit') = 'off'"
            )

    # -- single statements -----------------------------------------------------------------------

    async def ask(self, job: Callable[[Connection], Awaitable[T]]) -> T:
        """What ``job`` gives by one statement that may as well run twice; it does so on another
        connection when the first is lost, for as long as there is patience."""
        end = self._loop.time() + self._patience
        attempt = 0
        while True:
            try:
                async with self._pool.connection(end) as connection:
                    return await job(connection)
            except psycopg.Error as error:
                again = (lost(error) or crowded(error)) and refused(error) is None
                if not again or self._loop.time() > end:
                    raise told(error, self.name) from None
            await self._pause(attempt)
            attempt += 1

    # -- transactions ----------------------------------------------------------------------------

    async def transact(self, job: Callable[[Connection], Awaitable[tuple[T, bool]]]) -> T:
        """What ``job`` gives, once it is known to be committed. ``job`` runs in a SERIALIZABLE
        transaction and in pipeline mode, says whether it wrote, and is run again when another
        transaction came between or the connection was lost before the commit.

        Each attempt enters an id of its own in ``micro_store_commits`` with what it writes, so that
        a commit whose answer was lost can be asked after. Raises Unavailable when nothing was done,
        BadGateway when that could not be found out."""

        async def marked(connection: Connection, mark: str) -> tuple[T, bool]:
            answer, wrote = await job(connection)
            if wrote:
                await connection.execute(
                    "INSERT INTO micro_store_commits (id, done) VALUES (%s, true)", (mark,)
                )
            return answer, wrote

        return await self.transact_marked(marked)

    async def transact_marked(
        self, job: Callable[[Connection, str], Awaitable[tuple[T, bool]]]
    ) -> T:
        """The same for a ``job`` that enters the id itself, as part of another statement."""
        end = self._loop.time() + self._patience
        attempt = 0
        while True:
            mark, sent = os.urandom(16).hex(), False
            try:
                async with self._pool.connection(end) as connection, connection.pipeline():
                    await connection.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
                    answer, wrote = await job(connection, mark)
                    sent = wrote
                    # Not prepared, so that the word itself is on the wire.
                    await connection.execute("COMMIT" if wrote else "ROLLBACK", prepare=False)
                return answer
            except psycopg.Error as error:
                if sent and lost(error):
                    if await self._resolve(mark):
                        return answer
                elif refused(error) is not None or not (lost(error) or crowded(error)):
                    raise told(error, self.name) from None
                if self._loop.time() > end:
                    raise told(error, self.name) from None
            await self._pause(attempt)
            attempt += 1

    async def _resolve(self, mark: str) -> bool:
        """Whether the transaction with this id was committed. The id is entered as undone unless it
        is there, which waits for a transaction that still holds it, and bars one that has not come
        so far: the answer is final."""
        end = self._loop.time() + RESOLVE
        attempt = 0
        while True:
            reason: BaseException
            try:
                async with self._pool.connection(end) as connection:
                    await connection.execute(
                        "INSERT INTO micro_store_commits (id, done) VALUES (%s, false)"
                        " ON CONFLICT (id) DO NOTHING",
                        (mark,),
                    )
                    cursor = await connection.execute(
                        "SELECT done FROM micro_store_commits WHERE id = %s", (mark,)
                    )
                    row = await cursor.fetchone()
                    if row is not None:
                        return bool(row[0])
                    reason = RuntimeError("its mark is gone")
            except (psycopg.Error, Unavailable) as error:
                reason = error
            if self._loop.time() > end:
                raise BadGateway(
                    "store",
                    f"{self.name}: the answer to a commit was lost, and whether it was done could "
                    f"not be found out ({told(reason, self.name).detail}): read before you write "
                    "again",
                ) from None
            await self._pause(attempt)
            attempt += 1

    async def _pause(self, attempt: int) -> None:
        await asyncio.sleep(random.random() * min(0.25, 0.002 * 2 ** min(attempt, 10)))
