"""Two doors in processes of their own, ten clients, and a limiter: what they admit together."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from micro_ray import Service
from micro_ray.sdk.testing import Here, platform
from tests.fixtures.doors import Child, Seen, ask_over_and_over, child, get
from tests.fixtures.wait import PROMPT, eventually

PATH = "/echo/call"


def echo(most: list[int]) -> Service:
    service = Service("echo")
    running = [0]

    @service.endpoint
    async def call(wait: float = 0.0) -> dict[str, str]:
        running[0] += 1
        most[0] = max(most[0], running[0])
        try:
            await asyncio.sleep(wait)
            return {"message": "hello"}
        finally:
            running[0] -= 1

    return service


@asynccontextmanager
async def town(doors: int = 2) -> AsyncIterator[tuple[Here, list[Child], Child, list[int]]]:
    """A platform with a service, so many doors, and a limiter that can be killed."""
    async with platform() as here, AsyncExitStack() as stack:
        most = [0]
        await here.serve(echo(most))
        await here.hosts["limits"].close()
        limiter = await stack.enter_async_context(child("limiter", here.bootstrap.run))
        up = [
            await stack.enter_async_context(child("door", here.bootstrap.run, doors=doors))
            for _ in range(doors)
        ]
        yield here, up, limiter, most


async def clients(doors: list[Child], shares: list[int], seconds: float, path: str = PATH) -> Seen:
    """So many clients at each door."""
    seen = Seen()
    await asyncio.gather(
        *(
            ask_over_and_over(door.port, path, seconds, seen=seen)
            for door, share in zip(doors, shares, strict=True)
            for _ in range(share)
        )
    )
    return seen


async def in_force(doors: list[Child], code: int = 200) -> None:
    """Each door answers so."""
    for door in doors:
        await eventually(lambda door=door: _code(door, code), within=PROMPT)


async def _code(door: Child, code: int) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    try:
        return (await get(reader, writer, PATH))[0] == code
    finally:
        writer.close()


@pytest.mark.parametrize("shares", [[5, 5], [8, 2], [10, 0]])
async def test_two_doors_admit_one_limit(shares: list[int]) -> None:
    rate, burst, seconds = 200, 200, 3.0
    async with town() as (here, doors, _, _):
        await in_force(doors)
        await here.limits.set("namespace", rate=rate, burst=burst)
        begun = time.monotonic()
        seen = await clients(doors, shares, seconds)
        took = time.monotonic() - begun
    admitted = seen.codes[200]
    assert admitted <= 1.05 * (rate * took + burst)
    assert admitted >= 0.95 * rate * seconds
    assert set(seen.codes) == {200, 429}
    assert seen.refusal is not None
    headers, body = seen.refusal
    assert headers["retry-after"] == "1"
    error = json.loads(body)
    assert error["detail"].startswith("namespace micro may make 200 requests a second")
    assert 0 < error["retry_after"] <= 1


async def test_doors_share_what_may_be_under_way() -> None:
    async with town() as (here, doors, _, most):
        await in_force(doors)
        await here.limits.set("service", "echo", concurrency=5)
        await eventually(lambda: _known_to(here, doors), within=PROMPT)
        most[0] = 0
        seen = await clients(doors, [6, 6], 2.0, PATH + "?wait=0.02")
        assert most[0] <= 5
        assert seen.codes[429]
        assert seen.codes[200] >= 100
        assert seen.refusal is not None
        assert b"service echo may have 5 requests under way" in seen.refusal[1]
        # One at one door is let in by what the other brings back.
        assert await eventually(lambda: _served(doors[1]), within=PROMPT)


async def _served(door: Child) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    try:
        return (await get(reader, writer, PATH))[0] == 200
    finally:
        writer.close()


async def _known_to(here: Here, doors: list[Child]) -> bool:
    """Each door asks the limiter for what it serves."""
    for door in doors:
        await _served(door)
    answer = await here.client.call("limits", "Limits.Usage", {})
    return [use["doors"] for use in answer["limits"]] == [len(doors)]


async def test_a_limiter_that_is_killed_stops_nobody() -> None:
    """Its loss costs a burst at most, and each door goes by its part until there is another."""
    rate, burst, seconds = 100, 100, 4.0
    async with town() as (here, doors, limiter, _):
        await in_force(doors)
        await here.limits.set("namespace", rate=rate, burst=burst)
        asking = asyncio.create_task(clients(doors, [5, 5], seconds))
        begun = time.monotonic()
        await asyncio.sleep(1)
        await limiter.kill()
        async with child("limiter", here.bootstrap.run):
            seen = await asking
            took = time.monotonic() - begun
    assert set(seen.codes) == {200, 429}
    admitted = seen.codes[200]
    assert admitted >= 0.9 * rate * seconds
    # A door may have used up what it was lent while the limiter died, and be lent it again.
    assert admitted <= 1.02 * (rate * took + 2 * burst)


async def test_limits_are_set_live_and_a_bad_one_is_not_taken() -> None:
    async with town() as (here, doors, _, _):
        await in_force(doors)
        await here.limits.set("route", "echo.Echo.Call", rate=0.001)
        await in_force(doors, 429)
        await here.config.set("limits.route", 5)
        standing = await here.limits.list()
        assert standing.problem == "limits.route is '5', not an object"
        assert [rule.name for rule in standing.rules] == ["echo.Echo.Call"]
        await in_force(doors, 429)
        await here.config.delete("limits")
        await in_force(doors)
