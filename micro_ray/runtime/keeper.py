"""One workload kept as desired: plans, starts, watches, stops, backs off."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from micro_ray.errors import MicroError
from micro_ray.runtime import Driver, Progress, Replica, State, Status, Workload
from micro_ray.runtime.plan import Start, plan

__all__ = ["Keeper"]

log = logging.getLogger(__name__)

#: Seconds between attempts of a crash loop: first, and at most; it doubles.
BACKOFF = (0.5, 60.0)
#: Seconds that a replica must have lived for its end to be no part of a crash loop.
HEALTHY = 10.0
#: Seconds after which the plan is looked at again, whatever happened.
RESYNC = 2.0
#: Characters of an error that are kept.
MAX_ERROR = 8_000


class Keeper:
    """Owns the replicas of one workload. ``prepare`` makes the source ready before a start;
    ``slots`` bounds how many replicas start at once on this machine."""

    def __init__(
        self,
        desired: Workload,
        previous: Workload | None,
        drivers: Mapping[str, Driver],
        *,
        prepare: Callable[[Workload], Awaitable[None]],
        slots: asyncio.Semaphore,
        start_timeout: float,
        drain: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.desired: Workload | None = desired
        self.previous = previous
        self.name = desired.name
        self.gone = asyncio.Event()
        self.changed = asyncio.Event()
        self.steps: list[Progress] = []
        self._last = desired
        self._drivers = drivers
        self._prepare = prepare
        self._slots = slots
        self._start_timeout = start_timeout
        self._drain = drain
        self._clock = clock
        self._replicas: dict[str, Replica] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._failures = 0
        self._failed_generation = 0
        self._retry_at = 0.0
        self._restarts = 0
        self._error = ""

    # -- what the runtime tells it ---------------------------------------------------------------

    def want(self, desired: Workload | None, previous: Workload | None) -> None:
        """A new desired state (None: stop all and end)."""
        rolled = desired is not None and desired.generation != self._last.generation
        self.desired, self.previous = desired, previous
        if desired is not None:
            self._last = desired
        if rolled:
            self.steps = []
        self._failures, self._failed_generation, self._retry_at = 0, 0, 0.0
        self._error = ""
        self._notify()

    def adopt(self, replica: Replica) -> None:
        """Take over a replica of an earlier life of the runtime."""
        self._replicas[replica.id] = replica
        self._job(self._watch(replica))

    def status(self) -> Status:
        workload = self._last
        replicas = tuple(sorted(self._replicas.values(), key=lambda r: (r.started, r.id)))
        ready = sum(
            r.state is State.RUNNING and r.generation == workload.generation for r in replicas
        )
        return Status(
            workload=workload,
            state=self._state(ready),
            ready=ready,
            replicas=replicas,
            restarts=self._restarts,
            error=self._error,
            retry_in=max(0.0, self._retry_at - self._clock()),
        )

    def _state(self, ready: int) -> State:
        workload = self.desired
        if workload is None:
            return State.STOPPING
        if self._failed_generation == workload.generation:
            return State.ERROR
        old = any(r.generation != workload.generation for r in self._replicas.values())
        if ready >= workload.replicas and not old:
            return State.RUNNING if workload.replicas else State.STOPPED
        if self._failures:
            return State.ERROR
        if old:
            return State.UPDATING
        return State.STARTING if self._replicas else State.PENDING

    # -- the loop --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the workload until it is no longer desired and nothing of it is left."""
        while True:
            self._wake.clear()
            self._act()
            if self.desired is None and not self._replicas and not self._jobs:
                self.gone.set()
                return
            wait = RESYNC
            if self._retry_at > self._clock():
                wait = min(wait, self._retry_at - self._clock() + 0.01)
            try:
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def close(self) -> None:
        """Stop keeping; replicas go on."""
        for job in list(self._jobs):
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)

    async def halt(self, grace: float) -> None:
        """Stop keeping and end the replicas."""
        await self.close()
        await asyncio.gather(
            *(self._driver_of(r).stop(r, grace) for r in self._replicas.values()),
            return_exceptions=True,
        )

    def _act(self) -> None:
        steps = plan(
            self.desired,
            list(self._replicas.values()),
            may_start=self._clock() >= self._retry_at,
            failed_generation=self._failed_generation,
        )
        for step in steps:
            if isinstance(step, Start):
                workload = self._of(step.generation)
                if workload is not None:
                    self._job(self._start(workload))
            else:
                replica = self._replicas[step.replica]
                self._replicas[step.replica] = replace(replica, state=State.STOPPING)
                self._say(f"stopping {replica.id}: {step.why}")
                self._job(self._stop(replica))

    def _of(self, generation: int) -> Workload | None:
        for workload in (self.desired, self.previous):
            if workload is not None and workload.generation == generation:
                return workload
        return None

    def _job(self, work: Coroutine[Any, Any, None]) -> None:
        # The first step runs at once, so that a plan sees what an earlier one has begun.
        task = asyncio.create_task(work)
        self._jobs.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("keeping %s: %r", self.name, task.exception())
        self._notify()

    def _start(self, workload: Workload) -> Coroutine[Any, Any, None]:
        replica = Replica(
            id=f"{workload.name}-{os.urandom(6).hex()}",
            namespace=workload.namespace,
            workload=workload.name,
            generation=workload.generation,
            state=State.STARTING,
        )
        self._replicas[replica.id] = replica
        self._say(f"starting {replica.id}")
        return self._bring_up(replica, workload)

    async def _bring_up(self, replica: Replica, workload: Workload) -> None:
        driver = self._drivers[workload.driver]
        try:
            async with self._slots:
                await self._prepare(workload)
                async with asyncio.timeout(self._start_timeout):
                    running = await driver.start(replica, workload)
        except TimeoutError:
            await driver.stop(replica, 0)
            self._failed(replica, f"did not come up within {self._start_timeout:g} s")
        except MicroError as error:
            self._failed(replica, error.detail)
        except Exception as error:
            log.exception("starting %s", replica.id)
            self._failed(replica, f"{type(error).__name__}: {error}")
        else:
            if self._replicas[replica.id].state is State.STOPPING:
                await driver.stop(replica, 0)  # it was given up while it started
                self._forget(replica)
                return
            self._replicas[replica.id] = running
            self._say(f"running {replica.id}")
            self._job(self._watch(running))

    async def _watch(self, replica: Replica) -> None:
        why = await self._driver_of(replica).ended(replica)
        known = self._replicas.get(replica.id)
        if known is None or known.state is State.STOPPING:
            return
        self._restarts += 1
        if time.time() - replica.started >= HEALTHY:
            self._failures = 0
        self._failed(replica, why)

    def _failed(self, replica: Replica, why: str) -> None:
        """A replica did not come up, or ended by itself."""
        self._forget(replica)
        self._error = why[-MAX_ERROR:]
        workload = self.desired
        if workload is None:
            return
        others = [
            r
            for r in self._replicas.values()
            if r.generation != replica.generation and r.state is State.RUNNING
        ]
        if others and replica.generation == workload.generation and not replica.started:
            # An update that does not come up: what ran before goes on.
            self._failed_generation = replica.generation
            self._say(f"the update failed, the earlier generation goes on: {why}")
            return
        self._failures += 1
        pause = min(BACKOFF[0] * 2 ** (self._failures - 1), BACKOFF[1])
        self._retry_at = self._clock() + pause
        self._say(f"{replica.id} ended: {why}")

    async def _stop(self, replica: Replica) -> None:
        if replica.state is State.STARTING:
            return  # its start sees that it is no longer wanted
        await self._driver_of(replica).stop(replica, self._drain)
        self._forget(replica)

    def _driver_of(self, replica: Replica) -> Driver:
        workload = self._of(replica.generation) or self._last
        return self._drivers[workload.driver]

    def _forget(self, replica: Replica) -> None:
        self._replicas.pop(replica.id, None)
        self._notify()

    # -- telling ---------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        log.info("%s: %s", self.name, text)
        self.steps.append(Progress(state=self.status().state, text=text))
        del self.steps[:-1000]
        self._notify()

    def _notify(self) -> None:
        self._wake.set()
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    @property
    def settled(self) -> bool:
        """Whether the workload runs as desired, or has failed."""
        return self.status().state in (State.RUNNING, State.ERROR, State.STOPPED)
