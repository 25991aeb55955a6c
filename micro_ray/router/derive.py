"""The router: follows a registry, derives routes, hands out a full table and then deltas.

When the registry is out of reach the last good table goes on being served, marked stale, and
nothing is taken from it. A registry that starts anew (another epoch) is empty at first, and one
that was out of reach for long may have let those end that could not renew: routes it does not
confirm within ``grace`` seconds go, not before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

from micro_ray.errors import MicroError
from micro_ray.registry import Action, Change, Instance, Node, Registry, Snapshot
from micro_ray.router import Delta, Entry, Route
from micro_ray.router.keep import Keeper
from micro_ray.router.table import Table

__all__ = ["Router"]

log = logging.getLogger(__name__)

#: Deltas kept for one watcher; one that is slower gets the full table instead.
QUEUE = 1_000
#: Seconds that a service without nodes stays known, so that callers hear "unavailable" and wait
#: for a moment rather than "not found" while its only replica is replaced.
LINGER = 10.0
#: Seconds between attempts to reach the registry: first, and at most.
BACKOFF = (0.02, 0.5)
#: Seconds between looks for what has been in doubt, or empty, for too long.
PRUNE = 0.5

#: A node: its namespace and id. A group: namespace, service and version.
Key = tuple[str, str]
Group = tuple[str, str, str]


class _Watcher:
    def __init__(self) -> None:
        self.deltas: deque[Delta] = deque()
        self.overrun = True  # the first thing a watcher gets is the full table
        self.wake = asyncio.Event()

    def push(self, delta: Delta) -> None:
        if len(self.deltas) >= QUEUE:
            self.deltas.clear()
            self.overrun = True
        if not self.overrun:
            self.deltas.append(delta)
        self.wake.set()


class Router:
    """``async with`` starts following. ``keep`` is the file of the last good table; ``clock`` gives
    seconds that only grow. ``followed`` is set once a registry has answered."""

    def __init__(
        self,
        registry: Registry,
        *,
        keep: Path | None = None,
        grace: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.table = Table()
        self._registry = registry
        self._keeper = Keeper(keep) if keep is not None else None
        self._grace = grace
        self._clock = clock
        self._epoch = os.urandom(8).hex()
        self._revision = 0
        self._registry_epoch = ""
        #: Since when the registry is out of reach, if it is.
        self._lost: float | None = None
        self._instances: dict[Key, Instance] = {}
        #: How many nodes each group has, and until when one that has none stays known.
        self._nodes: Counter[Group] = Counter()
        self._empty: dict[Group, float] = {}
        #: Nodes that this life of the registry has not confirmed, and until when they may.
        self._doubtful: dict[Key, float] = {}
        self._watchers: set[_Watcher] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self.followed = asyncio.Event()

    async def __aenter__(self) -> Router:
        kept = self._keeper.load() if self._keeper is not None else None
        if kept is not None:
            self._take_over(kept)
        else:
            self._emit(Delta(epoch=self._epoch, revision=0, full=True, stale=True))
        self._tasks = [
            asyncio.create_task(self._follow()),
            asyncio.create_task(self._prune()),
        ]
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._keeper is not None:
            await self._keeper.close()

    async def watch(self) -> AsyncIterator[Delta]:
        """The full table, then every change in order, for ever. A watcher that falls behind gets
        the full table again."""
        watcher = _Watcher()
        self._watchers.add(watcher)
        try:
            while True:
                if watcher.overrun:
                    watcher.overrun = False
                    yield self.table.full()
                elif watcher.deltas:
                    yield watcher.deltas.popleft()
                else:
                    watcher.wake.clear()
                    await watcher.wake.wait()
        finally:
            self._watchers.discard(watcher)

    # -- following -------------------------------------------------------------------------------

    async def _follow(self) -> None:
        pause = BACKOFF[0]
        while True:
            try:
                snapshot = await self._registry.snapshot()
                self._rebuild(snapshot)
                self.followed.set()
                pause = BACKOFF[0]
                watch = self._registry.watch(epoch=snapshot.epoch, revision=snapshot.revision)
                async with contextlib.aclosing(watch) as changes:  # type: ignore[type-var]
                    async for change in changes:
                        self._change(change)
            except MicroError as error:
                log.info("the registry is out of reach: %s", error)
            except Exception:
                log.exception("the registry cannot be followed")
            if self._lost is None:
                self._lost = self._clock()
            if not self.table.stale:
                self._emit(self._delta(stale=True))
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, BACKOFF[1])

    def _take_over(self, kept: Delta) -> None:
        """Start from the kept table: all of it is in doubt once a registry has answered."""
        endpoints = {(e.namespace, e.service, e.version): e for e in kept.entries}
        for route in kept.routes:
            entry = endpoints.get((route.namespace, route.service, route.version))
            self._put((route.namespace, route.id), _instance(route, entry))
        until = self._clock() + LINGER
        self._empty = {group: until for group in endpoints if not self._nodes[group]}
        self._emit(
            Delta(
                epoch=self._epoch,
                revision=0,
                full=True,
                routes=kept.routes,
                entries=kept.entries,
                stale=True,
                at=kept.at,
            )
        )

    def _rebuild(self, snapshot: Snapshot) -> None:
        """Bring the table to a snapshot, as one delta. Who is missing in a new life is in doubt."""
        lost, self._lost = self._lost, None
        # Who lives renews at least twice in this time, if it can.
        absent = lost is not None and self._clock() - lost > self._grace / 2
        new_life = absent or snapshot.epoch != self._registry_epoch
        self._registry_epoch = snapshot.epoch
        have = {(i.namespace, i.node.id): i for i in snapshot.instances}
        taken = {place for i in snapshot.instances for place in _places(i)}
        until = self._clock() + self._grace
        gone = []
        for key, instance in list(self._instances.items()):
            if key in have:
                continue
            if not (new_life or key in self._doubtful) or not taken.isdisjoint(_places(instance)):
                gone.append(self._drop(key))
            elif new_life:
                self._doubtful[key] = until
        fresh = [(key, i) for key, i in have.items() if self._instances.get(key) != i]
        for key, instance in fresh:
            self._put(key, instance)
        for key in have:
            self._doubtful.pop(key, None)
        self._emit(self._delta(put=[i for _, i in fresh], gone=gone))

    def _change(self, change: Change) -> None:
        instance = change.instance
        key = (instance.namespace, instance.node.id)
        self._doubtful.pop(key, None)
        if change.action is Action.PUT:
            # A node that took over another's address took its place.
            places = set(_places(instance))
            old = [k for k in self._doubtful if not places.isdisjoint(_places(self._instances[k]))]
            gone = [self._drop(each) for each in old]
            self._put(key, instance)
            self._emit(self._delta(put=[instance], gone=gone))
        elif key in self._instances:
            self._emit(self._delta(gone=[self._drop(key)]))

    # -- what there is ---------------------------------------------------------------------------

    def _put(self, key: Key, instance: Instance) -> None:
        if key in self._instances:
            self._drop(key)
        self._instances[key] = instance
        group = _group(instance)
        self._nodes[group] += 1
        self._empty.pop(group, None)

    def _drop(self, key: Key) -> Instance:
        instance = self._instances.pop(key)
        self._doubtful.pop(key, None)
        group = _group(instance)
        self._nodes[group] -= 1
        if not self._nodes[group]:
            del self._nodes[group]
            self._empty[group] = self._clock() + LINGER
        return instance

    async def _prune(self) -> None:
        while True:
            await asyncio.sleep(PRUNE)
            self.prune()

    def prune(self) -> None:
        """Take out what has been in doubt, or known without a node, for too long; runs twice a
        second. Nothing goes while the registry is out of reach: it could confirm nothing."""
        if self.table.stale:
            return
        now = self._clock()
        late = [key for key, until in self._doubtful.items() if until <= now]
        gone = [self._drop(key) for key in late]
        empty = tuple(group for group, until in self._empty.items() if until <= now)
        for group in empty:
            del self._empty[group]
        if gone or empty:
            self._emit(self._delta(gone=gone, gone_entries=empty))

    # -- deltas ----------------------------------------------------------------------------------

    def _delta(
        self,
        *,
        put: Sequence[Instance] = (),
        gone: Sequence[Instance] = (),
        gone_entries: tuple[Group, ...] = (),
        stale: bool = False,
    ) -> Delta:
        self._revision += 1
        return Delta(
            epoch=self._epoch,
            revision=self._revision,
            routes=tuple(_route(i) for i in put),
            gone=tuple((i.namespace, i.node.id) for i in gone),
            entries=tuple({_group(i): _entry(i) for i in put}.values()),
            gone_entries=gone_entries,
            stale=stale,
            at=time.time(),
        )

    def _emit(self, delta: Delta) -> None:
        self.table.apply(delta)
        for watcher in self._watchers:
            watcher.push(delta)
        if self._keeper is not None and not delta.stale:
            self._keeper.keep(self.table.full)


def _group(instance: Instance) -> Group:
    return (instance.namespace, instance.service, instance.version)


def _places(instance: Instance) -> Iterator[tuple[str, str]]:
    """Where a node listens: an address means the same on its own machine only."""
    return ((instance.node.host, address) for address in instance.node.addresses)


def _entry(instance: Instance) -> Entry:
    return Entry(
        namespace=instance.namespace,
        service=instance.service,
        version=instance.version,
        endpoints=instance.endpoints,
        metadata=instance.metadata,
    )


def _route(instance: Instance) -> Route:
    node = instance.node
    return Route(
        id=node.id,
        namespace=instance.namespace,
        service=instance.service,
        version=instance.version,
        addresses=node.addresses,
        host=node.host,
        protocol=node.protocol,
        weight=node.weight,
        metadata=node.metadata,
    )


def _instance(route: Route, entry: Entry | None) -> Instance:
    return Instance(
        service=route.service,
        version=route.version,
        namespace=route.namespace,
        endpoints=entry.endpoints if entry is not None else (),
        metadata=entry.metadata if entry is not None else {},
        node=Node(
            id=route.id,
            addresses=route.addresses,
            host=route.host,
            weight=route.weight,
            protocol=route.protocol,
            metadata=route.metadata,
        ),
    )
