"""Statements and transactions in PostgreSQL or CockroachDB, whose end is known."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import psycopg

from micro_ray.errors import BadGateway, BadRequest, PreconditionFailed, Unavailable
from micro_ray.store.postgres_connection import SETTING, Connection
from micro_ray.store.postgres_errors import crowded, lost, refused, told
from micro_ray.store.postgres_isolation import EVERYTHING, isolate
from micro_ray.store.postgres_pool import Pool
from micro_ray.store.postgres_schema import migrate
from micro_ray.store.postgres_statement import Statement
from micro_ray.store.postgres_url import Target

__all__ = ["Database"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Connections for writes that are one statement: a namespace has one at a time.
WRITING = 2
#: Seconds that a verb tries to reach the database, and to end a transaction others come between.
PATIENCE = 5.0
#: Seconds that a commit whose answer was lost is asked after.
RESOLVE = 10.0
#: Milliseconds that the server lets a statement run, and a transaction hang without one.
_STATEMENT, _IDLE = 12_000, 5_000
#: Seconds between attempts to reach the server at the start: first, and at most.
_BACKOFF = (0.1, 3.0)


@dataclass(slots=True, kw_only=True)
class Commit:
    """An attempt to commit: its id, and whether what commits it was sent."""

    mark: str
    sent: bool = False


def marks() -> Iterator[str]:
    """Ids that no other has, each after the one before it: the rows of one process go to the end of
    what it has in the index, where one by chance would touch a page of its own for each."""
    mine = os.urandom(12).hex()
    return (f"{mine}{number:012x}" for number in itertools.count())


class Database:
    """Opened by :meth:`open`. ``size`` is how many connections it may have, beside
    :data:`WRITING` for writes that are one statement; at most as many verbs are in the database at
    a time, and the others wait. ``isolation`` is one of
    :data:`~micro_ray.store.postgres_isolation.MODES`.

    Each verb says which namespace its statements are about, or EVERYTHING; where ``isolated`` the
    server lets them touch nothing else."""

    def __init__(
        self, target: Target, *, size: int, patience: float = PATIENCE, isolation: str = "auto"
    ) -> None:
        self.name = target.name
        self.cockroach = False
        self.isolation = isolation
        #: None before it is known.
        self.isolated: bool | None = None
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._marks = marks()
        self._pool = Pool(target.options, size=size, name=target.name, configure=self._configure)
        # For writes that are one statement, which has no BEGIN to say how it is isolated.
        self._writing = Pool(
            target.options, size=WRITING, name=target.name, configure=self._configure_writing
        )

    async def open(self, statements: Sequence[Statement]) -> None:
        """Wait until the server is there, saying for what, and bring its schema up to date, with
        the functions of the ``statements`` where it keeps namespaces apart. Raises
        BadRequest for a user, password, database or TLS that it refuses, PreconditionFailed for a
        schema or encoding that cannot be used."""
        pause, waiting = _BACKOFF[0], False
        while True:
            try:
                async with await self._pool.connect() as connection:
                    await self._prepare(connection, statements)
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
        await asyncio.gather(self._pool.close(), self._writing.close())

    async def _prepare(self, connection: Connection, statements: Sequence[Statement]) -> None:
        state = connection.info.parameter_status
        self.cockroach = state("crdb_version") is not None
        encoding = state("server_encoding") or "UTF8"
        if encoding.upper() not in ("UTF8", "UTF-8"):
            raise PreconditionFailed(
                "store", f"{self.name} is encoded in {encoding}: create a database in UTF8"
            )
        await migrate(connection, cockroach=self.cockroach)
        self.isolated = await isolate(
            connection,
            self.isolation,
            statements,
            cockroach=self.cockroach,
            name=self.name,
        )
        if not self.cockroach:
            cursor = await connection.execute("SHOW fsync")
            if (await cursor.fetchone()) == ("off",):
                log.warning("%s runs with fsync=off: a power failure loses writes", self.name)

    async def _configure(self, connection: Connection) -> None:
        await connection.execute(f"SET statement_timeout = {_STATEMENT}")
        await connection.execute(f"SET idle_in_transaction_session_timeout = {_IDLE}")
        connection.contends = self.cockroach  # which knows nothing else
        if self.isolated:  # from now on a statement that does not say whose it is fails
            await connection.execute(f"SET {SETTING} = ''")
        if not self.cockroach:
            await connection.execute("SET default_transaction_isolation = 'read committed'")
            # An acknowledged write is on disk, whatever the server's habit.
            await connection.execute(
                "SELECT set_config('synchronous_commit', 'on', false)"
                " WHERE current_setting('synchronous_commit') = 'off'"
            )

    async def _configure_writing(self, connection: Connection) -> None:
        await self._configure(connection)
        await connection.execute("SET default_transaction_isolation = 'serializable'")

    # -- single statements -----------------------------------------------------------------------

    def _about(self, namespace: str) -> str | None:
        """What the server is told. Where we leave it to our queries, nothing: that is not bound
        even by what others have set up."""
        return namespace if self.isolated else None

    async def ask(self, namespace: str, job: Callable[[Connection], Awaitable[T]]) -> T:
        """What ``job`` gives by one statement that may as well run twice; it does so on another
        connection when the first is lost, for as long as there is patience."""
        end = self._loop.time() + self._patience
        about = self._about(namespace)
        attempt = 0
        while True:
            try:
                async with self._pool.connection(end, about) as connection:
                    return await job(connection)
            except psycopg.Error as error:
                again = (lost(error) or crowded(error)) and refused(error) is None
                if not again or self._loop.time() > end:
                    raise told(error, self.name) from None
            await self._pause(attempt)
            attempt += 1

    # -- transactions ----------------------------------------------------------------------------

    async def transact(
        self, namespace: str, job: Callable[[Connection], Awaitable[tuple[T, bool]]]
    ) -> T:
        """What ``job`` gives, once it is known to be committed. ``job`` runs in a SERIALIZABLE
        transaction and in pipeline mode, says whether it wrote, and is run again when another
        transaction came between or the connection was lost before the commit.

        Each attempt enters an id of its own in ``micro_store_commits`` with what it writes, so that
        a commit whose answer was lost can be asked after. Raises Unavailable when nothing was done,
        BadGateway when that could not be found out."""
        answers: list[T] = []

        async def attempt(connection: Connection, commit: Commit) -> T:
            async with connection.pipeline():
                await connection.begin("BEGIN ISOLATION LEVEL SERIALIZABLE")
                answer, wrote = await job(connection)
                if wrote:
                    await connection.execute(
                        "INSERT INTO micro_store_commits (id, done, namespace)"
                        " VALUES (%s, true, %s)",
                        (commit.mark, namespace),
                    )
                    answers[:] = [answer]
                    commit.sent = True
                # Not prepared, so that the word itself is on the wire.
                await connection.execute("COMMIT" if wrote else "ROLLBACK", prepare=False)
            return answer

        return await self._commit(namespace, self._pool, attempt, lambda _: answers[0])

    async def put(
        self, namespace: str, job: Callable[[Connection, str], Awaitable[int | None]]
    ) -> int | None:
        """The same for a ``job`` that is one statement, and so a transaction by itself: it enters
        the id it is given, with the number that it answers with, if it writes."""

        async def attempt(connection: Connection, commit: Commit) -> int | None:
            commit.sent = True
            return await job(connection, commit.mark)

        return await self._commit(namespace, self._writing, attempt, lambda number: number)

    async def _commit(
        self,
        namespace: str,
        pool: Pool,
        attempt: Callable[[Connection, Commit], Awaitable[T]],
        answer: Callable[[int | None], T],
    ) -> T:
        """What an attempt gives; ``answer`` is that of one that was done though its own answer was
        lost, from the number it entered."""
        end = self._loop.time() + self._patience
        about = self._about(namespace)
        attempts = 0
        while True:
            commit = Commit(mark=next(self._marks))
            try:
                async with pool.connection(end, about) as connection:
                    return await attempt(connection, commit)
            except psycopg.Error as error:
                if commit.sent and lost(error):
                    done, number = await self._resolve(commit.mark)
                    if done:
                        return answer(number)
                elif refused(error) is not None or not (lost(error) or crowded(error)):
                    raise told(error, self.name) from None
                if self._loop.time() > end:
                    raise told(error, self.name) from None
            await self._pause(attempts)
            attempts += 1

    async def _resolve(self, mark: str) -> tuple[bool, int | None]:
        """Whether the transaction with this id was committed, and the number it entered. The id is
        entered as undone unless it is there, which waits for a transaction that still holds it, and
        bars one that has not come so far: the answer is final."""
        end = self._loop.time() + RESOLVE
        about = self._about(EVERYTHING)  # it may be there, or have to be entered, for anyone
        attempt = 0
        while True:
            reason: BaseException
            try:
                async with self._pool.connection(end, about) as connection:
                    await connection.execute(
                        "INSERT INTO micro_store_commits (id, done) VALUES (%s, false)"
                        " ON CONFLICT (id) DO NOTHING",
                        (mark,),
                    )
                    cursor = await connection.execute(
                        "SELECT done, number FROM micro_store_commits WHERE id = %s", (mark,)
                    )
                    row = await cursor.fetchone()
                    if row is not None:
                        return bool(row[0]), row[1]
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
