"""Pools: which actors the platform consists of, and keeping them there.

Ray restarts a member whose process dies (``max_restarts=-1``). :class:`Supervisor` does what Ray
does not: it creates the pools, tells when each is up, and makes a member anew when Ray has given
it up (a constructor that raised because its backend was not there yet).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from micro_ray.actors.auth import AuthActor
from micro_ray.actors.authcache import AuthCacheActor
from micro_ray.actors.broker import BrokerActor
from micro_ray.actors.certs import CertsActor
from micro_ray.actors.config import ConfigActor
from micro_ray.actors.events import EventsActor
from micro_ray.actors.limits import LimitsActor
from micro_ray.actors.member import Member
from micro_ray.actors.network import NetworkActor
from micro_ray.actors.placement import Machine, machine_of
from micro_ray.actors.registry import RegistryActor
from micro_ray.actors.router import RouterActor
from micro_ray.actors.runtime import RuntimeActor
from micro_ray.actors.store import StoreActor
from micro_ray.errors import Unavailable
from micro_ray.runtime.ray import PREFIX
from micro_ray.settings import RAY_NAMESPACE, Settings

__all__ = ["MEMBERS", "Supervisor", "actor_name"]

log = logging.getLogger(__name__)

#: Every platform service that is a pool, in the order in which they are started.
MEMBERS: Mapping[str, type[Member]] = {
    cls.service: cls
    for cls in (
        CertsActor,
        RegistryActor,
        RouterActor,
        StoreActor,
        BrokerActor,
        EventsActor,
        ConfigActor,
        AuthActor,
        AuthCacheActor,
        LimitsActor,
        NetworkActor,
        RuntimeActor,
    )
}

#: Seconds between attempts to make a member whose constructor fails: first, and at most.
BACKOFF = (0.2, 5.0)
#: Seconds that a member has to stop, at least; the runtime needs them for its replicas.
STOP = 10.0
#: Seconds that a member which is being created is waited for, to be ended.
OBTAINED = 10.0


def actor_name(service: str, index: int) -> str:
    """The name of a member: the first is named as its service is (``store``), the others
    ``store-1``, ``store-2``."""
    return service if index == 0 else f"{service}-{index}"


class Supervisor:
    """An ``async with`` over all pools: entered, every member is being created; left, all are
    stopped, also those that have not come up, and what they had started on Ray.

    ``machines`` are those of a Ray of several, the server's first. ``report`` gets one line per
    pool as it comes up. Blocking Ray calls run in threads.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        report: Callable[[str], None],
        machines: Sequence[Machine] = (),
    ) -> None:
        self._settings = settings
        self._machines = machines
        self._report = report
        self._tasks: list[asyncio.Task[None]] = []
        self._up: dict[tuple[str, int], asyncio.Event] = {}
        self._obtained: dict[tuple[str, int], asyncio.Future[Any]] = {}

    def pools(self) -> dict[str, int]:
        """Service -> how many members."""
        pools = self._settings.pools
        return {item.name: getattr(pools, item.name) for item in fields(pools)}

    async def __aenter__(self) -> Supervisor:
        for service in MEMBERS:
            for index in range(self.pools()[service]):
                self._up[service, index] = asyncio.Event()
                self._tasks.append(asyncio.create_task(self._keep(service, index)))
        return self

    async def ready(self, *, timeout: float = 60.0) -> None:
        """Wait until every member has answered, reporting each pool once.

        Raises Unavailable naming the members that did not come up in ``timeout`` seconds.
        """

        async def pool(service: str, count: int) -> None:
            for index in range(count):
                await self._up[service, index].wait()
            self._report(f"{service:<9} up  {count} actor{'s' if count > 1 else ''}")

        try:
            async with asyncio.timeout(timeout):
                await asyncio.gather(*(pool(s, n) for s, n in self.pools().items() if s in MEMBERS))
        except TimeoutError:
            missing = [actor_name(*key) for key, event in self._up.items() if not event.is_set()]
            raise Unavailable(
                "cluster", f"not up after {timeout:g} s: {', '.join(missing)}"
            ) from None

    async def _keep(self, service: str, index: int) -> None:
        pause = BACKOFF[0]
        while True:
            try:
                # The thread goes on when this is cancelled: what it gives is to be ended too.
                obtained = asyncio.ensure_future(asyncio.to_thread(self._obtain, service, index))
                self._obtained[service, index] = obtained
                actor = await asyncio.shield(obtained)
                await actor.ping.remote()
                self._up[service, index].set()
                pause = BACKOFF[0]
                await actor.wait.remote()
                # Somebody has stopped it by its handle. At the end of the platform this task has
                # been cancelled before, so the pool is to be whole again.
                await asyncio.to_thread(ray.kill, actor, no_restart=True)
            except RayTaskError as error:
                log.warning("%s did not start: %s", actor_name(service, index), error)
            except RayActorError as error:
                log.warning("%s died: %s", actor_name(service, index), _first_line(error))
            except RayError as error:
                log.warning("%s: %s", actor_name(service, index), _first_line(error))
            self._up[service, index].clear()
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF[1])

    def _obtain(self, service: str, index: int) -> Any:
        cls = ray.remote(MEMBERS[service])
        return cls.options(
            name=actor_name(service, index),
            namespace=RAY_NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=10_000,
            num_cpus=0,
            enable_task_events=False,
            scheduling_strategy=self._strategy(service, index),
        ).remote(self._settings, index)

    def _strategy(self, service: str, index: int) -> Any:
        """Hard, as Ray takes a soft one lightly on a busy machine. Blocks."""
        if not self._machines:
            return "SPREAD"
        machine, must = machine_of(self._settings, service, index, self._machines)
        if machine is None:
            return "SPREAD"
        if not must and not any(n["Alive"] and n["NodeID"] == machine.id for n in ray.nodes()):
            return "SPREAD"  # it was lost
        return NodeAffinitySchedulingStrategy(machine.id, soft=False)

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # The reverse of the order of starting: callers before those they call. When they did not
        # all come up nobody has called yet.
        groups = [[service] for service in reversed(list(MEMBERS))]
        if not all(event.is_set() for event in self._up.values()):
            groups = [list(MEMBERS)]
        for group in groups:
            keys = [key for key in self._obtained if key[0] in group]
            await asyncio.gather(*(self._end(key) for key in keys))
        await asyncio.to_thread(_end_replicas)

    async def _end(self, key: tuple[str, int]) -> None:
        obtained = self._obtained[key]
        await asyncio.wait([obtained], timeout=OBTAINED)
        if not obtained.done() or obtained.exception() is not None:
            return
        actor = obtained.result()
        if self._up[key].is_set():
            with contextlib.suppress(RayError, TimeoutError):
                async with asyncio.timeout(max(STOP, self._settings.runtime.drain_timeout)):
                    await actor.stop.remote()
        with contextlib.suppress(RayError):
            await asyncio.to_thread(ray.kill, actor, no_restart=True)


def _end_replicas() -> None:
    """End the replicas that a runtime has left which could not stop in order. Blocks."""
    with contextlib.suppress(RayError):
        for row in ray.util.list_named_actors(all_namespaces=True):
            if row["namespace"] == RAY_NAMESPACE and row["name"].startswith(PREFIX):
                with contextlib.suppress(RayError, ValueError):
                    ray.kill(ray.get_actor(row["name"], namespace=RAY_NAMESPACE), no_restart=True)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
