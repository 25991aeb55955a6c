"""A driver whose replicas do what they are told, for what takes hours or a bad moment in life; and
a keeper on it whose clock passes when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from micro_ray.runtime import Driver, Replica, State, Status, Workload
from micro_ray.runtime.desired import Desired
from micro_ray.runtime.keeper import Keeper, Patience
from tests.fixtures.wait import eventually


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Stage(Driver):
    """``act(replica, workload)`` is what happens at a start: it returns, raises or hangs."""

    act: Callable[[Replica, Workload], Any] = lambda replica, workload: None
    clock: Clock = field(default_factory=Clock)
    started: list[tuple[float, Replica]] = field(default_factory=list)
    lives: dict[str, asyncio.Future[str]] = field(default_factory=dict)
    stopped: list[tuple[str, float]] = field(default_factory=list)
    starting: int = 0
    most: int = 0
    stop_raises: int = 0

    async def start(self, replica: Replica, workload: Workload) -> Replica:
        self.started.append((self.clock(), replica))
        self.starting += 1
        self.most = max(self.most, self.starting)
        try:
            answer = self.act(replica, workload)
            if asyncio.iscoroutine(answer):
                await answer
        finally:
            self.starting -= 1
        self.lives[replica.id] = asyncio.get_running_loop().create_future()
        return replace(replica, state=State.RUNNING, pid=1, started=float(len(self.started)))

    async def ended(self, replica: Replica) -> str:
        life = self.lives.get(replica.id)
        return await asyncio.shield(life) if life is not None else "it had ended"

    async def stop(self, replica: Replica, grace: float) -> None:
        if self.stop_raises:
            self.stop_raises -= 1
            raise OSError("not now")
        self.stopped.append((replica.id, grace))
        self.fall(replica.id, "stopped")

    def fall(self, id: str, why: str = "fell") -> None:
        life = self.lives.pop(id, None)
        if life is not None and not life.done():
            life.set_result(why)

    async def adopt(self) -> list[Replica]:
        return []

    async def close(self) -> None:
        """Nothing is held."""


async def hang() -> None:
    await asyncio.get_running_loop().create_future()


@dataclass
class Play:
    """A keeper that is being kept."""

    keeper: Keeper
    stage: Stage
    task: asyncio.Task[None]

    @property
    def clock(self) -> Clock:
        return self.stage.clock

    @property
    def status(self) -> Status:
        return self.keeper.status()

    def running(self, generation: int = 0) -> list[str]:
        return [
            r.id
            for r in self.status.replicas
            if r.state is State.RUNNING and generation in (0, r.generation)
        ]

    async def until(self, check: Callable[[], object]) -> None:
        await eventually(check, within=5, every=0.002)

    async def is_(self, state: State, error: str = "") -> None:
        await self.until(lambda: self.status.state is state and error in self.status.error)

    async def calm(self) -> None:
        """Let everything happen that happens at this time of the clock."""
        for _ in range(30):
            await asyncio.sleep(0.001)

    def update(self, previous: Workload | None = None, **changes: Any) -> None:
        """What the runtime does with an update."""
        keeper = self.keeper
        workload = keeper.workload
        if set(changes) == {"replicas"}:
            desired = msgspec.structs.replace(keeper.desired, workload=replace(workload, **changes))
        else:
            new = replace(workload, generation=workload.generation + 1, **changes)
            desired = Desired(workload=new, previous=previous or keeper.fallback())
        keeper.want(desired)

    def told(self) -> list[str]:
        return [step.text for step in self.keeper.steps(0)[0]]


async def ready(workload: Workload) -> None:
    """Sources are there."""


@asynccontextmanager
async def play(
    act: Callable[[Replica, Workload], Any] = lambda replica, workload: None,
    *,
    replicas: int = 1,
    slots: int = 10,
    desired: Desired | None = None,
    prepare: Callable[[Workload], Any] = ready,
    gate: Any = None,
    **patience: Any,
) -> AsyncIterator[Play]:
    stage = Stage(act=act)
    times = {"resync": 0.005, "gate": 0.005, **patience}
    workload = Workload(name="w", command=("x",), driver="process", replicas=replicas)
    keeper = Keeper(
        desired or Desired(workload=workload),
        stage,
        prepare=prepare,
        slots=asyncio.Semaphore(slots),
        gate=gate,
        patience=Patience(**times),
        clock=stage.clock,
    )
    task = asyncio.create_task(keeper.run())
    before = asyncio.all_tasks()
    try:
        yield Play(keeper, stage, task)
    finally:
        keeper.end()
        with contextlib.suppress(asyncio.CancelledError):
            async with asyncio.timeout(5):
                await task
        assert stage.lives == {}, "replicas were left"
        assert asyncio.all_tasks() - before == set(), "tasks were left"
