"""HTTP to a service through one door, with limits and without; and what a decision costs."""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from bench.measure import Sample, interleave, table
from bench.wrk import load
from micro_ray import Service
from micro_ray.limits import Kind
from micro_ray.limits.gate import Gate
from micro_ray.limits.quota_store import QuotaStore
from micro_ray.limits.rules import Rules, parse
from micro_ray.sdk.testing import platform
from micro_ray.store import Store
from micro_ray.store.memory import MemoryStore
from tests.fixtures.doors import child

__all__ = ["run"]

NAMES = (
    "a door without limits",
    "a door whose namespace has none",
    "a rate of the namespace, never reached",
    "rate and concurrency of namespace and service, never reached",
)
#: So much that nothing is refused.
AMPLE = {"rate": 1_000_000.0, "burst": 10_000_000, "concurrency": 10_000}
RATE: dict[str, object] = {"namespace": {"rate": 1_000_000.0, "burst": 10_000_000}}
ALL: dict[str, object] = {"namespace": AMPLE, "services": {"echo": AMPLE}}


def _echo() -> Service:
    service = Service("echo")

    @service.endpoint
    async def call(name: str = "World") -> dict[str, str]:
        return {"msg": f"Hello {name}"}

    return service


async def run(*, quick: bool) -> str:
    """The table over HTTP, interleaved, and the figures of one decision."""
    seconds, rounds = (1, 1) if quick else (4, 7)
    async with platform() as here, AsyncExitStack() as stack:
        await here.serve(_echo())
        run = here.bootstrap.run
        bare = await stack.enter_async_context(child("door", run, open=True))
        door = await stack.enter_async_context(child("door", run))

        async def once(port: int, document: dict[str, object]) -> Sample:
            await here.config.set("limits", document)
            url = f"http://127.0.0.1:{port}/echo/call"
            return await load(url, connections=32, seconds=seconds, post=True)

        contenders: dict[str, Callable[[], Awaitable[Sample]]] = {
            NAMES[0]: functools.partial(once, bare.port, {}),
            NAMES[1]: functools.partial(once, door.port, {}),
            NAMES[2]: functools.partial(once, door.port, RATE),
            NAMES[3]: functools.partial(once, door.port, ALL),
        }
        figures = await interleave(contenders, rounds=rounds)
    parts = [table("HTTP with limits, 32 connections", figures, NAMES[0])]
    for name, document in (
        ("nothing is limited", {}),
        ("the namespace has a rate", RATE),
        ("namespace and service have all", ALL),
    ):
        parts.append(f"One decision where {name}: {_decision(document):.2f} us.")
    for name, document in (
        ("has no rate", {}),
        ("has a rate", {"store": {"rate": 1_000_000.0, "burst": 10_000_000}}),
    ):
        cost = await _operation(document) - await _operation(None)
        parts.append(f"One operation of the store more, where the namespace {name}: {cost:.2f} us.")
    return "\n\n".join(parts)


async def _operation(document: dict[str, object] | None, count: int = 50_000) -> float:
    """Microseconds of a read of a store in memory; None: without what counts it."""
    store: Store = MemoryStore()
    await store.write("k", b"v")
    if document is not None:
        gate = Gate(kinds=(Kind.STORE,))
        gate.alone()
        gate.follow("micro")
        gate.rule("micro", Rules(parse(document), 1))
        store = QuotaStore(store, gate)
    best = 1.0
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(count):
            await store.read("k")
        best = min(best, (time.perf_counter() - begun) / count)
    return best * 1e6


def _decision(document: dict[str, object], count: int = 200_000) -> float:
    """Microseconds to let a request in and out, with tokens at hand."""
    gate = Gate()
    gate.alone()
    gate.follow("micro")
    gate.rule("micro", Rules(parse(document), 1))
    best = 1.0
    for _ in range(3):
        begun = time.perf_counter()
        for _ in range(count):
            admission = gate.admit("micro", "", "echo", "Echo.Call")
            assert admission is not None
            admission.release()
        best = min(best, (time.perf_counter() - begun) / count)
    return best * 1e6
