"""Stores and configs as sets of registers, for clients that write histories.

A key that begins with ``pair`` is two records (or two members of an object) that are written and
removed together and read together: what differs was torn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from micro_ray.config import Config
from micro_ray.errors import NotFound
from micro_ray.store import Delete, Operation, Put, Store

__all__ = ["ConfigRegisters", "Registers", "StoreRegisters"]


class Registers(Protocol):
    """Each verb raises what the platform raises."""

    async def read(self, key: str) -> tuple[str | None, int]:
        """What is there (None: nothing) and its version."""
        ...

    async def write(self, key: str, value: str, expected: int | None) -> int:
        """Write, over that version only unless ``expected`` is None; the version given."""
        ...

    async def delete(self, key: str) -> None: ...


def whole(values: Sequence[str]) -> str | None:
    """What a pair holds; values that cannot be are told as one that nobody wrote."""
    if not values:
        return None
    same = len(values) == 2 and len(set(values)) == 1
    return values[0] if same else f"torn: {sorted(values)}"


class StoreRegisters:
    """Pairs are written by one transaction and read by one query."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @staticmethod
    def _names(key: str) -> list[str]:
        return [f"{key}/a", f"{key}/b"] if key.startswith("pair") else [key]

    async def read(self, key: str) -> tuple[str | None, int]:
        if key.startswith("pair"):
            found = await self._store.query(prefix=f"{key}/")
            return whole([row.value.decode() for row in found]), found[0].version if found else 0
        try:
            record = await self._store.read(key)
        except NotFound:
            return None, 0
        return record.value.decode(), record.version

    async def write(self, key: str, value: str, expected: int | None) -> int:
        names = self._names(key)
        # The second of a pair is what the first is.
        rows: list[Operation] = [
            Put(key=name, value=value.encode(), expected=expected if name == names[0] else None)
            for name in names
        ]
        return (await self._store.transact(rows))[0]

    async def delete(self, key: str) -> None:
        await self._store.transact([Delete(key=name) for name in self._names(key)])


class ConfigRegisters:
    """Pairs are objects that are merged and read whole."""

    def __init__(self, config: Config) -> None:
        self._config = config

    async def read(self, key: str) -> tuple[str | None, int]:
        try:
            found = await self._config.read(key)
        except NotFound:
            return None, 0
        data: Any = found.data
        if key.startswith("pair"):
            data = whole([str(item) for item in data.values()])
        return data, found.version

    async def write(self, key: str, value: str, expected: int | None) -> int:
        if key.startswith("pair"):
            return await self._config.merge(key, {"a": value, "b": value}, expected=expected)
        return await self._config.set(key, value, expected=expected)

    async def delete(self, key: str) -> None:
        await self._config.delete(key)
