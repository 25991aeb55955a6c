"""The checker of linearizability accepts what is right and finds what is known to be wrong:
histories written by hand, and those of stores that are wrong on purpose."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from micro_ray.errors import Conflict
from micro_ray.store import Check, Delete, Operation, Record
from micro_ray.store.memory import MemoryStore
from tests.chaos.history import Clients
from tests.chaos.linearizable import Call, Kind, Outcome, violations
from tests.chaos.registers import StoreRegisters, whole


def call(kind: str, began: int, ended: int, value: str | None = None, **more: object) -> Call:
    return Call(key="k", kind=Kind(kind), began=began, ended=ended, value=value, **more)  # type: ignore[arg-type]


def unknown(kind: str, began: int, value: str | None = None, **more: object) -> Call:
    return call(kind, began, began, value, outcome=Outcome.UNKNOWN, **more)


REFUSED = Outcome.REFUSED
SET = "compare-and-set"
RIGHT: dict[str, Sequence[Call]] = {
    "nothing": [],
    "one after the other": [call("write", 1, 2, "a"), call("read", 3, 4, "a")],
    "a read beside a write sees the old": [call("write", 1, 9, "a"), call("read", 2, 3)],
    "or the new": [call("write", 1, 9, "a"), call("read", 2, 3, "a")],
    "writes beside each other, either last": [
        call("write", 1, 9, "a"), call("write", 1, 9, "b"), call("read", 10, 11, "a"),
    ],
    "a set over what is there": [
        call("write", 1, 2, "a"), call(SET, 3, 4, "b", expected="a"), call("read", 5, 6, "b"),
    ],
    "a refused set beside the write that is why": [
        call("write", 1, 9, "a"), call(SET, 2, 8, "b", expected=None, outcome=REFUSED),
    ],
    "an unknown write that was done late": [
        unknown("write", 1, "a"), call("read", 2, 3), call("read", 4, 5, "a"),
    ],
    "an unknown write that was never done": [unknown("write", 1, "a"), call("read", 8, 9)],
    "an unknown set that explains a refusal": [
        call("write", 1, 2, "a"), unknown(SET, 3, "b", expected="a"),
        call(SET, 4, 5, "c", expected="a", outcome=REFUSED), call("read", 6, 7, "b"),
    ],
    "a delete": [call("write", 1, 2, "a"), call("delete", 3, 4), call("read", 5, 6)],
    "an unknown delete that was done late": [
        call("write", 1, 2, "a"), unknown("delete", 3), call("read", 4, 5, "a"),
        call("read", 6, 7), call("read", 8, 9),
    ],
    "a set over nothing after a delete": [
        call("write", 1, 2, "a"), call("delete", 3, 4), call(SET, 5, 6, "b"),
        call("read", 7, 8, "b"),
    ],
    "a whole pair": [call("write", 1, 2, "a"), call("read", 3, 4, whole(["a", "a"]))],
    "versions that grow": [
        call("write", 1, 2, "a", version=1), call("write", 3, 4, "b", version=2),
        call("read", 5, 6, "b", version=2),
    ],
}  # fmt: skip
WRONG: dict[str, Sequence[Call]] = {
    "a stale read": [
        call("write", 1, 2, "a"), call("write", 3, 4, "b"), call("read", 5, 6, "a"),
    ],
    "a lost write": [call("write", 1, 2, "a"), call("read", 3, 4)],
    "a read of what nobody wrote": [call("read", 1, 2, "a")],
    "a read from the future": [call("read", 1, 2, "a"), call("write", 3, 4, "a")],
    "readers that disagree on the order": [
        call("write", 1, 20, "a"), call("write", 1, 20, "b"),
        call("read", 2, 3, "a"), call("read", 4, 5, "b"), call("read", 6, 7, "a"),
    ],
    "new, then old, within the write": [
        call("write", 1, 2, "a"), call("write", 3, 20, "b"),
        call("read", 4, 5, "b"), call("read", 6, 7, "a"),
    ],
    "two sets over the same": [
        call("write", 1, 2, "a"), call(SET, 3, 9, "b", expected="a"),
        call(SET, 3, 9, "c", expected="a"),
    ],
    "a refused set that should not be": [
        call("write", 1, 2, "a"), call(SET, 3, 4, "b", expected="a", outcome=REFUSED),
    ],
    "an unknown set done over another value": [
        call("write", 1, 2, "a"), unknown(SET, 3, "b", expected="x"), call("read", 4, 5, "b"),
    ],
    "an unknown write done twice": [
        unknown("write", 1, "a"), call("read", 2, 3, "a"), call("write", 4, 5, "b"),
        call("read", 6, 7, "a"),
    ],
    "a deleted value that comes back": [
        call("write", 1, 2, "a"), call("delete", 3, 4), call("read", 5, 6, "a"),
    ],
    "a refused write that was done": [
        call(SET, 1, 2, "a", expected="x", outcome=REFUSED), call("read", 3, 4, "a"),
    ],
    "versions that fall": [
        call("write", 1, 2, "a", version=2), call("write", 3, 4, "b", version=1),
    ],
    "a value under two versions": [
        call("write", 1, 2, "a", version=2), call("read", 3, 4, "a", version=3),
    ],
    "a lost update": [
        call("write", 1, 2, "a"), call(SET, 3, 4, "b", expected="a"),
        call(SET, 5, 6, "c", expected="a"),
    ],
    "a read that is older than one before it": [
        unknown("write", 1, "a"), call("read", 2, 3, "a"), call("read", 4, 5),
    ],
    "a dirty read of a set that was refused": [
        call("write", 1, 2, "a"), call(SET, 3, 9, "b", expected="x", outcome=REFUSED),
        call("read", 4, 5, "b"),
    ],
    "half a transaction": [
        call("write", 1, 2, "a"), call("write", 3, 9, "b"),
        call("read", 4, 5, whole(["a", "b"])), call("read", 10, 11, "b"),
    ],
    "half of a pair": [call("write", 1, 2, "a"), call("read", 3, 4, whole(["a"]))],
    "a delete undone by an older write": [
        call("write", 1, 2, "a", version=1), call("write", 3, 4, "b", version=2),
        call("delete", 5, 6), call("read", 7, 8, "a", version=1),
    ],
    "an unknown delete done twice": [
        call("write", 1, 2, "a"), unknown("delete", 3), call("read", 4, 5),
        call("write", 6, 7, "b"), call("read", 8, 9),
    ],
    "an unknown write that began later": [call("read", 1, 2, "a"), unknown("write", 3, "a")],
    "a set that was refused for what was never there": [
        unknown(SET, 1, "a", expected="x"), call(SET, 2, 3, "b", outcome=REFUSED),
    ],
}  # fmt: skip


@pytest.mark.parametrize("history", RIGHT.values(), ids=RIGHT)
def test_the_checker_accepts(history: Sequence[Call]) -> None:
    for _ in range(3):
        assert violations(random.sample(history, len(history))) == []


@pytest.mark.parametrize("history", WRONG.values(), ids=WRONG)
def test_the_checker_refuses(history: Sequence[Call]) -> None:
    assert len(violations(history)) == 1
    elsewhere = [call("write", 1, 2, "x"), call("read", 3, 4, "x")]
    apart = [Call(key="other", kind=c.kind, began=c.began, ended=c.ended, value=c.value)
             for c in elsewhere]  # fmt: skip
    assert len(violations([*apart, *history])) == 1


class Yielding(MemoryStore):
    """Right; others come in before each verb."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def now_and_then(self, every: int) -> bool:
        self.count += 1
        return self.count % every == 0

    async def transact(self, operations: Sequence[Operation], **place: str) -> list[int]:
        await asyncio.sleep(0)
        return await super().transact(operations, **place)


