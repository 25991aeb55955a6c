"""The registry in memory: one process holds it, a new life of it starts empty (a new epoch) and is
filled by the nodes, which attach again when their stream breaks."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from micro_ray.errors import Conflict, TooManyRequests, Unavailable
from micro_ray.registry import (
    DEFAULT_TTL,
    Action,
    Change,
    Instance,
    Registry,
    Service,
    Snapshot,
)
from micro_ray.registry.checks import check, check_ttl
from micro_ray.registry.listing import Ordered, find, services

__all__ = ["Capacity", "MemoryRegistry"]

#: Seconds between looks for leases that have ended.
SWEEP = 0.5
#: Seconds that a look may come late before the time counts as lost: nobody could renew meanwhile.
STALL = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a registry holds: ``nodes`` of ``size`` bytes in all, and the last ``history`` changes
    of ``history_size`` bytes for watchers that come back."""

    nodes: int = 100_000
    size: int = 512 * 2**20
    history: int = 10_000
    history_size: int = 64 * 2**20


@dataclass(slots=True)
class _Lease:
    instance: Instance
    size: int
    ttl: float
    until: float
    order: int
    holder: str
    #: When the sweep looks at this lease; a renewal moves ``until`` alone, so that the heap has one
    #: entry per lease however often it is renewed.
    queued: float = math.inf


class MemoryRegistry(Registry):
    """``clock`` gives seconds that only grow; every ``sweep`` seconds those who have ended go."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        capacity: Capacity | None = None,
        sweep: float = SWEEP,
    ) -> None:
        self._clock = clock
        self._period = sweep
        self._capacity = capacity or Capacity()
        self._epoch = os.urandom(8).hex()
        self._revision = 0
        self._size = 0
        # In the order of registration.
        self._leases: dict[tuple[str, str], _Lease] = {}
        self._history: deque[tuple[Change, int]] = deque()
        self._history_size = 0
        self._changed = asyncio.Event()
        self._expiry: list[tuple[float, tuple[str, str]]] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def __aenter__(self) -> MemoryRegistry:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def register(
        self, instance: Instance, *, ttl: float = DEFAULT_TTL, holder: str = ""
    ) -> None:
        self._check_open()
        check_ttl(ttl)
        key = (instance.namespace, instance.node.id)
        lease = self._leases.get(key)
        until = self._clock() + ttl
        if lease is not None and lease.instance == instance:
            lease.ttl, lease.until = ttl, until
        else:
            lease = self._put(key, instance, lease, ttl, until)
        lease.holder = holder
        if until < lease.queued:
            self._queue(key, lease)
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep())

    def _put(
        self,
        key: tuple[str, str],
        instance: Instance,
        old: _Lease | None,
        ttl: float,
        until: float,
    ) -> _Lease:
        size = check(instance)
        capacity, freed = self._capacity, old.size if old is not None else 0
        if old is None and len(self._leases) >= capacity.nodes:
            raise TooManyRequests("registry", f"all {capacity.nodes} places are taken", 10.0)
        if self._size + size - freed > capacity.size:
            raise TooManyRequests("registry", f"all {capacity.size} bytes are taken", 10.0)
        self._size += size - freed
        self._leases.pop(key, None)
        lease = self._leases[key] = _Lease(instance, size, ttl, until, self._revision + 1, "")
        self._record(Action.PUT, lease)
        return lease

    async def renew(self, namespace: str, node_ids: Sequence[str]) -> list[str]:
        self._check_open()
        unknown = []
        for node_id in node_ids:
            lease = self._leases.get((namespace, node_id))
            if lease is None:
                unknown.append(node_id)
            else:
                lease.until = self._clock() + lease.ttl
        return unknown

    async def deregister(self, namespace: str, node_id: str, *, holder: str = "") -> None:
        self._check_open()
        lease = self._leases.get((namespace, node_id))
        if lease is not None and holder in ("", lease.holder):
            self._remove((namespace, node_id))

    async def get(self, namespace: str, service: str) -> list[Service]:
        self._check_open()
        return find(self._ordered(), namespace, service)

    async def list(self, namespace: str) -> list[Service]:
        self._check_open()
        return services(self._ordered(), namespace)

    def _ordered(self) -> Iterator[Ordered]:
        return ((lease.order, lease.instance) for lease in self._leases.values())

    async def snapshot(self) -> Snapshot:
        self._check_open()
        return Snapshot(
            epoch=self._epoch,
            revision=self._revision,
            instances=tuple(lease.instance for lease in self._leases.values()),
        )

    async def watch(self, *, epoch: str, revision: int) -> AsyncIterator[Change]:
        self._check_open()
        if epoch != self._epoch:
            raise Conflict("registry", "another life of the registry; take a new snapshot")
        if revision > self._revision:
            raise Conflict(
                "registry", f"revision {revision} is to come; the newest is {self._revision}"
            )
        while not self._closed:
            behind = self._revision - revision
            if behind > len(self._history):
                raise Conflict("registry", f"revision {revision} is no longer kept")
            if not behind:
                await self._changed.wait()
                continue
            batch = list(itertools.islice(reversed(self._history), behind))
            for change, _ in reversed(batch):
                revision = change.revision
                yield change

    async def close(self) -> None:
        self._closed = True
        self._changed.set()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("registry", "the registry is closed")

    # -- history ---------------------------------------------------------------------------------

    def _remove(self, key: tuple[str, str]) -> None:
        lease = self._leases.pop(key, None)
        if lease is not None:
            self._size -= lease.size
            self._record(Action.DELETE, lease)

    def _record(self, action: Action, lease: _Lease) -> None:
        self._revision += 1
        change = Change(revision=self._revision, action=action, instance=lease.instance)
        self._history.append((change, lease.size))
        self._history_size += lease.size
        capacity = self._capacity
        while self._history and (
            len(self._history) > capacity.history or self._history_size > capacity.history_size
        ):
            self._history_size -= self._history.popleft()[1]
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # -- time ------------------------------------------------------------------------------------

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self._period
            await asyncio.sleep(self._period)
            late = loop.time() - due
            if late > STALL:
                # This process stood still. Renewals wait to be read; they must not come too late.
                for lease in self._leases.values():
                    lease.until += late
            self.expire()

    def expire(self) -> None:
        """End the leases whose time has passed; runs by itself."""
        now = self._clock()
        while self._expiry and self._expiry[0][0] <= now:
            at, key = heapq.heappop(self._expiry)
            lease = self._leases.get(key)
            if lease is None or lease.queued != at:
                continue  # of an earlier registration
            if lease.until <= now:
                self._remove(key)
            else:
                self._queue(key, lease)

    def _queue(self, key: tuple[str, str], lease: _Lease) -> None:
        lease.queued = lease.until
        if len(self._expiry) > 2 * len(self._leases) + 100:
            # Entries of nodes that have gone would stay until their time comes.
            self._expiry = [(each.queued, name) for name, each in self._leases.items()]
            heapq.heapify(self._expiry)
        else:
            heapq.heappush(self._expiry, (lease.until, key))
