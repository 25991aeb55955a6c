"""``kill -9`` of platform actors, doors and service replicas at random under steady load.

The short form kills six times; ``./scripts/chaos`` is the long form (30). It prints

- the seed, which repeats the order of the victims;
- a line per kill: who, after how many seconds every process was there again and answered a call of
  its own, and what was sent and lost from this kill until the next one, GETs and POSTs apart;
- a line per member: what it held at first, after its last start once warm, and at the end (each
  time with the load paused), and the sum over all processes before and at the end;
- what was sent and lost in all, apart for the kills of those that are the only ones of their kind,
  and the causes of what was lost.

It passes when nothing was wrong, at least 99.9 % were good (of all; of the POSTs; and of both
around the kills of those that are not the only ones of their kind), the load was what it should be,
every process came back within a minute with nobody else having been started anew, and neither any
member nor all together hold more than the bounds below allow.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

import psutil
import pytest

from bench.stack import Server, micro
from micro_ray import AsyncClient
from micro_ray.settings import bootstrap, load
from tests.chaos.growth import Baselines, Bounds, Held, Roll, Seen, grown, total
from tests.chaos.load import Load, Mixed, Outcome, Tally
from tests.chaos.platform import ALONE, TITLES, VICTIMS, Platform
from tests.fixtures.wait import eventually

KILLS = int(os.environ.get("MICRO_CHAOS_KILLS", "6"))
RATE = 500.0
#: Seconds of load after each return at least.
PAUSE = 4.0
GOOD = 0.999
#: What runs, with how many replicas.
SERVICES = {"helloworld": 3, "caller": 2}

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180 + 40 * KILLS)]

#: What one may hold more. Connections move: whoever followed a router that died follows the other
#: one from then on, and two dozen processes follow one of two, each with a task of its stream.
#: Memory is what an allocator keeps of a burst; the long form sends 75,000 requests, of which half
#: go through each door, so a leak of half a KiB a request is beyond it.
EACH = Bounds(descriptors=24, memory=16 * 2**20, tasks=24)
#: All together: what moves adds up to nothing, so there remain the connections that somebody makes
#: the first time that he needs them (two ends each), and what Ray's own processes keep of each
#: actor that has died (about a quarter of a MiB).
ALL = Bounds(descriptors=40, memory=64 * 2**20, tasks=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """One kill: what was sent from it to the next one, and how it ended."""

    title: str
    member: str
    back: float
    gets: Tally
    posts: Tally

    def __str__(self) -> str:
        return (
            f"kill -9 {self.title} ({self.member}): back in {self.back:.1f} s,"
            f" GET {self.gets}, POST {self.posts}"
        )


@contextlib.asynccontextmanager
async def services(server: Server) -> AsyncIterator[Platform]:
    for name, replicas in SERVICES.items():
        folder = f"examples/{name}"
        await asyncio.to_thread(micro, server, "run", "--replicas", str(replicas), folder)
    try:
        async with AsyncClient(bootstrap(load(server.environ), {})) as client:
            platform = Platform(server, client, SERVICES)
            await eventually(platform.healthy, within=60, every=0.1)
            yield platform
    finally:
        for name in SERVICES:
            await asyncio.to_thread(micro, server, "kill", name)


def victims(choose: random.Random) -> Iterator[str]:
    """Titles at random, each kind once before any comes again."""
    while True:
        yield from choose.sample(list(VICTIMS), len(VICTIMS))


class Run:
    """The kills of one test, and what was held before and after each."""

    def __init__(self, platform: Platform, under: Load, choose: random.Random) -> None:
        self._platform = platform
        self._load = under
        self._choose = choose
        self._roll = Roll()
        self.lives = Baselines()
        self.kills: list[Killed] = []
        self.members: dict[str, Seen] = {}
        self.held: dict[str, Held] = {}
        self.first: dict[int, Held] = {}  # by pid
        self.last: dict[int, Held] = {}

    async def look(self) -> None:
        """See what everybody holds; nothing may be under way."""
        seen, self.last = await self._platform.look()
        self.first = self.first or self.last
        self.members = self._roll.call(seen)
        self.held = {name: self.last[process.pid] for name, process in self.members.items()}

    async def warm(self) -> list[str]:
        """Some seconds of load on whoever is there; then, in a pause of it, the baselines of those
        that have started since. Their names."""
        outcome = self._load.outcome
        target = outcome.good + PAUSE * RATE
        await eventually(lambda: outcome.good > target, within=60)
        await self._load.pause()
        await self.look()
        self._load.go_on()
        return self.lives.take(self.members, self.held)

    async def kill(self, title: str) -> None:
        """Kill a process of a kind, and wait until it is back and warm."""
        outcome = self._load.outcome
        gets, posts = outcome.gets, outcome.posts
        having = [name for name, process in self.members.items() if process.title == title]
        member = self._choose.choice(having)
        victim = psutil.Process(self.members[member].pid)
        began = time.monotonic()
        victim.kill()

        async def back() -> bool:
            return not victim.is_running() and await self._platform.healthy()

        await eventually(back, within=60, every=0.2)
        took = time.monotonic() - began
        started = await self.warm()
        self.kills.append(
            Killed(
                title=title,
                member=member,
                back=took,
                gets=outcome.gets - gets,
                posts=outcome.posts - posts,
            )
        )
        print(self.kills[-1])
        assert started == [member], f"{member} was killed, and started anew have {started}"

    async def nobody_grew(self) -> bool:
        """Raises AssertionError with those who did."""
        await self.look()
        rows = self.lives.grown(self.held, EACH)
        rows += grown({"all": total(self.first.values())}, {"all": total(self.last.values())}, ALL)
        rows += [f"{name}: is new" for name in self.held.keys() - self.lives.latest.keys()]
        assert not rows, rows
        return True

    def report(self) -> None:
        """What each member held first, after its last start, and now; what the kills cost."""
        lives = self.lives
        for name, now in sorted(self.held.items()):
            print(f"{name:28} {lives.first[name]} | {lives.latest[name]} | {now}")
        for row in (self.first, self.last):
            print(f"all: {len(row)} processes, {total(row.values())}")
        outcome = self._load.outcome
        rate = outcome.all.sent / outcome.seconds
        print(f"{outcome.all} at {rate:.0f}/s, slowest {outcome.slowest:.3f} s")
        for what, kills in (("others", self.others), ("the only ones of their kind", self.alone)):
            gets, posts = gets_and_posts(kills)
            print(f"kills of {what}: {len(kills)}; GET {gets}; POST {posts}")
        print(dict(outcome.failures))

    @property
    def others(self) -> list[Killed]:
        return [kill for kill in self.kills if kill.title not in ALONE]

    @property
    def alone(self) -> list[Killed]:
        return [kill for kill in self.kills if kill.title in ALONE]


async def test_random_kills_under_load(server: Server) -> None:
    """No wrong answer; of all requests, and of the POSTs by themselves, at least 99.9 % answered
    though none is sent twice; every process back after each kill; and no member of any kind holds
    more than before, nor do all together."""
    seed = int(os.environ.get("MICRO_CHAOS_SEED", "0")) or random.randrange(1, 2**32)
    print(f"\nseed {seed}")
    choose = random.Random(seed)
    async with services(server) as platform:
        under = Load(server.port, rate=RATE, ask=Mixed(choose))
        run = Run(platform, under, choose)
        async with under as outcome:
            await run.warm()
            for _, title in zip(range(KILLS), victims(choose), strict=False):
                await run.kill(title)
            await run.warm()
        try:
            await eventually(run.nobody_grew, within=60, every=1.0)
        finally:
            run.report()
        check(outcome, run)
        titles = {process.title for process in run.members.values()}
        assert titles >= set(TITLES)
        actors = {title for title in titles if title.endswith("Actor")}
        assert actors <= {*VICTIMS, "ray::ProxyActor"}, "an actor of ours that is no victim"
        assert run.lives.latest.keys() == run.held.keys()


def gets_and_posts(kills: Sequence[Killed]) -> tuple[Tally, Tally]:
    """What was sent around some kills."""
    return sum((k.gets for k in kills), Tally()), sum((k.posts for k in kills), Tally())


def check(outcome: Outcome, run: Run) -> None:
    """Of all that was sent, and of what was sent around the kills of those that are not the only
    ones of their kind, so much was answered; of the POSTs alone as well."""
    assert not outcome.wrong, outcome.wrong[:3]
    assert outcome.all.sent >= 0.9 * RATE * outcome.seconds, "the load was less than it should be"
    others = gets_and_posts(run.others)
    for gets, posts in ((outcome.gets, outcome.posts), others):
        assert posts.success >= GOOD, (posts, dict(outcome.failures))
        assert (gets + posts).success >= GOOD, (gets, posts, dict(outcome.failures))
