"""Writers whose writes a watch is held against: each has keys of its own, makes one write after the
other, keeps what it was told, and leaves its keys for new ones when it does not know what became of
a write."""

from __future__ import annotations

import abc
import asyncio
import random

from micro_ray.config import Config
from micro_ray.errors import MicroError, Unavailable
from micro_ray.registry import Registry
from micro_ray.store import Delete, Put, Store
from tests.chaos.watcher import SERIAL
from tests.chaos.watches import ANY, Write
from tests.fixtures.registries import instance

__all__ = ["ConfigWriter", "NodeWriter", "StoreWriter", "Writer"]

#: Seconds between the writes of one.
PACE = 0.01


class Writer(abc.ABC):
    """``writes`` are those that were done and those that may have been."""

    def __init__(self, name: str, seed: int) -> None:
        self.name = name
        self.writes: list[Write] = []
        self.chance = random.Random(seed)
        self._generation = self._number = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Write until it is time to stop."""
        while not stop.is_set():
            await self.once()
            await asyncio.sleep(PACE)

    @abc.abstractmethod
    async def once(self) -> None:
        """One write, of which all is noted."""

    async def settle(self) -> dict[str, str]:
        """What is there now of this writer's."""
        return {}

    def keys(self, *letters: str) -> list[str]:
        """Names that were not left so far."""
        return [f"{self.name}-{self._generation}-{letter}" for letter in letters]

    def value(self) -> str:
        """One that was not before."""
        self._number += 1
        return f"{self.name}-{self._number}"

    def lost(self, items: dict[str, str | None]) -> None:
        """What became of this is not known."""
        self.writes.append(Write(items=items, known=False))
        self._generation += 1


class StoreWriter(Writer):
    """Writes, deletes, and transactions of two keys. A watch does not tell values: what is seen is
    the version that the writer was given."""

    def __init__(self, store: Store, name: str, seed: int) -> None:
        super().__init__(name, seed)
        self._store = store

    async def once(self) -> None:
        kind = self.chance.randrange(4)
        keys = self.keys("a", "b") if kind == 0 else self.keys(self.chance.choice("ab"))
        if kind == 1:
            items: dict[str, str | None] = dict.fromkeys(keys)
            rows: list[Put | Delete] = [Delete(key=key) for key in keys]
        else:
            items = dict.fromkeys(keys, ANY)
            rows = [Put(key=key, value=self.value().encode()) for key in keys]
        try:
            versions = await self._store.transact(rows)
        except Unavailable:
            return
        except MicroError:
            self.lost(items)
            return
        told = dict(zip(keys, versions, strict=True)) if kind != 1 else {}
        done = {key: str(told[key]) if key in told else None for key in keys}
        self.writes.append(Write(items=done, revisions=told))


class ConfigWriter(Writer):
    """Sets, deletes, and merges of two paths."""

    def __init__(self, config: Config, name: str, seed: int) -> None:
        super().__init__(name, seed)
        self._config = config
        self._there: set[str] = set()

    async def once(self) -> None:
        kind = self.chance.randrange(4)
        paths = self.keys("a", "b") if kind == 0 else self.keys(self.chance.choice("ab"))
        items: dict[str, str | None] = {
            path: None if kind == 1 else self.value() for path in paths
        }  # fmt: skip
        try:
            if kind == 0:
                version = await self._config.merge("", items)
            elif kind == 1:
                version = await self._config.delete(paths[0])
            else:
                version = await self._config.set(paths[0], items[paths[0]])
        except Unavailable:
            return
        except MicroError as error:
            if error.retry_after is None:  # else others came first, and nothing was done
                self.lost(items)
            return
        # The version of a delete of nothing is another's.
        effect = kind != 1 or paths[0] in self._there
        self._there = self._there - set(paths) if kind == 1 else self._there | set(paths)
        told = dict.fromkeys(paths, version) if effect else {}
        self.writes.append(Write(items=items, revisions=told))


class NodeWriter(Writer):
    """A node that registers, each time as another, and leaves."""

    def __init__(self, registry: Registry, name: str, seed: int) -> None:
        super().__init__(name, seed)
        self._registry = registry
        self._there = False

    async def once(self) -> None:
        (node,) = self.keys("n")
        value = None if self.chance.randrange(4) == 0 else self.value()
        try:
            await self._tell(node, value)
        except Unavailable:
            return
        except MicroError:
            self.lost({node: value})
            self._there = False
            await self._leave(node)
            return
        self._there = value is not None

    async def _tell(self, node: str, value: str | None) -> None:
        if value is None:
            await self._registry.deregister("micro", node)
        else:
            await self._registry.register(instance("comes", node, metadata={SERIAL: value}))
        self.writes.append(Write(items={node: value}))

    async def _leave(self, node: str) -> None:
        """Whatever became of the last write: this node is not to stay."""
        while True:
            try:
                await self._tell(node, None)
                return
            except Unavailable:
                pass
            except MicroError:
                self.writes.append(Write(items={node: None}, known=False))
            await asyncio.sleep(PACE)

    async def settle(self) -> dict[str, str]:
        """A registry that has forgotten is told again."""
        if not self._there:
            return {}
        (node,), value = self.keys("n"), self.value()
        await self._tell(node, value)
        return {node: value}
