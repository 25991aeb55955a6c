"""Histories of the store are linearizable while connections, clients and servers die; and the
checker that says so finds those that are not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from micro_ray.store import Record, Store
from micro_ray.store.memory import MemoryStore
from micro_ray.store.postgres import PostgresStore
from micro_ray.store.sqlite import SqliteStore
from tests.chaos.history import Clients
from tests.chaos.linearizable import Call, Kind, Outcome, violations
from tests.fixtures.postgres import Postgres, schema
from tests.fixtures.proxy import Proxy, proxy

#: Calls per store, and what repeats a run; scripts/linearizable asks for more.
CALLS = int(os.environ.get("MICRO_CHAOS_CALLS", "1500"))
SEED = int(os.environ.get("MICRO_CHAOS_SEED", "0")) or time.time_ns() % 2**32


# -- the checker ---------------------------------------------------------------------------------


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
    "a torn pair": [call("write", 1, 2, "a"), call("read", 3, 4, "torn: ['a', 'b']")],
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


class Forgetful(MemoryStore):
    """Wrong on purpose: every 50th answer of a read is the first one that the key ever had."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, Record] = {}
        self._count = 0

    async def read(self, key: str, **place: str) -> Record:
        record = await super().read(key, **place)
        self._first.setdefault(key, record)
        self._count += 1
        return self._first[key] if self._count % 50 == 0 else record


async def test_the_checker_finds_a_store_that_is_wrong() -> None:
    clients = Clients([Forgetful()], count=4, keys=4, seed=SEED)
    await clients.run(2000)
    assert violations(clients.history)


# -- the store -----------------------------------------------------------------------------------


async def run(clients: Clients, calls: int, *, per_key: int = 1000) -> None:
    begun = time.monotonic()
    await clients.run(calls, per_key=per_key)
    ran = time.monotonic() - begun
    history = clients.history
    unknowns = sum(c.outcome is Outcome.UNKNOWN for c in history)
    print(
        f"\nseed {SEED}: {len(history)} calls in {ran:.1f} s, {unknowns} of unknown end,"
        f" {clients.refused} not done"
    )
    assert violations(history) == [], f"MICRO_CHAOS_SEED={SEED} repeats the calls"
    assert len({c.kind for c in history}) == 4
    assert any(c.outcome is Outcome.REFUSED for c in history)
    assert len(history) + clients.refused > calls * 0.9


@contextlib.asynccontextmanager
async def two_files() -> AsyncIterator[list[Store]]:
    with tempfile.TemporaryDirectory(prefix="ln-") as folder:
        async with SqliteStore(Path(folder)) as one, SqliteStore(Path(folder)) as two:
            yield [one, two]


@pytest.mark.timeout(60 + CALLS // 20)
async def test_sqlite() -> None:
    """Two stores over one file; clients go away in the middle of their writes."""
    async with two_files() as ways:
        clients = Clients(ways, count=8, keys=6, seed=SEED, impatient=0.01)
        # Each client that went away leaves a call of unknown end, which every later one may follow.
        await run(clients, CALLS, per_key=200)


@pytest.mark.timeout(60 + CALLS // 20)
async def test_postgres(postgres: Postgres) -> None:
    """Two pools, one over a line that is cut at any moment and around commits, and a server that
    ends connections by itself."""
    async with (
        schema(postgres.url()) as name,
        proxy(postgres.port) as between,
        PostgresStore(postgres.url(name)) as near,
        PostgresStore(postgres.url(name, port=between.port)) as far,
    ):
        trouble = asyncio.create_task(_trouble(between, postgres))
        try:
            await run(Clients([near, far], count=8, keys=6, seed=SEED), CALLS)
        finally:
            trouble.cancel()
            await asyncio.gather(trouble, return_exceptions=True)
        assert between.count > 2, "no line was cut"


async def _trouble(between: Proxy, postgres: Postgres) -> None:
    chance = random.Random(SEED)
    while True:
        await asyncio.sleep(chance.random() * 0.2)
        what = chance.randrange(4)
        if what == 0:
            between.cut()
        elif what == 1:
            await asyncio.to_thread(postgres.cut_all)
        elif what == 2:
            between.cuts_after[b"COMMIT"] = 1
        else:
            between.cuts_before[b"COMMIT"] = 1
