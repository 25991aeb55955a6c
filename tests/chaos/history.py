"""Concurrent clients of one store over several ways to it, and what each was told."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Sequence

from micro_ray.errors import Conflict, MicroError, NotFound, Unavailable
from micro_ray.store import Delete, Put, Record, Store
from tests.chaos.linearizable import Call, Kind, Outcome

__all__ = ["Clients"]


class Clients:
    """``count`` tasks that read, write, compare and set, and delete under few keys. Half of the
    keys are pairs of records that are written by transactions and read by one query: a pair that
    differs was torn."""

    def __init__(
        self, ways: Sequence[Store], *, count: int, keys: int, seed: int, impatient: float = 0.0
    ) -> None:
        self._ways = ways
        self._count = count
        self._keys = [f"{'pair' if i % 2 else 'one'}-{i}" for i in range(keys)]
        self._random = random.Random(seed)
        self._impatient = impatient
        self._values = itertools.count()
        self._per_key = 0
        self.history: list[Call] = []
        self.refused = 0

    async def run(self, calls: int, *, per_key: int = 2000) -> None:
        """So many calls, over new keys after every ``per_key`` of one: a check of a key takes
        longer the more calls it has whose end is unknown."""
        self._per_key = per_key * len(self._keys)
        await asyncio.gather(*(self._client(i, calls // self._count) for i in range(self._count)))

    async def _client(self, number: int, calls: int) -> None:
        store = self._ways[number % len(self._ways)]
        for _ in range(calls):
            generation = len(self.history) // self._per_key
            key = f"{self._random.choice(self._keys)}-{generation}"
            await self._one(store, key)

    async def _one(self, store: Store, key: str) -> None:
        kind = self._random.choices(
            [Kind.READ, Kind.WRITE, Kind.SET, Kind.DELETE], [40, 20, 35, 5]
        )[0]
        expected: Record | None = None
        if kind is Kind.SET:
            expected = await self._read(store, key)
        if kind is Kind.READ:
            await self._read(store, key)
            return
        value = None if kind is Kind.DELETE else str(next(self._values))
        began = time.perf_counter_ns()
        outcome, version = await self._change(store, key, kind, value, expected)
        if outcome is None:
            self.refused += 1
            return
        self.history.append(
            Call(
                key=key,
                kind=kind,
                began=began,
                ended=time.perf_counter_ns(),
                outcome=outcome,
                value=value,
                expected=None if expected is None else expected.value.decode(),
                version=version,
            )
        )

    async def _change(
        self, store: Store, key: str, kind: Kind, value: str | None, expected: Record | None
    ) -> tuple[Outcome | None, int]:
        """How it ended (None: nothing was done), and the version given."""
        wanted = None
        if kind is Kind.SET:
            wanted = 0 if expected is None else expected.version
        rows: list[Put | Delete] = []
        for name in [key] if key.startswith("one") else [f"{key}/a", f"{key}/b"]:
            if value is None:
                rows.append(Delete(key=name))
            else:
                # The second of a pair is what the first is.
                compared = wanted if not rows else None
                rows.append(Put(key=name, value=value.encode(), expected=compared))
        call = asyncio.create_task(store.transact(rows))
        try:
            if self._impatient and self._random.random() < self._impatient:
                # A client that goes away: what becomes of its call is not known.
                async with asyncio.timeout(self._random.random() * 0.002):
                    versions = await call
            else:
                versions = await call
        except Conflict:
            return Outcome.REFUSED, 0
        except Unavailable:
            return None, 0
        except (MicroError, TimeoutError):
            return Outcome.UNKNOWN, 0
        return Outcome.DONE, versions[0]

    async def _read(self, store: Store, key: str) -> Record | None:
        """The record, tried until there is an answer; of a pair the first."""
        while True:
            began = time.perf_counter_ns()
            record: Record | None = None
            value: str | None = None
            try:
                if key.startswith("one"):
                    record = await store.read(key)
                    value = record.value.decode()
                else:
                    found = await store.query(prefix=f"{key}/")
                    values = sorted({row.value.decode() for row in found})
                    record = found[0] if found else None
                    whole = len(found) == 2 and len(values) == 1
                    value = values[0] if whole else f"torn: {values}" if found else None
            except NotFound:
                pass
            except MicroError:
                await asyncio.sleep(0.01)
                continue
            self.history.append(
                Call(
                    key=key,
                    kind=Kind.READ,
                    began=began,
                    ended=time.perf_counter_ns(),
                    value=value,
                    version=record.version if record is not None else 0,
                )
            )
            return record
