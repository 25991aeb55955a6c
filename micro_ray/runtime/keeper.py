"""One workload kept as desired: plans, starts, watches, stops, backs off, goes back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from micro_ray.errors import MicroError, Unavailable
from micro_ray.runtime import Driver, Progress, Replica, State, Status, Workload
from micro_ray.runtime.desired import Desired
from micro_ray.runtime.plan import Start, plan

__all__ = ["Gate", "Keeper", "Patience"]

log = logging.getLogger(__name__)

#: Raises while a replica that has come up is not fit to serve.
Gate = Callable[[Replica, Workload], Awaitable[None]]

#: Characters of an error that are kept, and steps that are told to who comes late.
MAX_ERROR = 8_000
MAX_STEPS = 1_000
#: What is said where nobody gave a reason.
REASON = "it ended without a word"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Times, in seconds.

    ``start``: for a replica to come up; ``drain``: for one to finish when it is stopped.
    ``backoff``: between attempts of a crash loop, first and at most (it doubles). ``healthy``: what
    a replica must have lived for its end to be no part of a crash loop, and a generation to have
    run as desired to be proven. ``turn``: how long a start may keep others waiting for their turn.
    ``resync``: between looks at the plan, whatever happened.
    """

    start: float = 60.0
    drain: float = 30.0
    backoff: tuple[float, float] = (0.5, 60.0)
    healthy: float = 10.0
    turn: float = 5.0
    gate: float = 0.1
    resync: float = 2.0


