"""A connection that says of each statement whose rows it is about.

The server compares each row with a setting (see :mod:`~micro_ray.store.postgres_isolation`), which
is given for one transaction and travels in front of the statement, in the same round trip. So a
connection belongs to no namespace, is about nobody between two statements, and what one of them
said is not there for the next. No statement can be sent without: it is the cursor that sees to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, LiteralString, cast

import psycopg

from micro_ray.store.postgres_statement import Statement

__all__ = ["SETTING", "Connection", "Cursor"]

#: The server's name of the setting.
SETTING: LiteralString = "micro.namespace"

#: Until the end of the transaction. Not ``SET LOCAL``, which the server would parse each time.
_TELL: LiteralString = f"SELECT set_config('{SETTING}', %s, true)"


class Cursor(psycopg.AsyncCursor[Any]):
    """Sees to it that the server knows whose rows its statements are about."""

    async def execute(self, *given: Any, **options: Any) -> Cursor:
        connection = cast("Connection", self.connection)
        about = connection.about
        if about is None:
            await super().execute(*given, **options)
        elif connection.contends:
            try:
                async with connection.pipeline():
                    await connection.begin("BEGIN")
                    await super().execute(*given, **options)
                    await connection.say("COMMIT")
            finally:
                connection.about = about
        else:
            if connection.rowwise:
                await psycopg.AsyncCursor(connection).execute("")
                connection.rowwise = False
            # Nothing ends it but the end of the pipeline, so both are one transaction.
            async with connection.pipeline():
                await connection.say(_TELL, about)
                await super().execute(*given, **options)
        return self

    async def stream(self, *given: Any, **options: Any) -> AsyncIterator[Any]:
        """libpq does not stream in a pipeline: a transaction of three round trips, which reads."""
        connection = cast("Connection", self.connection)
        about = connection.about
        try:
            if about is not None:
                async with connection.pipeline():
                    await connection.begin("BEGIN")
            connection.rowwise = True
            streamed = cast("AsyncGenerator[Any, None]", super().stream(*given, **options))
            async with contextlib.aclosing(streamed) as rows:
                async for row in rows:
                    yield row
        finally:
            connection.about = about
            if about is not None:
                with contextlib.suppress(psycopg.Error):  # then the pool does not keep it
                    await connection.rollback()


class Connection(psycopg.AsyncConnection[Any]):
    """One to the database. ``about`` is the namespace that the next statements are about (None:
    they need not say). ``contends``: its statements are SERIALIZABLE, so that their commits may
    fail, an error that psycopg takes amiss at the end of a pipeline: they get BEGIN and COMMIT.
    ``rowwise``: its last statement was streamed, and libpq would give the rows of the first of a
    pipeline, but of no other, one by one as well. ``kept`` is a cursor for statements with small
    parameters and answers, which it holds until the next: a new one costs a statement a tenth of
    its time."""

    about: str | None = None
    rowwise: bool = False
    contends: bool = False
    _kept: psycopg.AsyncCursor[Any] | None = None
    _sayer: psycopg.AsyncCursor[Any] | None = None

    @property
    def kept(self) -> psycopg.AsyncCursor[Any]:
        if self._kept is None:
            self._kept = self.cursor()
        return self._kept

    async def begin(self, how: LiteralString) -> None:
        """Begin a transaction in a pipeline by this statement. It says whose it is as a whole; what
        it executes need not."""
        about, self.about = self.about, None
        await self.say(how)
        if about is not None:
            await self.say(_TELL, about)

    async def run(
        self, statement: Statement, values: dict[str, Any], cursor: psycopg.AsyncCursor[Any]
    ) -> None:
        """Execute a statement on a cursor, by its function where it must say whose it is."""
        with self._saying(statement, values) as sql:
            await cursor.execute(sql, values)

    async def streamed(
        self, statement: Statement, values: dict[str, Any]
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        """The same, row by row."""
        with self._saying(statement, values) as sql:
            rows = self.cursor(binary=True).stream(sql, values)
            async with contextlib.aclosing(cast("AsyncGenerator[Any, None]", rows)) as streamed:
                async for row in streamed:
                    yield row

    @contextlib.contextmanager
    def _saying(self, statement: Statement, values: dict[str, Any]) -> Iterator[bytes]:
        about = self.about
        if about is None or self.contends:
            yield statement.plain
            return
        values["about"] = about
        self.about = None
        try:
            yield statement.call
        finally:
            self.about = about

    async def say(self, sql: LiteralString, *given: str) -> None:
        """Send in a pipeline what has no answer of interest."""
        if self._sayer is None:
            self._sayer = psycopg.AsyncCursor(self)
        await self._sayer.execute(sql, given or None)
