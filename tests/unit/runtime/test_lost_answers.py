"""Changes while answers of the store are lost: what the runtime keeps is what the store has, and
who asked is told how it ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from micro_ray.errors import BadGateway, Cancelled, Conflict, MicroError, Timeout, Unavailable
from micro_ray.runtime import Workload
from micro_ray.runtime.desired import Records
from micro_ray.runtime.reconcile import Reconciler
from micro_ray.store import Operation, Record
from micro_ray.store.memory import MemoryStore
from tests.fixtures.wait import eventually
from tests.unit.runtime.conftest import Shop, command

IDLE = command("sleep", "1000", replicas=0)
LOST = [Unavailable, Timeout, BadGateway, Cancelled]


class Line(MemoryStore):
    """A store at the end of a bad line: ``answers`` are lost of so many writes that were done,
    ``requests`` of so many that were not; ``away`` loses all reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.error: type[MicroError] = Unavailable
        self.answers = self.requests = 0
        self.away = False
        self.asked = 0
        self.late: list[Sequence[Operation]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def transact(self, operations: Sequence[Operation], **place: Any) -> list[int]:
        await self.gate.wait()
        if self.requests or self.away:
            self.requests = max(0, self.requests - 1)
            self.late.append(operations)
            raise self.error("store", "the line was cut")
        done = await super().transact(operations, **place)
        if self.answers:
            self.answers -= 1
            raise self.error("store", "the line was cut")
        return done

    async def read(self, key: str, **place: Any) -> Record:
        self.asked += 1
        if self.away:
            raise self.error("store", "nobody listens")
        return await super().read(key, **place)


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    async with Line() as line:
        yield line


@pytest.fixture
async def runtime(shop: Shop, line: Line) -> AsyncIterator[Reconciler]:
    async with shop.runtime(store=line) as runtime:
        await runtime.create(replace(IDLE, name="old"))
        yield runtime
        await runtime.halt(0)


async def agreed(runtime: Reconciler, line: Line) -> list[Workload]:
    """What is kept, which must be what a next life would find."""
    kept = [status.workload for status in await runtime.read()]
    found = [desired.workload for desired in await Records(line, "micro").load()]
    assert sorted(found, key=lambda workload: workload.name) == kept
    return kept


Change = Callable[[Reconciler], Awaitable[Any]]
#: A change and the names and metadata that are there before and after.
CHANGES: dict[str, tuple[Change, dict[str, Any]]] = {
    "create": (lambda r: r.create(IDLE), {"old": {}, "w": {}}),
    "update": (lambda r: r.update("old", "micro", {"metadata": {"k": "v"}}), {"old": {"k": "v"}}),
    "delete": (lambda r: r.delete("old"), {}),
}
every = pytest.mark.parametrize("change", CHANGES)


def shown(workloads: list[Workload]) -> dict[str, Any]:
    return {workload.name: dict(workload.metadata) for workload in workloads}


@every
@pytest.mark.parametrize("error", LOST, ids=lambda error: error.__name__)
async def test_it_was_done(
    runtime: Reconciler, line: Line, change: str, error: type[MicroError]
) -> None:
    do, after = CHANGES[change]
    line.error, line.answers = error, 1
    before = await line.revision()
    await do(runtime)
    assert shown(await agreed(runtime, line)) == after
    assert await line.revision() == before + 1, "it was written twice"
    # The versions that the next change compares are right.
    before = await line.revision()
    await runtime.create(replace(IDLE, name="next"))
    assert await line.revision() == before + 1


@every
async def test_it_was_done_and_the_store_is_away_for_a_while(
    runtime: Reconciler, line: Line, change: str
) -> None:
    do, after = CHANGES[change]
    line.gate.clear()
    doing = asyncio.ensure_future(do(runtime))
    await asyncio.sleep(0)
    line.answers, asked = 1, line.asked
    line.gate.set()
    await asyncio.sleep(0)
    line.away = True
    await eventually(lambda: line.asked >= asked + 3)
    assert not doing.done()
    line.away = False
    await doing
    assert shown(await agreed(runtime, line)) == after


@every
async def test_it_was_not_done(runtime: Reconciler, line: Line, change: str) -> None:
    """Tried again, it is; when it cannot be, all is as it was, and that is what is said."""
    do, after = CHANGES[change]
    before = await agreed(runtime, line)
    line.requests = 100
    with pytest.raises(Unavailable, match="nothing was changed: the line was cut"):
        await do(runtime)
    assert await agreed(runtime, line) == before
    line.requests = 1
    await do(runtime)
    assert shown(await agreed(runtime, line)) == after


@every
async def test_a_write_that_comes_late_is_barred(
    runtime: Reconciler, line: Line, change: str
) -> None:
    """It was given up, another has taken its place, and then the line delivers it after all."""
    do, after = CHANGES[change]
    line.error, line.requests = Timeout, 1
    await do(runtime)
    (late,) = line.late
    if change != "delete":  # to remove what is gone is no harm
        with pytest.raises(Conflict):
            await line.transact(late)
    assert shown(await agreed(runtime, line)) == after


@every
async def test_who_asked_goes_away(runtime: Reconciler, line: Line, change: str) -> None:
    """While the write is under way; what was begun is brought to its end."""
    do, after = CHANGES[change]
    line.gate.clear()
    doing = asyncio.ensure_future(do(runtime))
    await asyncio.sleep(0.01)
    doing.cancel()
    await asyncio.gather(doing, return_exceptions=True)
    assert doing.cancelled()
    line.answers = 1
    line.gate.set()
    await runtime.create(replace(IDLE, name="next"))  # comes after it
    await eventually(lambda: _are(runtime, {**after, "next": {}}))
    await agreed(runtime, line)


async def _are(runtime: Reconciler, expected: dict[str, Any]) -> bool:
    return shown([status.workload for status in await runtime.read()]) == expected


@every
@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
async def test_the_store_does_not_come_back_in_time(
    runtime: Reconciler, line: Line, change: str, done: bool,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Who asked is told that the end is not known, the next that nothing was done; once the store
    answers, what it has is kept."""
    do, after = CHANGES[change]
    monkeypatch.setattr("micro_ray.runtime.turns.PATIENCE", 0.1)
    monkeypatch.setattr("micro_ray.runtime.desired.ATTEMPTS", 1)
    before = shown(await agreed(runtime, line))
    if done:
        taking = line.transact

        async def taken(operations: Sequence[Operation], **place: Any) -> list[int]:
            await taking(operations, **place)
            line.away = True
            raise Timeout("store", "the line was cut")

        monkeypatch.setattr(line, "transact", taken)
    else:
        line.away = True
    with pytest.raises(BadGateway, match="not known yet, as the store does not answer"):
        await do(runtime)
    with pytest.raises(Unavailable, match="nothing was changed: an earlier change waits"):
        await runtime.create(replace(IDLE, name="next"))
    assert shown([s.workload for s in await runtime.read()]) == before, "nothing is known yet"
    monkeypatch.undo()
    line.away = False
    caplog.set_level(logging.WARNING)
    await runtime.create(replace(IDLE, name="last"))
    expected = {**(after if done else before), "last": {}}
    await eventually(lambda: _are(runtime, expected))
    await agreed(runtime, line)
    assert ("was not changed" in caplog.text) is not done


async def test_another_has_written_meanwhile(runtime: Reconciler, line: Line) -> None:
    """By hand, say: what is asked for here is what counts."""
    (old,) = await line.query(table="runtime")
    await line.write(old.key, b"{}", table="runtime")
    await runtime.update("old", "micro", {"metadata": {"k": "v"}})
    assert shown(await agreed(runtime, line)) == {"old": {"k": "v"}}
    await line.delete(old.key, table="runtime")
    await runtime.update("old", "micro", {"metadata": {"k": "w"}})
    assert shown(await agreed(runtime, line)) == {"old": {"k": "w"}}
    await line.delete(old.key, table="runtime")
    await runtime.delete("old")
    assert await agreed(runtime, line) == []
