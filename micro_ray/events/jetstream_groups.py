"""The groups of a namespace on JetStream: a log of each, which members in any process append to.

A group is the records under one subject of the namespace's stream. A record is appended only after
the last that its writer knows (expected last sequence of the subject); who was overtaken reads on,
decides anew and tries again. So all processes agree, whichever of them dies, and an answer that is
lost is looked for by the record's id. Now and then a record has all there is and replaces those
before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from micro_ray.errors import InternalError, MicroError, NotFound
from micro_ray.events import FORGET
from micro_ray.events.jetstream_api import BUDGET, NO_STREAM, Api, Names, Refused
from micro_ray.events.jetstream_state import Copies, Record, State

__all__ = ["ALARM", "Group", "Groups", "number_of"]

#: A header: when the group should be looked at though nobody consumes.
ALARM = "Micro-Alarm"
#: Changes that go into one record, and records and bytes after which one has all there is.
_TOGETHER, _RECORDS, _BYTES = 256, 100, 128 * 2**10
#: Groups that are remembered without a consumer.
_KNOWN = 4096

T = TypeVar("T")
Job = Callable[[State], Any]


def number_of(life: str, name: str) -> int:
    """The number of a group: of a topic's life and its own name."""
    return int.from_bytes(hashlib.sha256(f"{life}/{name}".encode()).digest()[:8]) % 10**18


