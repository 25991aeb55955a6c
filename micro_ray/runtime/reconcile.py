"""The runtime: desired state in the store, one keeper per workload."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec

from micro_ray.errors import BadRequest, Conflict, MicroError, NotFound, TooLarge
from micro_ray.runtime import (
    MAX_ENV,
    MAX_ENV_BYTES,
    Driver,
    LogLine,
    Progress,
    Runtime,
    State,
    Status,
    Workload,
    logs,
    source,
)
from micro_ray.runtime.keeper import Keeper
from micro_ray.settings import Runtime as RuntimeSettings
from micro_ray.store import Store

__all__ = ["Reconciler", "source_key"]

log = logging.getLogger(__name__)

TABLE = "runtime"
PREFIX = "workload/"
#: What an update may change.
CHANGEABLE = (
    "source", "digest", "command", "env", "replicas", "cpu", "gpu", "memory", "metadata",
)  # fmt: skip

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A workload in the store: as desired, and as it was before, for a failed update."""

    desired: Workload
    previous: Workload | None = None


def source_key(digest: str) -> str:
    """The blob under which a packed source is kept."""
    return f"source/{digest}"


class Reconciler(Runtime):
    """``async with`` takes up what the store says should run. ``state`` is the folder with sources
    and logs."""

    def __init__(
        self,
        store: Store,
        drivers: Mapping[str, Driver],
        state: Path,
        *,
        namespace: str = "micro",
        settings: RuntimeSettings | None = None,
    ) -> None:
        self._store = store
        self._drivers = drivers
        self._state = state
        self._namespace = namespace
        self._settings = settings or RuntimeSettings()
        self._keepers: dict[tuple[str, str], Keeper] = {}
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(max(2, os.cpu_count() or 2))
        self._writing = asyncio.Lock()
        self._loaded = asyncio.Event()
        self._loader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Reconciler:
        self._loader = asyncio.create_task(self._load())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._loader is not None:
            self._loader.cancel()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for keeper in self._keepers.values():
            await keeper.close()
        for driver in self._drivers.values():
            await driver.close()

    async def halt(self, grace: float) -> None:
        """Stop keeping and end all replicas, leaving the desired state as it is."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await asyncio.gather(*(keeper.halt(grace) for keeper in self._keepers.values()))

    async def _load(self) -> None:
        """Take up the desired state, as soon as the store answers, and what still lives of it."""
        pause = 0.05
        while True:
            try:
                records = await self._store.query(
                    prefix=PREFIX, table=TABLE, namespace=self._namespace
                )
                break
            except MicroError as error:
                log.info("the store does not answer yet: %s", error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 1.0)
        alive = [r for driver in self._drivers.values() for r in await driver.adopt()]
        for record in records:
            try:
                kept = msgspec.json.decode(record.value, type=_Kept)
            except msgspec.DecodeError as error:
                log.error("%s cannot be read and is passed over: %s", record.key, error)
                continue
            keeper = self._keep(kept.desired, kept.previous)
            for replica in [r for r in alive if r.workload == kept.desired.name]:
                alive.remove(replica)
                keeper.adopt(replica)
        for replica in alive:  # of workloads that were deleted meanwhile
            for driver in self._drivers.values():
                await driver.stop(replica, 0)
        self._loaded.set()

    def _keep(self, desired: Workload, previous: Workload | None) -> Keeper:
        keeper = Keeper(
            desired,
            previous,
            self._drivers,
            prepare=self._prepare,
            slots=self._slots,
            start_timeout=self._settings.start_timeout,
            drain=self._settings.drain_timeout,
        )
        key = (desired.namespace, desired.name)
        self._keepers[key] = keeper
        self._tasks[key] = asyncio.create_task(keeper.run())
        return keeper

    # -- verbs -----------------------------------------------------------------------------------

    async def create(self, workload: Workload) -> Status:
        self._validate(workload)
        await self._ready()
        async with self._writing:
            key = (workload.namespace, workload.name)
            if key in self._keepers:
                raise Conflict(
                    "runtime", f"{workload.name} runs already; use `micro update` to change it"
                )
            await self._has_source(workload)
            now = time.time()
            workload = replace(workload, generation=1, created=now, updated=now)
            await self._write(workload, None)
            return self._keep(workload, None).status()

    async def update(self, name: str, namespace: str, changes: Mapping[str, Any]) -> Status:
        await self._ready()
        unknown = set(changes) - set(CHANGEABLE)
        if unknown:
            raise BadRequest(
                "runtime", f"{', '.join(sorted(unknown))} cannot be updated; delete and run anew"
            )
        async with self._writing:
            keeper = self._find(name, namespace)
            old = keeper.desired
            assert old is not None
            new = replace(old, **changes, updated=time.time())
            rolls = any(
                getattr(new, f.name) != getattr(old, f.name)
                for f in fields(new)
                if f.name not in ("replicas", "updated")
            )
            # An update that changes nothing is a restart: the same again, rolled.
            if rolls or new.replicas == old.replicas:
                new = replace(new, generation=old.generation + 1)
            self._validate(new)
            await self._has_source(new)
            previous = old if new.generation != old.generation else keeper.previous
            await self._write(new, previous)
            keeper.want(new, previous)
            return keeper.status()

    async def delete(self, name: str, namespace: str = "micro") -> None:
        await self._ready()
        async with self._writing:
            keeper = self._find(name, namespace)
            await self._store.delete(PREFIX + name, table=TABLE, namespace=namespace)
            keeper.want(None, None)
            await keeper.gone.wait()
            del self._keepers[namespace, name], self._tasks[namespace, name]
            await asyncio.to_thread(logs.prune, self._logs(namespace, name), set())

    async def read(self, name: str = "", namespace: str = "micro") -> list[Status]:
        await self._ready()
        if name:
            return [self._find(name, namespace).status()]
        found = [k.status() for (space, _), k in self._keepers.items() if space == namespace]
        return sorted(found, key=lambda status: status.workload.name)

    async def logs(
        self, name: str, namespace: str = "micro", *, tail: int = 15, follow: bool = False
    ) -> AsyncIterator[LogLine]:
        await self._ready()
        if not 0 <= tail <= 10_000:
            raise BadRequest("runtime", f"tail {tail} is not within 0 and 10000")
        folder = self._logs(namespace, name)
        if (namespace, name) not in self._keepers and not await asyncio.to_thread(folder.is_dir):
            self._find(name, namespace)
        news = logs.follow(folder) if follow else None
        for line in await asyncio.to_thread(logs.tail, folder, tail):
            yield line
        if news is not None:
            async for line in news:
                yield line

    async def progress(self, name: str, namespace: str = "micro") -> AsyncIterator[Progress]:
        await self._ready()
        keeper = self._find(name, namespace)
        told = 0
        while True:
            changed, steps = keeper.changed, keeper.steps
            for step in steps[told:]:
                yield step
            told = len(steps)
            status = keeper.status()
            if keeper.settled or status.state is State.STOPPING:
                text = status.error if status.state is State.ERROR else status.state.value
                yield Progress(state=status.state, text=text)
                return
            await changed.wait()
            if keeper.steps is not steps:
                told = 0

    # -- parts -----------------------------------------------------------------------------------

    async def _ready(self) -> None:
        async with asyncio.timeout(self._settings.start_timeout):
            await self._loaded.wait()

    def _find(self, name: str, namespace: str) -> Keeper:
        keeper = self._keepers.get((namespace, name))
        if keeper is None or keeper.desired is None:
            names = ", ".join(sorted(n for space, n in self._keepers if space == namespace))
            raise NotFound("runtime", f"no workload {name!r}; there is {names or 'none'}")
        return keeper

    def _logs(self, namespace: str, name: str) -> Path:
        return self._state / "logs" / namespace / name

    async def _write(self, desired: Workload, previous: Workload | None) -> None:
        await self._store.write(
            PREFIX + desired.name,
            msgspec.json.encode(_Kept(desired=desired, previous=previous)),
            table=TABLE,
            namespace=desired.namespace,
        )

    async def _has_source(self, workload: Workload) -> None:
        if not workload.digest:
            return
        key = source_key(workload.digest)
        if not any(b.key == key for b in await self._store.blobs(prefix=key)):
            raise NotFound("runtime", f"source {workload.digest[:12]} was not uploaded")

    async def _prepare(self, workload: Workload) -> None:
        """The source in its folder, fetched from the store if it is not there."""
        if not workload.digest:
            return
        folder = self._state / "sources" / workload.digest
        if await asyncio.to_thread(folder.is_dir):
            return
        parts = [piece async for piece in self._store.read_blob(source_key(workload.digest))]
        await asyncio.to_thread(source.unpack, b"".join(parts), folder)

    def _validate(self, workload: Workload) -> None:
        if not _NAME.fullmatch(workload.name):
            raise BadRequest(
                "runtime",
                f"name {workload.name[:80]!r}: lower-case letters, digits, '-' and '.', at most 63",
            )
        if workload.driver not in self._drivers:
            raise BadRequest(
                "runtime",
                f"driver {workload.driver!r}; there is {', '.join(sorted(self._drivers))}",
            )
        if workload.driver == "ray" and workload.command:
            raise BadRequest("runtime", "a command runs as a process: use driver 'process'")
        if not workload.digest and not workload.command:
            raise BadRequest("runtime", "neither source nor command: nothing to run")
        if not 0 <= workload.replicas <= self._settings.max_replicas:
            raise BadRequest(
                "runtime",
                f"replicas {workload.replicas} is not within 0 and {self._settings.max_replicas}",
            )
        for what in ("cpu", "gpu", "memory"):
            if not 0 <= getattr(workload, what) < 2**50:
                raise BadRequest("runtime", f"{what} {getattr(workload, what)} is out of range")
        if len(workload.env) > MAX_ENV or sum(map(len, workload.env.values())) > MAX_ENV_BYTES:
            raise TooLarge("runtime", f"env over {MAX_ENV} variables or {MAX_ENV_BYTES} bytes")
        for variable in workload.env:
            if not _VARIABLE.fullmatch(variable):
                raise BadRequest("runtime", f"env: {variable[:80]!r} is no variable's name")
