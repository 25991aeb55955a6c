"""Events in SQLite: one file per namespace, any number of processes.

WAL with ``synchronous=FULL``: a commit is on disk (fsync of the log) before the publish, or the
acknowledgement of a consumer, is answered, so neither a killed process nor a power failure loses
one, as far as the disk keeps what it has confirmed. Publishes that wait together share one commit;
each is a savepoint, so one that is refused takes nothing with it.

What is given to whom is in the file too, with the time until which it is held: members of a group
may be in several processes, and none is given what another holds. A consumer that leaves gives back
what it has at once; one whose process is killed keeps it until ``ack_wait`` has passed. What other
processes did is looked for every 20 ms while somebody consumes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from micro_ray.errors import NotFound, Unavailable
from micro_ray.events import (
    DEFAULT,
    DeadLetter,
    Delivery,
    Event,
    Events,
    Group,
    Published,
    Start,
    Topic,
    Usage,
    checks,
)
from micro_ray.events import sqlite_groups as groups
from micro_ray.events import sqlite_rows as rows
from micro_ray.events.checks import Reading
from micro_ray.events.sqlite_file import File
from micro_ray.sqlite import failure, make_folder

__all__ = ["SqliteEvents"]

#: Seconds between sweeps of what is no longer kept.
SWEEP = 5.0


class SqliteEvents(Events):
    """``folder`` holds ``<namespace>.db``. ``ttl`` (seconds) and ``max_size`` (bytes) are the
    retention of topics that have none of their own; None is for ever, any amount. ``clock`` is
    wall-clock seconds."""

    def __init__(
        self,
        folder: Path,
        *,
        ttl: float | None = None,
        max_size: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._keep = rows.Keep(ttl=ttl, max_size=max_size)
        self._clock = clock
        self._files: dict[str, File] = {}
        self._opening = asyncio.Lock()
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> SqliteEvents:
        with failure(self._folder, "events"):
            await asyncio.to_thread(make_folder, self._folder)
        self._sweeper = asyncio.create_task(self._sweep())
        return self

    async def close(self) -> None:
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        async with self._opening:
            for file in self._files.values():
                await file.close()
            self._files.clear()

    async def _file(self, namespace: str) -> File:
        """The namespace's file, made if need be."""
        file = self._files.get(namespace)
        if file is not None:
            return file
        checks.namespace(namespace)
        async with self._opening:
            if self._closed:
                raise Unavailable("events", "the backend of events is closed")
            if namespace not in self._files:
                path = self._folder / f"{namespace}.db"
                file = File(path, clock=self._clock, keep=self._keep)
                await file.open()
                self._files[namespace] = file
            return self._files[namespace]

    async def _existing(self, namespace: str) -> File | None:
        """The namespace's file, if there is one: to ask makes nothing."""
        if namespace not in self._files:
            checks.namespace(namespace)
            path = self._folder / f"{namespace}.db"
            if not await asyncio.to_thread(path.exists):
                return None
        return await self._file(namespace)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            with contextlib.suppress(Exception):  # the next sweep tries again
                await self.sweep()

    async def sweep(self) -> None:
        """Remove events that are no longer kept, and give up those that nobody settled; done every
        5 s by itself."""
        for file in list(self._files.values()):
            await file.sweep()

    # -- publishing and reading ------------------------------------------------------------------

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        id: str = "",
        expected: int | None = None,
        namespace: str = DEFAULT,
    ) -> Published:
        about = dict(metadata or {})
        size = checks.publish(topic, payload, about, id, expected)
        file = await self._file(namespace)
        id, now = id or os.urandom(16).hex(), self._clock()
        return await file.write(
            lambda c: rows.publish(c, topic, payload, about, id, expected, size, now, self._keep),
            size,
            tag=topic,
        )

    async def read(
        self,
        topic: str,
        *,
        limit: int = 250,
        offset: int = 0,
        sequence: int = 0,
        since: float | None = None,
        until: float | None = None,
        namespace: str = DEFAULT,
    ) -> list[Event]:
        checks.topic(topic)
        checks.page(limit, offset, sequence, since, until)
        file = await self._existing(namespace)
        if file is None:
            return []
        now = self._clock()

        def job(connection: sqlite3.Connection) -> list[Event]:
            connection.execute("BEGIN")  # one state of the file for all of it
            try:
                found = rows.existing(connection, topic)
                if found is None:
                    return []
                selected = rows.select(
                    connection,
                    found,
                    limit=limit,
                    offset=offset,
                    sequence=sequence,
                    since=since,
                    until=until,
                    after=found.kept_after(now, self._keep),
                )
                with contextlib.closing(selected):
                    return checks.answer(selected)
            finally:
                connection.execute("COMMIT")

        return await file.read_with(job)

    # -- topics ----------------------------------------------------------------------------------

    async def topics(self, *, namespace: str = DEFAULT) -> list[Topic]:
        file = await self._existing(namespace)
        if file is None:
            return []
        return await file.read_with(lambda c: rows.listing(c, self._keep))

    async def usage(self, *, namespace: str = DEFAULT) -> Usage:
        file = await self._existing(namespace)
        return Usage() if file is None else await file.read_with(rows.usage)

    async def retain(
        self,
        topic: str,
        *,
        ttl: float | None = None,
        max_size: int | None = None,
        namespace: str = DEFAULT,
    ) -> Topic:
        checks.topic(topic)
        checks.retention(ttl, max_size)
        file = await self._file(namespace)

        def job(connection: sqlite3.Connection) -> Topic:
            made = rows.make(connection, topic)
            connection.execute(
                "UPDATE topics SET own = 1, ttl = ?, max_size = ? WHERE number = ?",
                (ttl, max_size, made.number),
            )
            (found,) = rows.listing(connection, self._keep, topic)
            return found

        return await file.write(job, tag=topic)

    async def delete(self, topic: str, *, namespace: str = DEFAULT) -> bool:
        checks.topic(topic)
        file = await self._existing(namespace)
        if file is None:
            return False
        return await file.write(lambda c: rows.remove_topic(c, topic), tag=topic)

    # -- consuming -------------------------------------------------------------------------------

    async def consume(
        self,
        topic: str,
        group: str = "",
        *,
        start: str = Start.NOW,
        sequence: int = 0,
        since: float | None = None,
        auto_ack: bool = True,
        ack_wait: float = 30.0,
        retry_limit: int = 10,
        backoff: float = 1.0,
        prefetch: int = 32,
        pending: int = 1_000,
        namespace: str = DEFAULT,
    ) -> AsyncIterator[Delivery]:
        how = Reading(
            start=start,
            sequence=sequence,
            since=since,
            ack_wait=ack_wait,
            retry_limit=retry_limit,
            backoff=backoff,
            pending=pending,
        )
        checks.topic(topic)
        if group:
            checks.group(group)
        checks.reading(how, prefetch)
        file = await self._file(namespace)
        taken = file.consume(topic, group, how, auto_ack=auto_ack, prefetch=prefetch)
        async with contextlib.aclosing(taken) as deliveries:
            async for delivery in deliveries:
                yield delivery

    async def fetch(
        self,
        topic: str,
        group: str,
        *,
        limit: int = 1,
        wait: float = 0.0,
        start: str = Start.NOW,
        sequence: int = 0,
        since: float | None = None,
        ack_wait: float = 30.0,
        retry_limit: int = 10,
        backoff: float = 1.0,
        pending: int = 1_000,
        namespace: str = DEFAULT,
    ) -> list[Delivery]:
        how = Reading(
            start=start,
            sequence=sequence,
            since=since,
            ack_wait=ack_wait,
            retry_limit=retry_limit,
            backoff=backoff,
            pending=pending,
        )
        checks.topic(topic)
        checks.group(group)
        checks.reading(how)
        checks.fetching(limit, wait)
        file = await self._file(namespace)
        return await file.fetch(topic, group, how, limit=limit, wait=wait)

    async def ack(self, *tokens: str, namespace: str = DEFAULT) -> int:
        parts = checks.tokens(tokens)
        file = await self._existing(namespace) if parts else None
        if file is None:
            return 0
        return await file.settle(parts, lambda c: groups.acknowledge(c, parts))

    async def nack(self, *tokens: str, delay: float | None = None, namespace: str = DEFAULT) -> int:
        parts = checks.tokens(tokens)
        checks.delay(delay)
        file = await self._existing(namespace) if parts else None
        if file is None:
            return 0
        now = self._clock()
        return await file.settle(parts, lambda c: groups.retry(c, parts, delay, now))

    async def progress(self, *tokens: str, namespace: str = DEFAULT) -> int:
        parts = checks.tokens(tokens)
        file = await self._existing(namespace) if parts else None
        if file is None:
            return 0
        now = self._clock()
        return await file.settle(parts, lambda c: groups.work_on(c, parts, now))

    # -- groups ----------------------------------------------------------------------------------

    async def groups(self, topic: str, *, namespace: str = DEFAULT) -> list[Group]:
        checks.topic(topic)
        file = await self._existing(namespace)
        if file is None:
            return []

        def job(connection: sqlite3.Connection) -> list[Group]:
            found = rows.existing(connection, topic)
            return [] if found is None else groups.listing(connection, found)

        return await file.read_with(job)

    async def delete_group(self, topic: str, group: str, *, namespace: str = DEFAULT) -> bool:
        checks.topic(topic)
        checks.group(group)
        file = await self._existing(namespace)
        if file is None:
            return False

        def job(connection: sqlite3.Connection) -> bool:
            number = groups.number(connection, topic, group)
            if number:
                groups.remove(connection, number)
            return bool(number)

        return await file.write(job, tag=topic)

    async def dead(
        self,
        topic: str,
        group: str,
        *,
        limit: int = 100,
        offset: int = 0,
        namespace: str = DEFAULT,
    ) -> list[DeadLetter]:
        checks.topic(topic)
        checks.group(group)
        checks.page(limit, offset)
        file = await self._existing(namespace)
        if file is None:
            return []

        def job(connection: sqlite3.Connection) -> list[DeadLetter]:
            number = groups.number(connection, topic, group)
            with contextlib.closing(groups.dead(connection, number, limit, offset)) as found:
                return checks.answer(groups.letter(topic, row) for row in found)

        return await file.read_with(job)

    async def requeue(
        self, topic: str, group: str, sequences: Sequence[int] = (), *, namespace: str = DEFAULT
    ) -> int:
        now = self._clock()
        return await self._letters(
            topic, group, sequences, namespace, lambda c, n: groups.requeue(c, n, sequences, now)
        )

    async def discard(
        self, topic: str, group: str, sequences: Sequence[int] = (), *, namespace: str = DEFAULT
    ) -> int:
        return await self._letters(
            topic, group, sequences, namespace, lambda c, n: groups.discard(c, n, sequences)
        )

    async def _letters(
        self,
        topic: str,
        group: str,
        sequences: Sequence[int],
        namespace: str,
        do: Callable[[sqlite3.Connection, int], int],
    ) -> int:
        checks.topic(topic)
        checks.group(group)
        checks.sequences(sequences)
        file = await self._existing(namespace)
        missing = NotFound("events", f"no group {group!r} of topic {topic!r}")
        if file is None:
            raise missing

        def job(connection: sqlite3.Connection) -> int:
            number = groups.number(connection, topic, group)
            if not number:
                raise missing
            return do(connection, number)

        return await file.write(job, tag=topic)
