"""Reads of single records: those of a table that come while one is under way go together with the
next statement, so that many readers cost the database and its connections no more than a few."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from micro_ray.store.postgres_statement import Statement

__all__ = ["Reads", "Table"]

#: Namespace, database, table.
Table = tuple[str, str, str]
Row = tuple[Any, ...]
Ask = Callable[[str, Statement, dict[str, Any]], Awaitable[list[Row]]]

#: Records that one statement may read, and bytes of them, as far as those before it tell.
GROUP, GROUP_BYTES = 64, 4 * 2**20

_Waiting = tuple[str, "asyncio.Future[Row | None]"]


class Reads:
    """``ask`` gives the rows of a statement about a namespace; ``columns`` are those of a record
    with their types, the first its key and the second its value; ``now`` is the SQL of the present
    time."""

    def __init__(self, ask: Ask, columns: Mapping[str, str], now: str) -> None:
        self._ask = ask
        head = (
            f"SELECT {', '.join(columns)}, {now} FROM micro_store_records WHERE"
            " namespace = %(ns)s::text AND db = %(db)s::text AND tbl = %(tbl)s::text AND "
        )
        tail = f" AND (expires IS NULL OR expires > {now})"
        kinds = [*columns.values(), "float8"]
        self._one = Statement(f"{head}key = %(key)s::text{tail}", kinds)
        self._many = Statement(f"{head}key = ANY(%(keys)s::text[]){tail}", kinds)
        self.statements = [self._one, self._many]
        #: Who waits for the next statement, by table; a table is here while one is under way.
        self._waiting: dict[Table, list[_Waiting]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes = 0

    async def read(self, table: Table, key: str) -> Row | None:
        """The record, as it is now or later than this was called; None for none."""
        waiting = self._waiting.get(table)
        if waiting is not None:
            future: asyncio.Future[Row | None] = asyncio.get_running_loop().create_future()
            waiting.append((key, future))
            return await future
        waiting = self._waiting[table] = []
        try:
            rows = await self._rows(self._one, table, key=key)
        finally:
            if waiting:
                task = asyncio.create_task(self._drain(table), name="store-read")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                del self._waiting[table]
        return rows[0] if rows else None

    async def close(self) -> None:
        """Reads that wait have their answers first."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _drain(self, table: Table) -> None:
        try:
            while waiting := self._waiting[table]:
                most = max(1, min(GROUP, GROUP_BYTES // max(1, self._bytes)))
                group, self._waiting[table] = waiting[:most], waiting[most:]
                await self._answer(table, group)
        finally:
            del self._waiting[table]

    async def _answer(self, table: Table, group: Sequence[_Waiting]) -> None:
        keys = list({key for key, _ in group})
        try:
            rows = await self._rows(self._many, table, keys=keys)
        except Exception as error:
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # the caller may have gone
            return
        found = {row[0]: row for row in rows}
        for key, future in group:
            if not future.done():
                future.set_result(found.get(key))

    async def _rows(self, sql: Statement, table: Table, **values: Any) -> list[Row]:
        namespace, db, tbl = table
        rows = await self._ask(namespace, sql, {"ns": namespace, "db": db, "tbl": tbl, **values})
        self._bytes = sum(len(row[1]) for row in rows) // max(1, len(rows))
        return rows