class Group:
    """One group, as far as it is known here; all verbs are safe from many tasks."""

    def __init__(self, api: Api, names: Names, space: str, life: str, number: int) -> None:
        self._api = api
        self.space = space
        self.life = life
        self.number = number
        self.stream = names.groups_stream(space)
        self.subject = f"{names.groups(space)}.{life}.{number}"
        self.copies = f"{names.dead(space)}.{life}.{number}"
        self.told_of = names.told(self.subject)
        self._names = names
        #: None when it is not there.
        self.state: State | None = None
        #: The last record that is known here, and of which has been heard.
        self.sequence = self._heard = 0
        self._records = self._bytes = 0
        self._unsure = True
        self._lock = asyncio.Lock()
        self._jobs: list[tuple[Job, asyncio.Future[Any]]] = []
        self._worker: asyncio.Task[None] | None = None
        self._cleaning: set[asyncio.Task[int]] = set()
        self.users = 0
        self._changed = asyncio.Event()

    async def close(self) -> None:
        tasks = [*self._cleaning, *([self._worker] if self._worker else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- waiting ---------------------------------------------------------------------------------

    @property
    def changing(self) -> asyncio.Event:
        """Set at the next change."""
        return self._changed

    def wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def take(self, subject: bytes, body: bytes, headers: Mapping[str, str] | None) -> None:
        """The server has stored a record."""
        self._heard = max(self._heard, int((headers or {}).get("Nats-Sequence", "0")))
        if self._heard > self.sequence and not self._lock.locked():
            self.wake()

    def doubt(self) -> None:
        """There may be records of which nothing was heard."""
        self._unsure = True
        self.wake()

    # -- reading ---------------------------------------------------------------------------------

    async def current(self, *, sure: bool = False) -> State:
        """The state, read on if there is more; with ``sure`` as the leader has it now. Raises
        NotFound when the group is not there."""
        if sure or self._unsure or self._heard > self.sequence:
            async with self._lock:
                await self._catch_up(sure=sure)
        if self.state is None:
            raise NotFound("events", "the topic or the group has been deleted")
        return self.state

    async def _catch_up(self, *, sure: bool = False, mine: str = "") -> bool:
        """Read on, with ``sure`` up to what the leader has; whether the record of the id ``mine``
        was among it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + BUDGET
        found = False
        sure = sure or self._heard > self.sequence
        least = 0
        while True:
            if sure:
                newest = await self._api.message(self.stream, last_by_subj=self.subject)
                if newest is None or newest.sequence < self.sequence:
                    self._forget()
                least, sure = 0 if newest is None else newest.sequence, False
            if not least or self.sequence < least:
                rows = await self._api.scan(self.stream, self.subject, self.sequence + 1)
                for row in rows:
                    record = msgspec.msgpack.decode(row.body, type=Record)
                    found = found or record.id == mine
                    self._apply(record, row.sequence, len(row.body))
                if rows:
                    continue
            if self.sequence < least:  # a replica that lags, or a record that was replaced
                if loop.time() >= end:
                    raise self._api.link.away("no replica has the newest state of a group")
                await asyncio.sleep(0.005)
                sure = True
                continue
            self._heard = self.sequence
            self._unsure = False
            return found

    def _forget(self) -> None:
        self.state, self.sequence, self._heard = None, 0, 0

    def _apply(self, record: Record, sequence: int, size: int) -> None:
        self.sequence = sequence
        if record.gone:
            self.state = None
            return
        if record.whole:
            self.state = State()
            self._records = self._bytes = 0
        if self.state is not None:
            self.state.apply(record)
        self._records += 1
        self._bytes += size

    # -- changing --------------------------------------------------------------------------------

    async def change(self, job: Callable[[State], T]) -> T:
        """What ``job`` answers, once what it changed is kept. It may be called again, and must look
        at nothing but the state. Raises NotFound, what the job raises, and BadGateway when the end
        is not known."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.append((job, done))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await done

    async def _work(self) -> None:
        while self._jobs:
            batch, self._jobs = self._jobs[:_TOGETHER], self._jobs[_TOGETHER:]
            try:
                async with self._lock:
                    await self._commit(batch)
            except Exception as error:
                if self.state is not None:
                    self.state.undo()
                self._unsure = True
                if not isinstance(error, MicroError):
                    error = InternalError("events", f"{type(error).__name__}: {error}")
                for _, done in batch:
                    if not done.done():
                        done.set_exception(error)
            except BaseException:
                for _, done in [*batch, *self._jobs]:
                    done.cancel()
                raise
            self.wake()

    async def _commit(self, batch: list[tuple[Job, asyncio.Future[Any]]]) -> None:
        """Decide, append, and again when others were faster."""
        if self._unsure or self._heard > self.sequence:
            await self._catch_up()
        sure = False
        while True:
            state = self.state
            if state is None and not sure:
                await self._catch_up(sure=True)
                sure, state = True, self.state
            if state is None:
                raise NotFound("events", "the topic or the group has been deleted")
            outcomes = [_done(job, state) for job, _ in batch]
            if state.mark:
                record = state.record(os.urandom(8).hex())
                if not await self._append(state, record):
                    sure = True
                    continue
                removed = [n for n, letter in record.dead.items() if letter is None]
                if removed:
                    self._clean(removed)
            elif not sure:  # that there is nothing to change may be of an old state only
                await self._catch_up(sure=True)
                sure = True
                continue
            break
        for (answer, error), (_, done) in zip(outcomes, batch, strict=True):
            if done.done():
                continue
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(answer)

    async def _append(self, state: State, record: Record) -> bool:
        """Whether the record was taken; if not, the state is what others made of it."""
        whole = self._records >= _RECORDS or self._bytes >= _BYTES + 40 * len(state.held)
        body = msgspec.msgpack.encode(state.whole(record.id) if whole else record)
        try:
            sequence = await self._put(body, state, whole)
        except Refused as error:
            if not error.wrong_last:
                raise self._api._error(error) from None
            state.undo()
            return await self._catch_up(sure=True, mine=record.id)
        state.keep()
        self.sequence = sequence
        self._records, self._bytes = (
            (1, 0) if whole else (self._records + 1, self._bytes + len(body))
        )
        return True

    async def _put(self, body: bytes, state: State | None, whole: bool) -> int:
        headers = {"Nats-Expected-Last-Subject-Sequence": str(self.sequence)}
        if whole:
            headers["Nats-Rollup"] = "sub"
        if state is not None:
            times = [t for t in (state.alarm(), state.seen and state.seen + FORGET) if t]
            if times:
                headers[ALARM] = f"{min(times):.3f}"
        end = asyncio.get_running_loop().time() + BUDGET
        while True:
            try:
                return await self._api.append(self.subject, body, headers, tried=[])
            except Refused as error:
                if error.code != NO_STREAM or asyncio.get_running_loop().time() >= end:
                    raise
            await make_stream(self._api, self._names, self.space)
            await asyncio.sleep(0.05)

    async def create(self, state: State) -> None:
        """Make it, unless somebody else is faster."""
        async with self._lock:
            await self._catch_up()
            while self.state is None:
                record = state.whole(os.urandom(8).hex())
                body = msgspec.msgpack.encode(record)
                try:
                    sequence = await self._put(body, state, True)
                except Refused as error:
                    if not error.wrong_last:
                        raise self._api._error(error) from None
                    await self._catch_up(sure=True)
                    continue
                self._apply(record, sequence, len(body))

    async def delete(self) -> bool:
        """Remove it with its dead letters; whether it was there."""
        async with self._lock:
            await self._catch_up()
            while self.state is not None:
                body = msgspec.msgpack.encode(Record(id=os.urandom(8).hex(), gone=True))
                try:
                    self.sequence = await self._put(body, None, False)
                except Refused as error:
                    if not error.wrong_last:
                        raise self._api._error(error) from None
                    await self._catch_up(sure=True)
                    continue
                self.state = None
                # Members elsewhere read that it is gone, or find nothing.
                await self._api.purge(self.stream, filter=self.subject, seq=self.sequence + 1)
                await self._api.purge(self.stream, filter=f"{self.copies}.*")
                self.wake()
                return True
            return False

    def _clean(self, sequences: list[int]) -> None:
        """Remove copies of what is no dead letter any more."""
        for sequence in sequences:
            task = asyncio.create_task(
                self._api.purge(self.stream, filter=f"{self.copies}.{sequence}")
            )
            self._cleaning.add(task)
            task.add_done_callback(self._cleaned)

    def _cleaned(self, task: asyncio.Task[int]) -> None:
        self._cleaning.discard(task)
        if not task.cancelled():
            task.exception()  # what is left is removed with the group


def _done(job: Job, state: State) -> tuple[Any, Exception | None]:
    mark = state.mark
    try:
        return job(state), None
    except (MicroError, Copies) as error:
        state.undo(mark)
        return None, error


async def make_stream(api: Api, names: Names, space: str) -> None:
    """The stream of a namespace's groups and dead letters."""
    groups = names.groups(space)
    await api.create(
        {
            "name": names.groups_stream(space),
            "subjects": [f"{groups}.>", f"{names.dead(space)}.>"],
            "allow_rollup_hdrs": True,
            "republish": {
                "src": f"{groups}.>",
                "dest": f"{names.told(groups)}.>",
                "headers_only": True,
            },
            "metadata": {"namespace": space},
        }
    )


class Groups:
    """The groups that are known here."""

    def __init__(self, api: Api, names: Names) -> None:
        self._api = api
        self._names = names
        self._known: dict[tuple[str, int], Group] = {}

    async def close(self) -> None:
        for group in list(self._known.values()):
            await group.close()

    def doubt(self) -> None:
        """Something may have been missed of all of them."""
        for group in self._known.values():
            group.doubt()

    def of(self, space: str, life: str, number: int) -> Group:
        """A group by its number, whether it is there or not."""
        group = self._known.get((space, number))
        if group is None or group.life != life:
            if len(self._known) >= _KNOWN:
                self._known = {k: g for k, g in self._known.items() if g.users or g._jobs}
            group = self._known[space, number] = Group(self._api, self._names, space, life, number)
        return group

    def named(self, space: str, life: str, name: str) -> Group:
        return self.of(space, life, number_of(life, name))

    async def find(self, space: str, number: int) -> Group | None:
        """The group of a number, if there is one."""
        group = self._known.get((space, number))
        if group is None:
            pattern = f"{self._names.groups(space)}.*.{number}"
            rows = await self._api.scan(self._names.groups_stream(space), pattern, 1, 1)
            if not rows:
                return None
            group = self.of(space, rows[0].subject.split(".")[-2], number)
        with contextlib.suppress(NotFound):
            await group.current(sure=group.state is None)
        return None if group.state is None else group

    async def count(self, space: str, life: str) -> int:
        """How many groups a topic has."""
        return len((await self.lives(space, life)).get(life, ()))

    async def lives(self, space: str, life: str = "*") -> dict[str, list[int]]:
        """The numbers of the groups, by the lives of their topics."""
        pattern = f"{self._names.groups(space)}.{life}.*"
        found: dict[str, list[int]] = {}
        offset = 0
        while True:
            info = await self._api.info(
                self._names.groups_stream(space), subjects_filter=pattern, offset=offset
            )
            subjects = {} if info is None else info["state"].get("subjects") or {}
            for subject in subjects:
                _, life, number = subject.rsplit(".", 2)
                found.setdefault(life, []).append(int(number))
            offset += len(subjects)
            if info is None or not subjects or offset >= info["total"]:
                return found
