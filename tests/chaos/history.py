"""Concurrent clients of registers over several ways to them, and what each was told."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence

from micro_ray.errors import Conflict, MicroError, Unavailable
from tests.chaos.linearizable import Call, Kind, Outcome
from tests.chaos.registers import Registers

__all__ = ["Clients"]


class Clients:
    """``count`` tasks that read, write, compare and set, and delete under few keys, half of which
    are pairs. ``impatient`` is the share of writers that go away before their answer."""

    def __init__(
        self, ways: Sequence[Registers], *, count: int, keys: int, seed: int, impatient: float = 0.0
    ) -> None:
        self._ways = ways
        self._count = count
        self._keys = [f"{'pair' if i % 2 else 'one'}-{i}" for i in range(keys)]
        self._random = random.Random(seed)
        self._impatient = impatient
        self._values = itertools.count()
        self._per_key = 0
        self._calls = 0
        self.history: list[Call] = []
        #: Calls that were surely not done.
        self.refused = 0

    async def run(
        self, calls: int, *, per_key: int = 2000, more: Callable[[], bool] = lambda: False
    ) -> None:
        """So many calls that were done or may be, and on as long as ``more``, over new keys after
        every ``per_key`` of one: a check of a key takes longer the more calls it has whose end is
        unknown."""
        self._per_key = per_key * len(self._keys)
        self._calls += calls
        await asyncio.gather(
            *(self._client(self._ways[i % len(self._ways)], more) for i in range(self._count))
        )

    async def _client(self, registers: Registers, more: Callable[[], bool]) -> None:
        while len(self.history) < self._calls or more():
            generation = len(self.history) // self._per_key
            await self._one(registers, f"{self._random.choice(self._keys)}-{generation}")

    async def _one(self, registers: Registers, key: str) -> None:
        kind = self._random.choices(
            [Kind.READ, Kind.WRITE, Kind.SET, Kind.DELETE], [40, 20, 35, 5]
        )[0]
        expected: tuple[str | None, int] = (None, 0)
        if kind in (Kind.READ, Kind.SET):
            expected = await self._read(registers, key)
        if kind is Kind.READ:
            return
        value = None if kind is Kind.DELETE else str(next(self._values))
        began = time.perf_counter_ns()
        outcome, version = await self._change(registers, key, kind, value, expected[1])
        if outcome is None:
            self.refused += 1
            await asyncio.sleep(0.01)  # nobody is there just now
            return
        self.history.append(
            Call(
                key=key,
                kind=kind,
                began=began,
                ended=time.perf_counter_ns(),
                outcome=outcome,
                value=value,
                expected=expected[0],
                version=version,
            )
        )

    async def _change(
        self, registers: Registers, key: str, kind: Kind, value: str | None, expected: int
    ) -> tuple[Outcome | None, int]:
        """How it ended (None: nothing was done), and the version given."""
        patience = None
        if self._impatient and self._random.random() < self._impatient:
            # A client that goes away: what becomes of its call is not known.
            patience = self._random.random() * 0.002
        try:
            async with asyncio.timeout(patience):
                if value is None:
                    await registers.delete(key)
                    return Outcome.DONE, 0
                wanted = expected if kind is Kind.SET else None
                return Outcome.DONE, await registers.write(key, value, wanted)
        except Conflict as error:
            # One that may be tried again says that others came first, not that the version differs.
            return (Outcome.REFUSED if error.retry_after is None else None), 0
        except Unavailable:
            return None, 0
        except (MicroError, TimeoutError):
            return Outcome.UNKNOWN, 0

    async def _read(self, registers: Registers, key: str) -> tuple[str | None, int]:
        """What is there, tried until there is an answer."""
        while True:
            began = time.perf_counter_ns()
            try:
                value, version = await registers.read(key)
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
                    version=version,
                )
            )
            return value, version