class Forgetful(Yielding):
    """Now and then a read answers with the first that the key ever had."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, Record] = {}

    async def read(self, key: str, **place: str) -> Record:
        record = await super().read(key, **place)
        self._first.setdefault(key, record)
        return self._first[key] if self.now_and_then(50) else record


class Halving(Yielding):
    """A transaction is done row by row."""

    async def transact(self, operations: Sequence[Operation], **place: str) -> list[int]:
        return [(await super(Halving, self).transact([row], **place))[0] for row in operations]


class Careless(Yielding):
    """Now and then an update is made over whatever is there."""

    async def transact(self, operations: Sequence[Operation], **place: str) -> list[int]:
        if self.now_and_then(20):
            operations = [
                row if isinstance(row, Check) else replace(row, expected=None) for row in operations
            ]
        return await super().transact(operations, **place)


class Undead(Yielding):
    """Now and then a delete is not done."""

    async def transact(self, operations: Sequence[Operation], **place: str) -> list[int]:
        if isinstance(operations[0], Delete) and self.now_and_then(10):
            return [0] * len(operations)
        return await super().transact(operations, **place)


class Dirty(Yielding):
    """Now and then what is refused is written all the same."""

    async def transact(self, operations: Sequence[Operation], **place: str) -> list[int]:
        try:
            return await super().transact(operations, **place)
        except Conflict:
            if self.now_and_then(5):
                rows = [replace(row, expected=None) for row in operations]  # type: ignore[type-var]
                await super().transact(rows, **place)
            raise


class Hasty(Yielding):
    """Now and then a write is acknowledged and done a little later."""

    def __init__(self) -> None:
        super().__init__()
        self._later: set[asyncio.Task[list[int]]] = set()

    async def transact(self, operations: Sequence[Operation], **place: str) -> list[int]:
        if operations[0].expected is None and self.now_and_then(10):
            self._later.add(asyncio.create_task(self._late(operations, **place)))
            await asyncio.sleep(0)
            return [0] * len(operations)
        return await super().transact(operations, **place)

    async def _late(self, operations: Sequence[Operation], **place: str) -> list[int]:
        for _ in range(5):
            await asyncio.sleep(0)
        return await super().transact(operations, **place)


async def histories(store: MemoryStore) -> list[Call]:
    clients = Clients([StoreRegisters(store)], count=4, keys=4, seed=1)
    await clients.run(2000)
    return clients.history


async def test_the_checker_accepts_a_store_that_is_right() -> None:
    assert violations(await histories(Yielding())) == []


@pytest.mark.parametrize("wrong", [Forgetful, Halving, Careless, Undead, Dirty, Hasty])
async def test_the_checker_finds_a_store_that_is_wrong(wrong: type[Yielding]) -> None:
    assert violations(await histories(wrong()))
