"""Writes of a namespace that wait together share one transaction of the database.

The versions of a namespace are a counter in one row, locked until the commit: they are dense, and
they are given in the order of the commits, which is what lets a watch follow them. The row is a hot
spot by intention; that a process sends all it has for it at once is what makes it bearable.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence

from micro_ray.errors import Conflict, InternalError, MicroError, Unavailable
from micro_ray.store import HISTORY, Put
from micro_ray.store.postgres_connection import Connection
from micro_ray.store.postgres_database import Database
from micro_ray.store.postgres_plan import Found, Job, Place, Plan, Row, plan
from micro_ray.store.postgres_puts import Puts, Statements

__all__ = ["Writes"]

#: Jobs and bytes that may share one transaction.
GROUP, GROUP_BYTES = 256, 16 * 2**20
#: Writes that may wait, and their bytes; more are refused.
WAITING, WAITING_BYTES = 10_000, 128 * 2**20
#: Namespaces whose task waits for the next write when it has none; those of more end.
IDLE = 64
#: Tables known to be entered; more are forgotten and entered again.
_KNOWN = 10_000

_Waiting = tuple[Job, "asyncio.Future[list[int]]"]


class Writes:
    """``now`` is the SQL of the present time and ``clock`` what its parameters are; ``wake`` is
    called after each commit."""

    def __init__(
        self,
        database: Database,
        now: str,
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        self._database = database
        self._now = now
        self._statements = Statements(now)
        self.statements = [self._statements.one, self._statements.many]
        self._clock = clock
        self._wake = wake
        self._queues: dict[str, deque[_Waiting]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        #: By namespace, what wakes a task that has nothing to write; the longest idle is first.
        self._idle: dict[str, asyncio.Future[None]] = {}
        self._known: set[tuple[str, str, str]] = set()
        self._waiting = 0
        self._waiting_bytes = 0
        self._closed = False

    async def close(self) -> None:
        """Writes that were accepted are done first."""
        self._closed = True
        while self._idle:
            self._idle.popitem()[1].set_result(None)
        while self._tasks:  # the last write may have begun to cut the history
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def submit(self, namespace: str, job: Job) -> list[int]:
        """The versions of a job, committed. A write cannot be taken back: when the caller is
        cancelled it is done all the same."""
        if self._closed:
            raise Unavailable("store", "the store is closed")
        if self._waiting >= WAITING or self._waiting_bytes + job.size > WAITING_BYTES:
            raise Unavailable(
                "store", f"{self._waiting} writes of {self._waiting_bytes} bytes are waiting", 0.5
            )
        future: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._waiting += 1
        self._waiting_bytes += job.size
        if namespace in self._queues:
            self._queues[namespace].append((job, future))
            if (idle := self._idle.pop(namespace, None)) is not None:
                idle.set_result(None)
        else:
            self._queues[namespace] = deque([(job, future)])
            task = asyncio.create_task(self._drain(namespace), name=f"store-write {namespace}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future  # one that is cancelled has its place in the queue all the same

    async def _drain(self, namespace: str) -> None:
        queue = self._queues[namespace]
        try:
            while queue or await self._more(namespace, queue):
                group, size = [queue.popleft()], 0
                size = group[0][0].size
                while queue and len(group) < GROUP and size + queue[0][0].size <= GROUP_BYTES:
                    group.append(queue.popleft())
                    size += group[-1][0].size
                await self._commit(namespace, group)
                self._waiting -= len(group)
                self._waiting_bytes -= size
        finally:
            del self._queues[namespace]

    async def _more(self, namespace: str, queue: deque[_Waiting]) -> bool:
        """Wait for the next write of a namespace, as one that writes will soon write again and
        starting a task for it costs more than waking one. False when none came until this was the
        one that waited longest of too many, or the end."""
        if self._closed:
            return False
        if len(self._idle) >= IDLE:
            self._idle.pop(next(iter(self._idle))).set_result(None)
        idle = self._idle[namespace] = asyncio.get_running_loop().create_future()
        try:
            await idle
        finally:
            self._idle.pop(namespace, None)
        return bool(queue)  # also when it was to end: a write may have come since

    async def _commit(self, namespace: str, group: Sequence[_Waiting]) -> None:
        jobs = [job for job, _ in group]
        answers: Sequence[list[int] | Conflict] | None = None
        try:
            if all(self._is_plain(namespace, job) for job in jobs):
                answers = await self._put(namespace, jobs)
            if answers is None:
                made = await self._database.transact(
                    namespace, lambda c: self._run(c, namespace, jobs)
                )
                answers = made.answers
                self._learn(namespace, made)
        except Exception as error:
            for _, future in group:
                _fail(future, error)
            return
        for (_, future), answer in zip(group, answers, strict=True):
            if isinstance(answer, Conflict):
                _fail(future, answer)
            elif not future.done():
                future.set_result(answer)
        self._wake()

    def _learn(self, namespace: str, made: Plan) -> None:
        if len(self._known) > _KNOWN:
            self._known.clear()
        self._known |= {(namespace, *place[:2]) for place in made.rows}

    # -- writes that depend on nothing -----------------------------------------------------------

    def _is_plain(self, namespace: str, job: Job) -> bool:
        """Whether a job only puts, whatever is there, into tables that are entered."""
        return not job.expired and all(
            isinstance(row, Put)
            and row.expected is None
            and (namespace, job.database, row.table) in self._known
            for row in job.operations
        )

    async def _put(self, namespace: str, jobs: Sequence[Job]) -> list[list[int]] | None:
        """Write plain jobs: nothing need be looked at first, so it is one statement and one round
        trip. None for a namespace without a counter; then nothing is written."""
        puts = Puts(namespace, jobs, self._statements, self._clock())
        before = await self._database.put(namespace, puts.run)
        if before is None:
            return None
        newest = before + puts.count
        if before // 100 != newest // 100:
            cutting = asyncio.create_task(self._cut(namespace, newest), name="store-cut")
            self._tasks.add(cutting)
            cutting.add_done_callback(self._tasks.discard)
        return puts.answers(before)

    async def _cut(self, namespace: str, newest: int) -> None:
        """Nobody waits for it: what is left by one that fails, the next removes."""
        with contextlib.suppress(MicroError):
            await self._database.ask(namespace, lambda c: _cut(c, namespace, newest))

    # -- one transaction -------------------------------------------------------------------------

    async def _run(
        self, connection: Connection, namespace: str, jobs: Sequence[Job]
    ) -> tuple[Plan, bool]:
        revision, now, found = await self._look(connection, namespace, jobs)
        made = plan(jobs, found, revision, now)
        if made.changes:
            await self._write(connection, namespace, made, revision)
        return made, bool(made.changes)

    async def _look(
        self, connection: Connection, namespace: str, jobs: Sequence[Job]
    ) -> tuple[int, float, dict[Place, Found]]:
        """The newest version, locked; the time; what is at the places of the jobs."""
        lock = f"SELECT revision, {self._now} FROM micro_store_counters WHERE namespace = %(ns)s"
        values = {"ns": namespace, "now": self._clock()}
        locked = await connection.execute(f"{lock} FOR UPDATE", values)
        asked = []
        for (db, tbl), keys in _by_table(place for job in jobs for place in job.places).items():
            cursor = await connection.execute(
                "SELECT key, version, expires FROM micro_store_records"
                " WHERE namespace = %s AND db = %s AND tbl = %s AND key = ANY(%s)",
                (namespace, db, tbl, sorted(keys)),
            )
            asked.append((db, tbl, cursor))
        row = await locked.fetchone()
        if row is None:
            # Entered with the first write; who comes second to it fails, and tries again.
            await connection.execute(
                "INSERT INTO micro_store_counters (namespace, revision) VALUES (%s, 0)"
                " ON CONFLICT (namespace) DO NOTHING",
                (namespace,),
            )
            again = await connection.execute(f"{lock} FOR UPDATE", values)
            row = await again.fetchone()
        found = {
            (db, tbl, key): Found(version, expires)
            for db, tbl, cursor in asked
            for key, version, expires in await cursor.fetchall()
        }
        assert row is not None
        return int(row[0]), float(row[1]), found

    async def _write(self, connection: Connection, namespace: str, made: Plan, before: int) -> None:
        puts: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for place, row in made.rows.items():
            if row is not None:
                puts[place[:2]].append(row)
        gone = _by_table(place for place, row in made.rows.items() if row is None)
        for (db, tbl), keys in gone.items():
            await connection.execute(
                "DELETE FROM micro_store_records"
                " WHERE namespace = %s AND db = %s AND tbl = %s AND key = ANY(%s)",
                (namespace, db, tbl, keys),
            )
        for (db, tbl), rows in puts.items():
            await _upsert(connection, namespace, db, tbl, rows)
            if (namespace, db, tbl) not in self._known:
                await connection.execute(
                    "INSERT INTO micro_store_tables (namespace, db, tbl) VALUES (%s, %s, %s)"
                    " ON CONFLICT DO NOTHING",
                    (namespace, db, tbl),
                )
        await _enter(connection, namespace, made)
        if made.revision // 100 != before // 100:
            await _cut(connection, namespace, made.revision)


async def _cut(connection: Connection, namespace: str, newest: int) -> None:
    """Remove changes that are no longer kept."""
    await connection.execute(
        "DELETE FROM micro_store_changes WHERE namespace = %s AND revision <= %s",
        (namespace, newest - HISTORY),
    )


async def _upsert(
    connection: Connection, namespace: str, db: str, tbl: str, rows: Sequence[Row]
) -> None:
    await connection.execute(
        "INSERT INTO micro_store_records"
        " (namespace, db, tbl, key, value, metadata, expires, version)"
        " SELECT %(ns)s, %(db)s, %(tbl)s, k, v, m, e, n FROM unnest(%(keys)s::text[],"
        " %(values)b::bytea[], %(metadata)s::text[], %(expires)s::float8[], %(versions)s::int8[])"
        " AS new (k, v, m, e, n)"
        " ON CONFLICT (namespace, db, tbl, key) DO UPDATE SET value = excluded.value,"
        " metadata = excluded.metadata, expires = excluded.expires, version = excluded.version",
        {
            "ns": namespace,
            "db": db,
            "tbl": tbl,
            "keys": [row.put.key for row in rows],
            "values": [row.put.value for row in rows],
            "metadata": [json.dumps(dict(row.put.metadata)) for row in rows],
            "expires": [row.expires for row in rows],
            "versions": [row.version for row in rows],
        },
    )


async def _enter(connection: Connection, namespace: str, made: Plan) -> None:
    changes = made.changes
    await connection.execute(
        "INSERT INTO micro_store_changes (namespace, revision, action, db, tbl, key)"
        " SELECT %s, r, a, d, t, k FROM unnest(%s::int8[], %s::text[], %s::text[], %s::text[],"
        " %s::text[]) AS new (r, a, d, t, k)",
        (
            namespace,
            [change.revision for change in changes],
            [change.action.value for change in changes],
            [change.database for change in changes],
            [change.table for change in changes],
            [change.key for change in changes],
        ),
    )
    await connection.execute(
        "UPDATE micro_store_counters SET revision = %s WHERE namespace = %s",
        (made.revision, namespace),
    )


def _by_table(places: Iterable[Place]) -> dict[tuple[str, str], list[str]]:
    tables: dict[tuple[str, str], list[str]] = defaultdict(list)
    for db, tbl, key in dict.fromkeys(places):
        tables[db, tbl].append(key)
    return tables


def _fail(future: asyncio.Future[list[int]], error: Exception) -> None:
    if not future.done():
        known = error if isinstance(error, MicroError) else InternalError("store", repr(error))
        future.set_exception(known)
        future.exception()  # the caller may have gone
