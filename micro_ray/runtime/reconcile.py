"""The runtime: desired state in the store, one keeper per workload."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from micro_ray.errors import BadRequest, Conflict, MicroError, NotFound, Unavailable
from micro_ray.runtime import (
    Driver,
    LogLine,
    Progress,
    Replica,
    Runtime,
    State,
    Status,
    Workload,
    logs,
)
from micro_ray.runtime.archives import Archives
from micro_ray.runtime.checks import changed, check, check_place
from micro_ray.runtime.desired import Desired, Records
from micro_ray.runtime.folders import log_folder, work_folder
from micro_ray.runtime.keeper import Gate, Keeper, Patience
from micro_ray.runtime.turns import Turns
from micro_ray.settings import Runtime as RuntimeSettings
from micro_ray.store import Store

__all__ = ["Reconciler"]

log = logging.getLogger(__name__)

#: Seconds between looks for what nobody needs any more, and those that logs of a workload that was
#: deleted are kept.
TIDY = 600.0
LOGS_KEPT = 7 * 86_400.0
#: Seconds between attempts when the store does not answer: first, and at most.
BACKOFF = (0.05, 1.0)
MAX_TAIL = 10_000

#: The namespace and the name of a workload.
Key = tuple[str, str]


@dataclass(slots=True)
class _Kept:
    """A keeper, what the store has of it, and the tasks that it lives in."""

    keeper: Keeper
    written: Desired
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class Reconciler(Runtime):
    """``async with`` takes up what the store says should run; left, replicas go on. ``state`` is
    the folder with sources and logs, ``archives`` keeps the sources, ``namespace`` is the
    platform's own. ``gate`` raises while a
    replica is not fit to serve."""

    def __init__(
        self,
        store: Store,
        drivers: Mapping[str, Driver],
        state: Path,
        *,
        archives: Archives,
        namespace: str = "micro",
        settings: RuntimeSettings | None = None,
        gate: Gate | None = None,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._drivers = drivers
        self._state = state
        self._settings = settings or RuntimeSettings()
        self._gate = gate
        self._patience = patience or Patience(
            start=self._settings.start_timeout, drain=self._settings.drain_timeout
        )
        self._clock = clock
        self._records = Records(store, namespace)
        self._archives = archives
        self._kept: dict[Key, _Kept] = {}
        self._slots = asyncio.Semaphore(max(2, os.cpu_count() or 2))
        self._turns = Turns()
        self._loaded = asyncio.Event()
        self._halted = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Reconciler:
        self._tasks = [asyncio.create_task(self._load()), asyncio.create_task(self._tidy())]
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._let_go()
        for kept in self._kept.values():
            await kept.keeper.close()
        for driver in self._drivers.values():
            await driver.close()

    async def halt(self, grace: float) -> None:
        """Stop keeping and end all replicas, leaving the desired state as it is."""
        self._halted = True
        await self._let_go()
        await asyncio.gather(*(kept.keeper.halt(grace) for kept in self._kept.values()))

    async def _let_go(self) -> None:
        await self._turns.close()
        tasks = [*self._tasks, *(task for kept in self._kept.values() for task in kept.tasks)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- verbs -----------------------------------------------------------------------------------

    async def create(self, workload: Workload) -> Status:
        now = time.time()
        workload = replace(workload, generation=1, created=now, updated=now)
        workload = check(workload, self._drivers, self._settings.max_replicas)
        await self._ready()
        key = (workload.namespace, workload.name)
        while True:
            async with self._turns.turn() as turn:
                there = self._kept.get(key)
                if there is None:
                    await self._has_source(workload)
                    begun = self._begin(Desired(workload=workload))
                    return await turn.see_through(begun, workload.name)
                if not there.keeper.ending:
                    raise Conflict(
                        "runtime", f"{workload.name} runs already; use `micro update` to change it"
                    )
            await there.gone.wait()  # it was deleted just now

    async def _begin(self, desired: Desired) -> Status:
        await self._records.write(desired)
        return self._keep(desired).status()

    async def update(self, name: str, namespace: str, changes: Mapping[str, Any]) -> Status:
        check_place(name, namespace)
        await self._ready()
        async with self._turns.turn() as turn:
            kept = self._find(name, namespace)
            keeper, old = kept.keeper, kept.keeper.workload
            if keeper.ending:
                raise Conflict("runtime", f"{name} is being stopped; run it anew when it is gone")
            new = replace(changed(old, changes), updated=time.time())
            rolls = any(
                getattr(new, f.name) != getattr(old, f.name)
                for f in fields(new)
                if f.name not in ("replicas", "updated")
            )
            # An update that changes nothing is a restart: the same again, rolled.
            if rolls or new.replicas == old.replicas:
                new = replace(new, generation=old.generation + 1)
            new = check(new, self._drivers, self._settings.max_replicas)
            await self._has_source(new)
            if new.generation != old.generation:
                desired = Desired(workload=new, previous=keeper.fallback())
            else:
                desired = msgspec.structs.replace(keeper.desired, workload=new)
            return await turn.see_through(self._want(kept, desired), name)

    async def _want(self, kept: _Kept, desired: Desired) -> Status:
        await self._records.write(desired)
        kept.written = desired
        kept.keeper.want(desired)
        return kept.keeper.status()

    async def delete(self, name: str, namespace: str = "micro") -> None:
        check_place(name, namespace)
        await self._ready()
        async with self._turns.turn() as turn:
            kept = self._find(name, namespace)
            if not kept.keeper.ending:
                await turn.see_through(self._end(kept), name)
        # Not in the turn: what it serves may take its time.
        await kept.gone.wait()

    async def _end(self, kept: _Kept) -> None:
        workload = kept.keeper.workload
        await self._records.delete(workload.namespace, workload.name)
        kept.keeper.end()

    async def read(self, name: str = "", namespace: str = "micro") -> list[Status]:
        check_place(name or "all", namespace)
        await self._ready()
        if name:
            return [self._find(name, namespace).keeper.status()]
        found = [kept.keeper for (space, _), kept in self._kept.items() if space == namespace]
        return sorted((k.status() for k in found), key=lambda status: status.workload.name)

    async def logs(
        self, name: str, namespace: str = "micro", *, tail: int = 15, follow: bool = False
    ) -> AsyncGenerator[LogLine, None]:
        check_place(name, namespace)
        if not 0 <= tail <= MAX_TAIL:
            raise BadRequest("runtime", f"tail {tail} is not within 0 and {MAX_TAIL}")
        await self._ready()
        folder = log_folder(self._state, namespace, name)
        if (namespace, name) not in self._kept and not await asyncio.to_thread(folder.is_dir):
            self._find(name, namespace)
        reader = logs.Reader(folder)
        for line in await asyncio.to_thread(reader.tail, tail):
            yield line
        if follow:
            async with contextlib.aclosing(reader.follow()) as news:
                async for line in news:
                    yield line

    async def progress(self, name: str, namespace: str = "micro") -> AsyncGenerator[Progress, None]:
        check_place(name, namespace)
        await self._ready()
        kept, told = self._find(name, namespace), 0
        while True:
            changed = kept.keeper.changed
            steps, told = kept.keeper.steps(told)
            for step in steps:
                yield step
            if kept.keeper.changed is not changed:
                continue  # more has come while that was told
            status = kept.keeper.status()
            if status.state in (State.RUNNING, State.ERROR, State.STOPPED) or kept.gone.is_set():
                text = status.error if status.state is State.ERROR else status.state.value
                yield Progress(state=status.state, text=text)
                return
            waits = [asyncio.ensure_future(event.wait()) for event in (changed, kept.gone)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def upload(self, archive: bytes | AsyncIterable[bytes], namespace: str = "micro") -> str:
        check_place("source", namespace)
        return await self._archives.keep(archive, namespace)

    # -- parts -----------------------------------------------------------------------------------

    async def _ready(self) -> None:
        if self._halted:
            raise Unavailable("runtime", "the platform is being stopped")
        try:
            async with asyncio.timeout(self._settings.start_timeout):
                await self._loaded.wait()
        except TimeoutError:
            raise Unavailable(
                "runtime", "what should run is not known yet: the store does not answer", 1.0
            ) from None

    def _find(self, name: str, namespace: str) -> _Kept:
        kept = self._kept.get((namespace, name))
        if kept is None:
            names = ", ".join(sorted(n for space, n in self._kept if space == namespace))
            raise NotFound("runtime", f"no workload {name!r}; there is {names or 'none'}")
        return kept

    async def _has_source(self, workload: Workload) -> None:
        digest = workload.digest
        if digest and not await self._archives.has(workload.namespace, digest):
            raise NotFound("runtime", f"source {digest[:12]} was not uploaded")

    async def _prepare(self, workload: Workload) -> None:
        if workload.digest:
            await self._archives.unpacked(workload.namespace, workload.digest)

    # -- keepers ---------------------------------------------------------------------------------

    def _keep(self, desired: Desired, adopted: tuple[Replica, ...] = ()) -> Keeper:
        workload = desired.workload
        keeper = Keeper(
            desired,
            self._drivers.get(workload.driver) or _Missing(workload.driver, self._drivers),
            prepare=self._prepare,
            slots=self._slots,
            gate=self._gate,
            patience=self._patience,
            clock=self._clock,
        )
        for replica in adopted:
            keeper.adopt(replica)
        kept = _Kept(keeper, desired)
        self._kept[workload.namespace, workload.name] = kept
        kept.tasks = [
            asyncio.create_task(self._attend(kept)),
            asyncio.create_task(self._run(kept)),
        ]
        return keeper

    async def _run(self, kept: _Kept) -> None:
        """A keeper's life, and what is cleared up after it."""
        await kept.keeper.run()
        workload = kept.keeper.workload
        place = (workload.namespace, workload.name)
        kept.tasks[0].cancel()
        await asyncio.gather(kept.tasks[0], return_exceptions=True)
        folder = work_folder(self._state, *place)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        await asyncio.to_thread(logs.prune, log_folder(self._state, *place), set())
        del self._kept[place]
        kept.gone.set()

    async def _attend(self, kept: _Kept) -> None:
        """Record what a keeper has found out, and prune the logs when replicas come and go."""
        keeper, alive = kept.keeper, set[str]()
        workload = keeper.workload
        folder = log_folder(self._state, workload.namespace, workload.name)
        while True:
            changed = keeper.changed
            if keeper.desired is not kept.written:
                await self._record(kept)
            if keeper.replicas() != alive:
                alive = keeper.replicas()
                await asyncio.to_thread(logs.prune, folder, alive)
            await changed.wait()

    async def _record(self, kept: _Kept) -> None:
        async with self._turns.lock:
            desired = kept.keeper.desired
            if kept.keeper.ending or desired is kept.written:
                return
            try:
                await self._records.write(desired)
            except MicroError as error:
                # It is written with the next change; without it a new runtime finds out again.
                log.warning("%s cannot be recorded: %s", desired.workload.name, error)
            else:
                kept.written = desired

    async def _load(self) -> None:
        """Take up the desired state, as soon as the store answers, and what still lives of it."""
        pause = BACKOFF[0]
        while True:
            try:
                found = await self._records.load()
                alive = {d: await driver.adopt() for d, driver in self._drivers.items()}
                break
            except MicroError as error:
                log.info("the store does not answer yet: %s", error)
            except Exception:
                log.exception("what should run cannot be taken up yet")
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF[1])
        for desired in found:
            workload = desired.workload
            theirs = tuple(
                r
                for r in alive.get(workload.driver, ())
                if (r.namespace, r.workload) == (workload.namespace, workload.name)
            )
            self._keep(desired, theirs)
        self._loaded.set()
        await asyncio.gather(
            *(
                self._drivers[driver].stop(replica, self._patience.drain)
                for driver, replicas in alive.items()
                for replica in replicas
                if not self._has(driver, replica)  # deleted while no runtime was there
            ),
            return_exceptions=True,
        )

    def _has(self, driver: str, replica: Replica) -> bool:
        kept = self._kept.get((replica.namespace, replica.workload))
        return kept is not None and kept.keeper.workload.driver == driver

    async def _tidy(self) -> None:
        """Remove what nobody needs any more, now and then."""
        await self._loaded.wait()
        while True:
            try:
                await self.tidy()
            except MicroError as error:
                log.info("not tidied: %s", error)
            except Exception:
                log.exception("not tidied")
            await asyncio.sleep(TIDY)

    async def tidy(self) -> None:
        """Remove sources that no workload has named for an hour, and logs of workloads that were
        deleted a week ago."""
        async with self._turns.lock:
            named = {
                (workload.namespace, workload.digest)
                for kept in self._kept.values()
                for workload in (kept.keeper.workload, kept.keeper.desired.previous)
                if workload is not None
            }
            await self._archives.collect(named)
        before = time.time() - LOGS_KEPT
        for folder in await asyncio.to_thread(lambda: list((self._state / "logs").glob("*/*"))):
            if (folder.parent.name, folder.name) not in self._kept:
                await asyncio.to_thread(logs.forget_old, folder, before)


class _Missing(Driver):
    """Stands for a driver that a workload names and this runtime does not have: it says so."""

    def __init__(self, name: str, drivers: Mapping[str, Driver]) -> None:
        self._why = f"driver {name!r} is not there; there is {', '.join(sorted(drivers))}"

    async def start(self, replica: Replica, workload: Workload) -> Replica:
        raise Unavailable("runtime", self._why)

    async def ended(self, replica: Replica) -> str:
        return self._why

    async def stop(self, replica: Replica, grace: float) -> None:
        """There is none."""

    async def adopt(self) -> list[Replica]:
        return []

    async def close(self) -> None:
        """Nothing is held."""
