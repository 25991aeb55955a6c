"""Writes whose answer is lost, and writers that are always too late: a real store behind a line
that fails when told to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from micro_ray.config.stored import StoredConfig
from micro_ray.config.writing import ATTEMPTS
from micro_ray.errors import BadGateway, Conflict, MicroError, Unavailable
from micro_ray.store import Operation
from micro_ray.store.memory import MemoryStore
from tests.fixtures.configs import keys


class Line(MemoryStore):
    """``lose`` is how many answers to writes are lost after they were done, ``cut`` how many never
    arrive; ``race`` is called before each write."""

    def __init__(self) -> None:
        super().__init__()
        self.lose = self.cut = self.writes = 0
        self.error: MicroError = BadGateway("store", "the node has gone")
        self.race: Any = None

    async def transact(self, operations: Sequence[Operation], **options: Any) -> list[int]:
        self.writes += 1
        race, self.race = self.race, None
        if race is not None:
            await race()
        if self.cut:
            self.cut -= 1
            raise self.error
        versions = await super().transact(operations, **options)
        if self.lose:
            self.lose -= 1
            raise self.error
        return versions


@pytest.mark.parametrize(("lose", "cut"), [(1, 0), (0, 1), (0, 3)])
async def test_a_lost_answer_is_found(tmp_path: Path, lose: int, cut: int) -> None:
    """Done once, whether the first attempt arrived or not."""
    async with Line() as store, StoredConfig(store, keys(tmp_path)) as config:
        await config.set("a", 1)
        store.lose, store.cut = lose, cut
        assert await config.set("a", 2, expected=1) == 2
        assert [v.changes[0].new for v in await config.history()] == [2, 1]


async def test_a_lost_write_that_another_has_overtaken(tmp_path: Path) -> None:
    """What did not arrive is made again over what the other wrote; compared, it is refused."""
    async with (
        Line() as store,
        StoredConfig(store, keys(tmp_path)) as config,
        StoredConfig(store, keys(tmp_path)) as other,
    ):
        at = await config.set("a", 1)

        async def beside() -> None:
            await other.set("b", "other")
            store.cut = 1

        store.race = beside
        at = await config.set("a", 2, expected=at)
        assert await config.get() == {"a": 2, "b": "other"}

        async def first() -> None:
            await other.set("a", "other")
            store.cut = 1

        store.race = first
        with pytest.raises(Conflict, match=f"version {at} expected"):
            await config.set("a", "mine", expected=at)
        assert await config.get("a") == "other"


async def test_an_outcome_that_cannot_be_known(tmp_path: Path) -> None:
    """It is reported as what it is, and only after looking for it."""
    async with Line() as store, StoredConfig(store, keys(tmp_path)) as config:
        await config.set("a", 1)
        store.cut = 1000
        with pytest.raises(BadGateway, match="the node has gone"):
            await config.set("a", 2)
        assert 3 < store.writes < 20
        store.cut, store.error = 1, Unavailable("store", "nobody took it")
        before = store.writes
        with pytest.raises(Unavailable):
            await config.set("a", 3)
        assert store.writes == before + 1  # nothing was done: nothing is looked for
        assert await config.get("a") == 1


async def test_writers_that_are_always_late_are_told(tmp_path: Path) -> None:
    async with Line() as store, StoredConfig(store, keys(tmp_path)) as config:
        late = 0

        async def race() -> None:
            """Somebody else writes the same document again."""
            nonlocal late
            late += 1
            place: dict[str, Any] = {"database": "config", "table": "micro"}
            record = await store.read("document", **place)
            await store.write("document", record.value, **place)
            store.race = race

        await config.set("a", 1)
        store.race = race
        with pytest.raises(Conflict, match=f"{ATTEMPTS} times in a row") as told:
            await config.set("a", 2)
        assert told.value.retry_after == 1
        assert late >= ATTEMPTS
        store.race = None
        assert await config.set("a", 2) == 2
