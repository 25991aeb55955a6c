"""``kill -9`` of what holds the events and of what consumes them, against a ledger of what was
acknowledged.

The short form kills ten times; ``scripts/ledger`` is the long form (200).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from micro_ray.errors import MicroError
from micro_ray.wire.events import RemoteEvents
from tests.fixtures.events_process import NODES, POISON, TOPICS, caller, start
from tests.fixtures.nats import NatsServer, jetstream
from tests.fixtures.wait import eventually

KILLS = int(os.environ.get("MICRO_LEDGER_KILLS", "10"))
pytestmark = pytest.mark.timeout(60 + 5 * KILLS)

PREFETCH = 8
RULES = {"ack_wait": 1.5, "retry_limit": 2, "backoff": 0.05}
#: Of each group, how many members it has, and its rules. A kill of a member counts as an attempt,
#: so groups that must not lose patience with healthy events have no limit.
GROUPS: dict[str, tuple[int, dict[str, float]]] = {
    "shared": (2, {**RULES, "prefetch": PREFETCH, "retry_limit": 20}),
    "strict": (1, {**RULES, "pending": 1, "prefetch": PREFETCH, "retry_limit": 20}),
}
#: Every so manieth event is poison.
BAD = 97


@dataclass
class Ledger:
    """What was acknowledged: topic -> number -> id."""

    taken: dict[str, dict[int, str]] = field(default_factory=lambda: {t: {} for t in TOPICS})
    poison: dict[str, set[int]] = field(default_factory=lambda: {t: set() for t in TOPICS})

    @property
    def count(self) -> int:
        return sum(map(len, self.taken.values()))


async def publish(events: RemoteEvents, topic: str, ledger: Ledger, ending: asyncio.Event) -> None:
    """One event after the other; each is tried, with one id, until it is acknowledged."""
    for number in itertools.count():
        if ending.is_set():
            return
        bad = number % BAD == BAD - 1
        id = f"{topic}-{number}"
        while True:
            try:
                taken = await events.publish(topic, POISON if bad else b"fine", id=id)
                break
            except MicroError:
                await asyncio.sleep(0.05)
        assert taken.sequence not in ledger.taken[topic], "a number was given twice"
        ledger.taken[topic][taken.sequence] = id
        if bad:
            ledger.poison[topic].add(taken.sequence)
        await asyncio.sleep(0.01)


class Town:
    """The processes; each can be killed and started again."""

    def __init__(self, folder: Path, server: NatsServer | None) -> None:
        self.folder = folder
        self.server = server
        where = () if server is None else (server.address,)
        self.commands = [("node", str(folder), str(i), *where) for i in range(NODES)]
        for group, (members, rules) in GROUPS.items():
            log = str(folder / f"{group}.log")
            self.commands += [("member", str(folder), group, log, json.dumps(rules))] * members
        self.processes: list[asyncio.subprocess.Process] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        try:
            for command in self.commands:
                self.processes.append(await start(*command))
            yield
        finally:
            for process in self.processes:
                if process.returncode is None:
                    process.kill()
                await process.wait()

    @property
    def victims(self) -> int:
        """How many can be killed: the processes, and the server behind them."""
        return len(self.commands) + (self.server is not None)

    async def kill(self, index: int) -> None:
        if index == len(self.commands):
            assert self.server is not None
            await self.server.kill()
            await self.server.start()
            return
        self.processes[index].kill()
        await self.processes[index].wait()
        self.processes[index] = await start(*self.commands[index])

    def log(self, group: str) -> list[dict[str, object]]:
        text = (self.folder / f"{group}.log").read_text()
        return [json.loads(line) for line in text.splitlines()]


@asynccontextmanager
async def backed(backend: str) -> AsyncIterator[NatsServer | None]:
    if backend == "sqlite":
        yield None
        return
    async with jetstream() as server:
        yield server


@pytest.mark.parametrize("backend", ["sqlite", "jetstream"])
async def test_nothing_acknowledged_is_lost(backend: str) -> None:
    seed = int(os.environ.get("MICRO_LEDGER_SEED", "0")) or random.randrange(1, 2**32)
    print(f"seed {seed}")
    choose = random.Random(seed)
    ledger = Ledger()
    with tempfile.TemporaryDirectory(prefix="ml-") as name:
        async with backed(backend) as server:
            await run(Town(Path(name), server), ledger, choose)


async def run(town: Town, ledger: Ledger, choose: random.Random) -> None:
    async with town.running(), caller(town.folder) as events:
        ending = asyncio.Event()
        publishers = [
            asyncio.create_task(publish(events, topic, ledger, ending)) for topic in TOPICS
        ]
        try:
            for _ in range(KILLS):
                goal = ledger.count + choose.randrange(20, 100)
                await eventually(lambda: ledger.count >= goal, within=20)  # noqa: B023 - awaited in the same turn
                await town.kill(choose.randrange(town.victims))
            goal = ledger.count + 2 * BAD
            await eventually(lambda: ledger.count >= goal, within=20)
        finally:
            ending.set()
            await asyncio.gather(*publishers)
        await settled(events)
        await check_replay(events, ledger)
        for group in GROUPS:
            await check_group(events, town, group, ledger)


async def settled(events: RemoteEvents) -> None:
    """Wait until each group has settled everything."""

    async def idle() -> bool:
        rows = [group for topic in TOPICS for group in await events.groups(topic)]
        return len(rows) == 4 and not any(row.pending or row.waiting for row in rows)

    await eventually(idle, within=60, every=0.1)


async def check_replay(events: RemoteEvents, ledger: Ledger) -> None:
    for topic in TOPICS:
        replayed = {event.sequence: event.id async for event in events.replay(topic)}
        assert replayed == ledger.taken[topic]
        assert list(replayed) == [*range(1, len(replayed) + 1)]


async def check_group(events: RemoteEvents, town: Town, group: str, ledger: Ledger) -> None:
    """Everything was given, in order, few of it twice, and what is poison is dead."""
    log = town.log(group)
    times = Counter((row["topic"], row["n"]) for row in log)
    for topic in TOPICS:
        given = {n for t, n in times if t == topic}
        assert given == ledger.taken[topic].keys(), f"{group} was not given all of {topic}"
        first = [row["n"] for row in log if row["topic"] == topic and row["attempt"] == 1]
        for pid in {row["pid"] for row in log}:
            mine = [
                row["n"]
                for row in log
                if (row["topic"], row["pid"], row["attempt"]) == (topic, pid, 1)
            ]
            assert mine == sorted(mine), f"{group} out of order in {topic}"
        if group == "strict":
            order = list(dict.fromkeys(row["n"] for row in log if row["topic"] == topic))
            assert order == sorted(order), "an event came before the one before it was settled"
        assert len(first) == len(set(first)), "a first attempt was made twice"
        letters = await events.dead(topic, group, limit=10_000)
        dead, poison = {d.event.sequence for d in letters}, ledger.poison[topic]
        healthy = {
            n: [
                (row["pid"], row["attempt"])
                for row in log
                if (row["topic"], row["n"]) == (topic, n)
            ]
            for n in dead - poison
        }
        assert dead == poison, f"{group}, {topic}: {poison - dead} not dead; dead: {healthy}"
        assert {d.attempts for d in letters} <= {21}
    extra = sum(
        count - 1 for (topic, n), count in times.items() if n not in ledger.poison[str(topic)]
    )
    print(f"{group}: {len(times)} events, {extra} given again")
    assert extra <= KILLS * PREFETCH * len(TOPICS), "more was given again than was held"