class Keeper:
    """Owns the replicas of one workload. ``desired`` is what it is kept to: :meth:`want` changes
    it, and the keeper itself notes in it that a generation is proven or has failed (who owns the
    keeper records that). ``prepare`` makes the source ready before a start; ``slots`` bounds how
    many replicas start at once on this machine."""

    def __init__(
        self,
        desired: Desired,
        driver: Driver,
        *,
        prepare: Callable[[Workload], Awaitable[object]],
        slots: asyncio.Semaphore,
        gate: Gate | None = None,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.desired = desired
        self.ending = False
        self.changed = asyncio.Event()
        self._driver = driver
        self._prepare = prepare
        self._slots = slots
        self._gate = gate
        self._patience = patience or Patience()
        self._clock = clock
        self._replicas: dict[str, Replica] = {}
        self._since: dict[str, float] = {}
        self._starts: dict[str, asyncio.Task[None]] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._steps: list[Progress] = []
        self._told = 0
        self._failures = 0
        self._retry_at = 0.0
        self._restarts = 0
        self._error = ""
        self._well_since: float | None = None

    @property
    def workload(self) -> Workload:
        """The newest generation."""
        return self.desired.workload

    # -- what the runtime tells it ---------------------------------------------------------------

    def want(self, desired: Desired) -> None:
        """A new desired state. A new generation begins with a clean slate."""
        if desired.workload.generation != self.workload.generation:
            self._steps, self._told = [], self._told + len(self._steps)
            self._error, self._failures = "", 0
            self._well_since = None
        self.desired = desired
        self._retry_at = 0.0
        self._notify()

    def end(self) -> None:
        """Stop all, then end."""
        self.ending = True
        self._notify()

    def adopt(self, replica: Replica) -> None:
        """Take over a replica of an earlier life of the runtime."""
        self._took(replica)
        self._job(self._watch(replica, asyncio.ensure_future(self._driver.ended(replica))))

    def fallback(self) -> Workload | None:
        """What to go back to when the next generation does not come up: this one if it runs, or
        what this one has not replaced yet."""
        if self.desired.proven or self.status().state is State.RUNNING:
            return self.workload
        if self.desired.previous is not None:
            return self.desired.previous
        return self.workload if self.status().ready else None

    def replicas(self) -> set[str]:
        """The ids of all replicas that there are."""
        return set(self._replicas)

    def status(self) -> Status:
        workload = self.workload
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
            error=self._error or self.desired.failed,
            retry_in=max(0.0, self._retry_at - self._clock()),
        )

    def _state(self, ready: int) -> State:
        workload = self.workload
        if self.ending:
            return State.STOPPING
        if workload.replicas == 0:
            return State.STOPPING if self._replicas else State.STOPPED
        if self.desired.failed:
            return State.ERROR
        old = any(r.generation != workload.generation for r in self._replicas.values())
        if ready >= workload.replicas and not old:
            return State.RUNNING
        if self._failures:
            return State.ERROR
        if old:
            return State.UPDATING
        return State.STARTING if self._replicas else State.PENDING

    # -- the loop --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the workload until it is to end and nothing of it is left."""
        while True:
            self._wake.clear()
            try:
                self._look_back()
                self._act()
            except Exception:
                log.exception("keeping %s", self.workload.name)
            if self.ending and not self._replicas and not self._jobs:
                return
            wait = self._patience.resync
            if self._retry_at > self._clock():
                wait = min(wait, self._retry_at - self._clock() + 0.01)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    async def close(self) -> None:
        """Stop keeping; replicas go on, except those that have not come up yet."""
        jobs = [*self._jobs, *self._starts.values()]
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    async def halt(self, grace: float) -> None:
        """Stop keeping and end the replicas."""
        await self.close()
        await asyncio.gather(
            *(self._driver.stop(r, grace) for r in self._replicas.values()),
            return_exceptions=True,
        )
        self._replicas.clear()

    def _look_back(self) -> None:
        """After a while in good order what went wrong before is forgotten, and a new generation is
        proven: there is nothing to go back to any more."""
        now = self._clock()
        if self.status().state is not State.RUNNING:
            self._well_since = None
            return
        if self._well_since is None:
            self._well_since = now
        if now - self._well_since < self._patience.healthy:
            return
        self._failures, self._error = 0, ""
        if not self.desired.proven:
            self.desired = msgspec.structs.replace(self.desired, proven=True, previous=None)
            self._notify()

    def _act(self) -> None:
        steps = plan(
            None if self.ending else self.workload,
            list(self._replicas.values()),
            generation=self._target().generation,
            may_start=self._clock() >= self._retry_at,
        )
        for step in steps:
            if isinstance(step, Start):
                self._start(self._target())
            else:
                replica = self._replicas[step.replica]
                self._replicas[step.replica] = replace(replica, state=State.STOPPING)
                self._say(f"stopping {replica.id}: {step.why}")
                self._job(self._stop(replica))

    def _target(self) -> Workload:
        """The generation to have: the newest, or the one before when that has failed."""
        if self.desired.failed and self.desired.previous is not None:
            return self.desired.previous
        return self.workload

    def _job(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._jobs.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("keeping %s: %r", self.workload.name, task.exception())
        self._notify()

    # -- a replica's life ------------------------------------------------------------------------

    def _start(self, workload: Workload) -> None:
        replica = Replica(
            id=f"{workload.name}-{os.urandom(6).hex()}",
            namespace=workload.namespace,
            workload=workload.name,
            generation=workload.generation,
            state=State.STARTING,
        )
        self._replicas[replica.id] = replica
        self._say(f"starting {replica.id}")
        self._starts[replica.id] = self._job(self._bring_up(replica, workload))

    async def _bring_up(self, replica: Replica, workload: Workload) -> None:
        try:
            async with _turn(self._slots, self._patience.turn):
                running, ended = await self._up(replica, workload)
        except MicroError as error:
            self._failed(replica, error.detail)
        except Exception as error:
            log.exception("starting %s", replica.id)
            self._failed(replica, f"{type(error).__name__}: {error}")
        else:
            if self._replicas[replica.id].state is State.STOPPING:
                running = replace(running, state=State.STOPPING)  # given up just now
            else:
                self._say(f"running {replica.id}")
            self._took(running)
            self._job(self._watch(running, ended))
        finally:
            self._starts.pop(replica.id, None)

    async def _up(
        self, replica: Replica, workload: Workload
    ) -> tuple[Replica, asyncio.Future[str]]:
        """Start a replica and wait until it may serve; with what will say how it ended. When this
        raises, nothing is left of it."""
        unfit: list[MicroError] = []
        try:
            async with asyncio.timeout(self._patience.start) as limit:
                await self._prepare(workload)
                running = await self._driver.start(replica, workload)
                ended = asyncio.ensure_future(self._driver.ended(running))
                try:
                    await self._fit(running, workload, ended, unfit)
                except BaseException:
                    ended.cancel()
                    await self._driver.stop(running, 0)
                    raise
                return running, ended
        except TimeoutError:
            if not limit.expired():
                raise
            why = f"did not come up within {self._patience.start:g} s"
            why += f": {unfit[-1].detail}" if unfit else "; its log may say why"
            raise Unavailable("runtime", why) from None

    async def _fit(
        self,
        running: Replica,
        workload: Workload,
        ended: asyncio.Future[str],
        unfit: list[MicroError],
    ) -> None:
        """Wait until the gate lets a replica through. Raises Unavailable when it ends before."""
        while self._gate is not None:
            check = asyncio.ensure_future(self._gate(running, workload))
            try:
                both: list[asyncio.Future[Any]] = [check, ended]
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    raise Unavailable("runtime", ended.result())
                await check
                return
            except MicroError as error:
                if ended.done():
                    raise
                unfit.append(error)
                del unfit[:-1]
            finally:
                check.cancel()
                await asyncio.gather(check, return_exceptions=True)
            await asyncio.sleep(self._patience.gate)

    async def _watch(self, replica: Replica, ended: asyncio.Future[str]) -> None:
        try:
            why = await ended
        except Exception as error:
            log.exception("watching %s", replica.id)
            await self._driver.stop(replica, 0)
            why = f"{type(error).__name__}: {error}"
        known = self._replicas.get(replica.id)
        if known is None or known.state is State.STOPPING:
            return
        self._restarts += 1
        self._failed(replica, why, lived=self._clock() - self._since[replica.id])

    async def _stop(self, replica: Replica) -> None:
        """Until it is gone, whatever the driver says."""
        starting = self._starts.get(replica.id)
        if starting is not None:
            starting.cancel()
            await asyncio.wait([starting])
        grace = self._patience.drain if replica.id in self._since else 0
        while True:
            try:
                await self._driver.stop(replica, grace)
                break
            except Exception:
                log.exception("stopping %s", replica.id)
                await asyncio.sleep(self._patience.resync)
        self._forget(replica)

    def _failed(self, replica: Replica, why: str, lived: float | None = None) -> None:
        """A replica did not come up (``lived`` None), or ended by itself."""
        self._forget(replica)
        if self.ending or replica.generation != self._target().generation:
            return  # it was of no use any more
        self._error = why[-MAX_ERROR:]
        desired = self.desired
        # Those that fail side by side fail once.
        again = self._failures > 0 and self._clock() >= self._retry_at
        if desired.previous is not None and not desired.failed and (lived is None or again):
            # An update that does not come up, or does not stay up: what ran before goes on.
            self.desired = msgspec.structs.replace(desired, failed=self._error or REASON)
            self._failures, self._retry_at = 0, 0.0
            self._say(f"the update failed, the earlier generation goes on: {why}")
            return
        if lived is not None and lived >= self._patience.healthy:
            self._failures = 0
        if self._clock() >= self._retry_at:
            self._failures += 1
            first, most = self._patience.backoff
            self._retry_at = self._clock() + min(first * 2 ** min(self._failures - 1, 30), most)
        self._say(f"{replica.id} ended: {why}")

    def _took(self, replica: Replica) -> None:
        self._replicas[replica.id] = replica
        self._since[replica.id] = self._clock()

    def _forget(self, replica: Replica) -> None:
        self._replicas.pop(replica.id, None)
        self._since.pop(replica.id, None)
        self._starts.pop(replica.id, None)
        self._notify()

    # -- telling ---------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        log.info("%s: %s", self.workload.name, text)
        self._steps.append(Progress(state=self.status().state, text=text))
        if len(self._steps) > MAX_STEPS:
            del self._steps[0]
            self._told += 1
        self._notify()

    def steps(self, after: int) -> tuple[Sequence[Progress], int]:
        """The steps of the newest generation beyond a count, and the count after them."""
        return self._steps[max(0, after - self._told) :], self._told + len(self._steps)

    def _notify(self) -> None:
        self._wake.set()
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


@asynccontextmanager
async def _turn(slots: asyncio.Semaphore, most: float) -> AsyncIterator[None]:
    """One of the slots, given back at the end or after ``most`` seconds: one that hangs must not
    keep others from starting."""
    await slots.acquire()
    held = [slots]

    def give_back() -> None:
        if held:
            held.pop().release()

    timer = asyncio.get_running_loop().call_later(most, give_back)
    try:
        yield
    finally:
        timer.cancel()
        give_back()
