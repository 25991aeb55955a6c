"""The registry in memory: one process holds it, a new life of it starts empty (a new epoch) and is
filled by the nodes, which attach again when their stream breaks."""

from __future__ import annotations

import asyncio
import difflib
import heapq
import math
import os
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from micro_ray.errors import BadRequest, Conflict, NotFound, TooLarge
from micro_ray.registry import (
    DEFAULT_TTL,
    MAX_NAME,
    Action,
    Change,
    Instance,
    Registry,
    Service,
    Snapshot,
)

__all__ = ["MemoryRegistry"]

#: Changes kept for watchers that come back.
HISTORY = 10_000
MAX_NODES = 100_000
MAX_ENDPOINTS = 1_000
MAX_METADATA = 64
MAX_METADATA_BYTES = 16 * 1024
MAX_TTL = 3600.0

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


@dataclass(slots=True)
class _Lease:
    instance: Instance
    ttl: float
    until: float
    order: int
    #: When the sweep looks at this lease; a renewal moves ``until`` alone, so that the heap has one
    #: entry per lease however often it is renewed.
    queued: float = math.inf


class MemoryRegistry(Registry):
    """``clock`` gives seconds that only grow."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._epoch = os.urandom(8).hex()
        self._revision = 0
        self._leases: dict[tuple[str, str], _Lease] = {}
        self._history: deque[Change] = deque(maxlen=HISTORY)
        self._changed = asyncio.Event()
        self._expiry: list[tuple[float, tuple[str, str]]] = []
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False

    async def register(self, instance: Instance, *, ttl: float = DEFAULT_TTL) -> None:
        _validate(instance, ttl)
        key = (instance.namespace, instance.node.id)
        lease = self._leases.get(key)
        if lease is None and len(self._leases) >= MAX_NODES:
            raise TooLarge("registry", f"{MAX_NODES} nodes are registered; no more are taken")
        until = self._clock() + ttl
        if lease is not None and lease.instance == instance:
            lease.ttl, lease.until = ttl, until
        else:
            lease = self._leases[key] = _Lease(instance, ttl, until, self._revision + 1)
            self._record(Action.PUT, instance)
        if until < lease.queued:
            self._queue(key, lease)
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep())

    async def renew(self, namespace: str, node_ids: Sequence[str]) -> list[str]:
        unknown = []
        for node_id in node_ids:
            lease = self._leases.get((namespace, node_id))
            if lease is None:
                unknown.append(node_id)
            else:
                lease.until = self._clock() + lease.ttl
        return unknown

    async def deregister(self, namespace: str, node_id: str) -> None:
        lease = self._leases.pop((namespace, node_id), None)
        if lease is not None:
            self._record(Action.DELETE, lease.instance)

    async def get(self, namespace: str, service: str) -> list[Service]:
        wanted = service.lower()
        found = [
            lease
            for (space, _), lease in self._leases.items()
            if space == namespace and lease.instance.service.lower() == wanted
        ]
        if not found:
            names = {s.name for s in await self.list(namespace)}
            near = difflib.get_close_matches(service, names, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise NotFound("registry", f"no service {service!r} in {namespace}{hint}")
        return _services(sorted(found, key=lambda lease: -lease.order))

    async def list(self, namespace: str) -> list[Service]:
        leases = [
            lease
            for (space, _), lease in self._leases.items()
            if namespace == "*" or space == namespace
        ]
        return sorted(_services(leases), key=lambda s: (s.namespace, s.name, s.version))

    async def snapshot(self) -> Snapshot:
        return Snapshot(
            epoch=self._epoch,
            revision=self._revision,
            instances=tuple(lease.instance for lease in self._leases.values()),
        )

    async def watch(self, *, epoch: str, revision: int) -> AsyncIterator[Change]:
        if epoch != self._epoch:
            raise Conflict("registry", "another life of the registry; take a new snapshot")
        while not self._closed:
            if revision < self._revision:
                oldest = self._history[0].revision if self._history else self._revision + 1
                if revision + 1 < oldest:
                    raise Conflict("registry", f"revision {revision} is no longer kept")
                for change in list(self._history)[revision - self._revision :]:
                    revision = change.revision
                    yield change
                continue
            await self._changed.wait()

    async def close(self) -> None:
        self._closed = True
        self._changed.set()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)

    def _record(self, action: Action, instance: Instance) -> None:
        self._revision += 1
        self._history.append(Change(revision=self._revision, action=action, instance=instance))
        self._changed.set()
        if not self._closed:
            self._changed = asyncio.Event()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self.expire()

    def expire(self) -> None:
        """End the leases whose time has passed; runs twice a second."""
        now = self._clock()
        while self._expiry and self._expiry[0][0] <= now:
            at, key = heapq.heappop(self._expiry)
            lease = self._leases.get(key)
            if lease is None or lease.queued != at:
                continue  # of an earlier registration
            if lease.until <= now:
                del self._leases[key]
                self._record(Action.DELETE, lease.instance)
            else:
                self._queue(key, lease)

    def _queue(self, key: tuple[str, str], lease: _Lease) -> None:
        lease.queued = lease.until
        heapq.heappush(self._expiry, (lease.until, key))


def _services(leases: Sequence[_Lease]) -> list[Service]:
    """Instances grouped by version, in the order given; endpoints are the newest node's."""
    groups: dict[tuple[str, str, str], Service] = {}
    newest: dict[tuple[str, str, str], int] = {}
    for lease in leases:
        instance = lease.instance
        key = (instance.namespace, instance.service, instance.version)
        service = groups.get(key) or Service(
            name=instance.service, version=instance.version, namespace=instance.namespace
        )
        if lease.order > newest.get(key, -1):
            newest[key] = lease.order
            service = replace(service, endpoints=instance.endpoints, metadata=instance.metadata)
        groups[key] = replace(service, nodes=(*service.nodes, instance.node))
    return list(groups.values())


def _validate(instance: Instance, ttl: float) -> None:
    if not 1.0 <= ttl <= MAX_TTL:
        raise BadRequest("registry", f"ttl {ttl:g} s is not within 1 and {MAX_TTL:g}")
    for what, name in (
        ("service", instance.service),
        ("version", instance.version),
        ("namespace", instance.namespace),
        ("node.id", instance.node.id),
    ):
        if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
            raise BadRequest(
                "registry",
                f"{what} {name[:80]!r}: letters, digits, '.', '_' and '-', at most {MAX_NAME}",
            )
    if not instance.node.addresses:
        raise BadRequest("registry", "node.addresses is empty: nobody could call it")
    for address in instance.node.addresses:
        if not address.startswith(("unix:/", "tcp:")) or len(address) > 300:
            raise BadRequest("registry", f"node.addresses: {address[:80]!r} is no wire address")
    if len(instance.endpoints) > MAX_ENDPOINTS:
        raise TooLarge("registry", f"over {MAX_ENDPOINTS} endpoints in one service")
    if not 0 <= instance.node.weight <= 1_000_000:
        raise BadRequest("registry", f"node.weight {instance.node.weight} is not in 0..1000000")
    for metadata in (instance.metadata, instance.node.metadata):
        size = sum(len(k) + len(v) for k, v in metadata.items())
        if len(metadata) > MAX_METADATA or size > MAX_METADATA_BYTES:
            raise TooLarge(
                "registry", f"metadata over {MAX_METADATA} entries or {MAX_METADATA_BYTES} bytes"
            )
