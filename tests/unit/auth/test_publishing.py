"""What was done is published to events, and forgotten when the stream has it."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import msgspec
import pytest

from micro_ray.actors.auth import SELF, publish
from micro_ray.auth import AUDIT, Audit, Rule
from micro_ray.errors import BadRequest, Unavailable
from micro_ray.events.sqlite import SqliteEvents
from micro_ray.store.memory import MemoryStore
from tests.fixtures.auths import ROOT, over
from tests.fixtures.stores import Clock
from tests.fixtures.wait import PROMPT, eventually


class Away(SqliteEvents):
    """Events that cannot be reached for a while."""

    away = True

    async def publish(self, topic: str, payload: bytes, **options):  # type: ignore[no-untyped-def,override]
        if self.away:
            raise Unavailable("events", "away")
        return await super().publish(topic, payload, **options)


async def test_it_waits_for_events_and_comes_once() -> None:
    with tempfile.TemporaryDirectory(prefix="ap-") as name:
        folder, clock = Path(name), Clock()
        async with (
            MemoryStore() as store,
            over(store, folder, clock) as auth,
            Away(folder / "events") as events,
        ):
            tasks = [asyncio.create_task(publish(auth, events)) for _ in range(2)]
            for number in range(5):
                clock.now += 1
                await auth.create_rule(Rule(id=f"r{number}"), namespace="acme", by=ROOT)
            # What a namespace's events refuse goes to the platform's, and holds up nothing.
            refused = Audit(id="", time=clock.now, action="x", by="", namespace="no/name")
            await auth.note(refused, by=ROOT)
            await asyncio.sleep(0.05)
            assert len(await auth.audits(by=ROOT)) == 6
            events.away = False

            async def settled() -> bool:
                return not await auth.audits(by=SELF)

            await eventually(settled, within=PROMPT)
            found = await events.read(AUDIT, namespace="acme")
            entries = [msgspec.json.decode(event.payload, type=Audit) for event in found]
            assert [entry.subject for entry in entries] == [f"r{n}" for n in range(5)]
            assert {entry.action for entry in entries} == {"rule.create"}
            (other,) = await events.read(AUDIT, namespace="micro")
            assert msgspec.json.decode(other.payload, type=Audit).namespace == "no/name"
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("time", [float("inf"), float("nan"), -1.0, 1e300])
async def test_an_entry_has_a_time_that_can_be(time: float) -> None:
    with tempfile.TemporaryDirectory(prefix="ap-") as name:
        async with MemoryStore() as store, over(store, Path(name), Clock()) as auth:
            entry = Audit(id="", time=time, action="x", by="", namespace="micro")
            with pytest.raises(BadRequest, match="seconds since 1970"):
                await auth.note(entry, by=ROOT)
