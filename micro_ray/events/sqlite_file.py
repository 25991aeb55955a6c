"""One SQLite file of events: who waits for a topic, and what a consumer is given."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path

from micro_ray.errors import MicroError, Unavailable
from micro_ray.events import FORGET, Delivery
from micro_ray.events import sqlite_groups as groups
from micro_ray.events.checks import Reading
from micro_ray.events.sqlite_rows import SCHEMA, Keep, existing, trim
from micro_ray.sqlite import Database

__all__ = ["File"]

#: Seconds between looks for what other processes did, while somebody waits.
POLL = 0.02
#: Longest wait in seconds before a consumer looks by itself: clocks may jump.
LOOK = 0.5
#: Events that a sweep removes from one topic at a time.
_SWEEP = 1000


class File(Database):
    """Opened by :meth:`open`; all other verbs are safe from many tasks."""

    def __init__(self, path: Path, *, clock: Callable[[], float], keep: Keep) -> None:
        super().__init__(path, name="events", schema=SCHEMA)
        self._clock = clock
        self._keep = keep
        self._changed: dict[str, asyncio.Event] = {}
        self._waiting_for: dict[str, int] = {}
        self._poller: asyncio.Task[None] | None = None
        self._leaving = False
        #: Consumers here: what they have been given and not yet seen.
        self._holders: dict[str, tuple[int, list[Delivery]]] = {}

    async def close(self) -> None:
        """What consumers here hold is given back; they end with Unavailable."""
        self._leaving = True
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        for holder in list(self._holders):
            with contextlib.suppress(MicroError):
                await self._release(holder)
        self.closed = True
        for topic in list(self._changed):
            self._wake(topic)
        await super().close()

    # -- waiting ---------------------------------------------------------------------------------

    def committed(self, tags: Sequence[str]) -> None:
        for topic in {tag for tag in tags if tag}:
            self._wake(topic)

    def _wake(self, topic: str) -> None:
        event = self._changed.pop(topic, None)
        if event is not None:
            event.set()

    def _changing(self, topic: str) -> asyncio.Event:
        """Set at the next change of a topic, made here or elsewhere."""
        return self._changed.setdefault(topic, asyncio.Event())

    @contextlib.contextmanager
    def _awaited(self, topic: str) -> Iterator[None]:
        """Within it, changes of other processes are looked for."""
        self._waiting_for[topic] = self._waiting_for.get(topic, 0) + 1
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        try:
            yield
        finally:
            self._waiting_for[topic] -= 1
            if not self._waiting_for[topic]:
                del self._waiting_for[topic]
                self._wake(topic)
            if not self._waiting_for and self._poller is not None:
                self._poller.cancel()
                self._poller = None

    async def _poll(self) -> None:
        def look(connection: sqlite3.Connection) -> list[tuple[str, int]]:
            return connection.execute(
                "SELECT name, stamp FROM topics WHERE stamp > ? ORDER BY stamp", (seen,)
            ).fetchall()

        seen = -1
        while True:
            with contextlib.suppress(MicroError):  # the consumers look themselves, and tell
                for topic, stamp in await self.read_with(look):
                    seen = stamp
                    self._wake(topic)
            await asyncio.sleep(POLL)

    # -- consuming -------------------------------------------------------------------------------

    async def consume(
        self, topic: str, name: str, how: Reading, *, auto_ack: bool, prefetch: int
    ) -> AsyncGenerator[Delivery, None]:
        holder = os.urandom(8).hex()
        own = not name
        name = name or f"consumer-{holder}"
        number = await self._join(topic, name, how, own)
        unseen: list[Delivery] = []
        self._holders[holder] = (number, unseen)
        seen = self._clock()
        settled: list[tuple[int, int, int]] = []
        try:
            with self._awaited(topic):
                while True:
                    changing = self._changing(topic)
                    unseen += await self._give(topic, number, holder, prefetch, settled)
                    settled.clear()
                    while unseen:
                        delivery = unseen.pop(0)
                        yield delivery
                        if auto_ack:
                            settled.append(_parts(delivery.token))
                    if settled:
                        continue
                    await self._wait(number, holder, prefetch, changing)
                    if own and self._clock() - seen > FORGET / 4:
                        seen = self._clock()
                        await self._seen(number)
        finally:
            with contextlib.suppress(MicroError):
                await self._leave(topic, holder, settled, number if own else None)

    async def _leave(
        self,
        topic: str,
        holder: str,
        settled: Sequence[tuple[int, int, int]],
        own: int | None,
    ) -> None:
        if settled:
            await self.write(lambda c: groups.acknowledge(c, settled), tag=topic)
        if own is not None:
            self._holders.pop(holder, None)
            await self.write(lambda c: groups.remove(c, own), tag=topic)
        await self._release(holder, topic)

    async def fetch(
        self, topic: str, name: str, how: Reading, *, limit: int, wait: float
    ) -> list[Delivery]:
        holder = os.urandom(8).hex()
        number = await self._join(topic, name, how, False)
        end = self._loop.time() + wait
        with self._awaited(topic):
            while True:
                changing = self._changing(topic)
                given = await self._give(topic, number, holder, limit, ())
                left = end - self._loop.time()
                if given or left <= 0:
                    return given
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._wait(number, holder, limit, changing)

    async def _join(self, topic: str, name: str, how: Reading, own: bool) -> int:
        now = self._clock()
        return await self.write(
            lambda c: groups.join(c, topic, name, how, now if own else None), tag=topic
        )

    async def _seen(self, number: int) -> None:
        now = self._clock()
        await self.write(
            lambda c: c.execute("UPDATE groups SET seen = ? WHERE number = ?", (now, number))
        )

    async def _give(
        self,
        topic: str,
        number: int,
        holder: str,
        prefetch: int,
        settled: Sequence[tuple[int, int, int]],
    ) -> list[Delivery]:
        """Settle, and give if there is something to give; nothing is written for nothing."""
        done = list(settled)
        if self._leaving:
            raise Unavailable("events", f"{self._path} is closed")
        if not done:
            found = await self._ready(number, holder, prefetch)
            if not found.now:
                return []
        now = self._clock()

        def job(connection: sqlite3.Connection) -> list[Delivery]:
            if done:
                groups.acknowledge(connection, done)
            return groups.give(connection, number, holder, prefetch, now, self._keep)

        return await self.write(job, tag=topic if done else "")

    async def _ready(self, number: int, holder: str, prefetch: int) -> groups.Ready:
        now = self._clock()

        def look(connection: sqlite3.Connection) -> groups.Ready:
            connection.execute("BEGIN")  # one state of the file for all of it
            try:
                return groups.ready(connection, number, holder, prefetch, now, self._keep)
            finally:
                connection.execute("COMMIT")

        return await self.read_with(look)

    async def _wait(self, number: int, holder: str, prefetch: int, changing: asyncio.Event) -> None:
        """Until the topic changes, or something is due again. Raises Unavailable once closed."""
        found = await self._ready(number, holder, prefetch)
        if found.now:
            return
        pause = LOOK if found.at is None else min(LOOK, max(found.at - self._clock(), 0.005))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await changing.wait()
        if self.closed:
            raise Unavailable("events", f"{self._path} is closed")

    async def _release(self, holder: str, topic: str = "") -> None:
        held = self._holders.pop(holder, None)
        if held is None:
            return
        number, unseen = held
        now, numbers = self._clock(), [delivery.event.sequence for delivery in unseen]
        await self.write(lambda c: groups.release(c, number, holder, numbers, now), tag=topic)

    # -- sweeping --------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Remove what is no longer kept, give up what nobody settled, forget groups without a
        name whose consumers are gone."""
        now = self._clock()
        names = await self.read_with(lambda c: c.execute("SELECT name FROM topics").fetchall())
        for (name,) in names:
            while await self.read_with(lambda c, n=name: self._stale(c, n, now)):  # type: ignore[misc]  # the default binds the name
                more = await self.write(lambda c, n=name: self._trim(c, n, now))  # type: ignore[misc]  # as above
                if not more:
                    break
        due = await self.read_with(
            lambda c: c.execute(
                "SELECT EXISTS (SELECT 1 FROM pending WHERE holder IS NOT NULL AND due <= ?)"
                " OR EXISTS (SELECT 1 FROM groups WHERE seen < ?)",
                (now, now - FORGET),
            ).fetchone()
        )
        if due[0]:
            await self.write(lambda c: groups.bury_expired(c, now))
            await self.write(lambda c: groups.forget(c, now - FORGET))

    def _stale(self, connection: sqlite3.Connection, name: str, now: float) -> bool:
        topic = existing(connection, name)
        if topic is None or topic.first > topic.last:
            return False
        first = connection.execute(
            "SELECT time FROM events WHERE topic = ? AND sequence = ?", (topic.number, topic.first)
        ).fetchone()
        most = topic.own_size if topic.own else self._keep.max_size
        old = first is not None and first[0] <= topic.kept_after(now, self._keep)
        return old or (most is not None and topic.size > most and topic.first < topic.last)

    def _trim(self, connection: sqlite3.Connection, name: str, now: float) -> bool:
        topic = existing(connection, name)
        return topic is not None and trim(connection, topic, self._keep, now, _SWEEP)

    async def settle(
        self, tokens: Sequence[tuple[int, int, int]], job: Callable[[sqlite3.Connection], int]
    ) -> int:
        """Do something with what is held under tokens, and wake those who wait for its topics."""
        marks = ",".join("?" * len(tokens))
        named = await self.read_with(
            lambda c: c.execute(
                "SELECT DISTINCT t.name FROM groups g JOIN topics t ON t.number = g.topic"
                f" WHERE g.number IN ({marks})",
                [group for group, _, _ in tokens],  # never more than MAX_TOKENS
            ).fetchall()
        )
        count = await self.write(job, tag=named[0][0] if named else "")
        for (topic,) in named[1:]:
            self._wake(topic)
        return count


def _parts(token: str) -> tuple[int, int, int]:
    group, sequence, lease = token.split(".")
    return int(group), int(sequence), int(lease)
