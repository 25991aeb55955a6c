"""A gate and its supply in one process: what a request waits for, and what it does not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from micro_ray import Service
from micro_ray.errors import MicroError, TooManyRequests
from micro_ray.limits import Limit
from micro_ray.limits.gate import FREE, Gate
from micro_ray.limits.pressure import Pressure, used
from micro_ray.limits.rules import Rules, parse
from micro_ray.sdk.testing import Here, platform
from micro_ray.wire.gate import Supply
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.api.door import open_door

CALL = ("micro", "", "echo", "Echo.Call")


def echo(*, limited: bool = False) -> Service:
    service = Service("echo", limited=limited)

    @service.endpoint
    async def call(name: str = "World") -> dict[str, str]:
        return {"message": f"Hello {name}"}

    return service


@asynccontextmanager
async def supplied(here: Here, gate: Gate) -> AsyncIterator[Gate]:
    async with Supply(gate, await here.network()):
        yield gate


def alone(document: object, clock: list[float], *, doors: int = 1) -> Gate:
    """A gate without a limiter, with these rules."""
    gate = Gate(doors=doors, clock=lambda: clock[0])
    gate.follow("micro")
    gate.rule("micro", Rules(parse(document), 1))
    gate.alone()
    return gate


async def test_what_nothing_limits_is_free() -> None:
    gate = alone({"services": {"other": {"rate": 1}}}, [0.0])
    assert gate.admit(*CALL) is FREE
    assert alone({}, [0.0]).admit(*CALL) is FREE


async def test_alone_a_door_admits_its_part() -> None:
    clock = [0.0]
    gate = alone({"namespace": {"rate": 10, "burst": 8, "concurrency": 100}}, clock, doors=4)
    assert [gate.admit(*CALL) for _ in range(2)]
    with pytest.raises(TooManyRequests) as raised:
        gate.admit(*CALL)
    assert raised.value.detail == (
        "namespace micro may make 10 requests a second (8 at once); come again later"
    )
    assert raised.value.retry_after == pytest.approx(0.4)
    clock[0] = 0.4
    assert gate.admit(*CALL)


async def test_a_release_is_one() -> None:
    gate = alone({"services": {"echo": {"concurrency": 1}}}, [0.0])
    first = gate.admit(*CALL)
    assert first is not None
    with pytest.raises(TooManyRequests, match="service echo may have 1 requests under way"):
        gate.admit(*CALL)
    first.release()
    first.release()
    assert gate.admit(*CALL)
    with pytest.raises(TooManyRequests):
        gate.admit(*CALL)


async def test_one_limit_that_refuses_costs_the_others_nothing() -> None:
    clock = [0.0]
    gate = alone({"namespace": {"rate": 2}, "services": {"echo": {"rate": 0.5}}}, clock)
    assert gate.admit(*CALL)
    for _ in range(5):
        with pytest.raises(TooManyRequests, match="service echo"):
            gate.admit(*CALL)
    assert gate.admit("micro", "", "other", "Other.Call")


async def test_accounts_have_buckets_of_their_own() -> None:
    gate = alone({"account": {"rate": 1}}, [0.0])
    assert gate.admit("micro", "ada", "echo", "Echo.Call")
    assert gate.admit("micro", "bob", "echo", "Echo.Call")
    with pytest.raises(TooManyRequests, match="account ada may make 1 requests a second"):
        gate.admit("micro", "ada", "other", "Other.Call")


async def test_the_default_of_the_settings_is_for_namespaces_without_one() -> None:
    gate = Gate(default=Limit(rate=1.0), clock=lambda: 0.0)
    gate.alone()
    for namespace, document in (("one", {}), ("two", {"namespace": {"rate": 1000}})):
        gate.follow(namespace)
        gate.rule(namespace, Rules(parse(document), 1))
    assert gate.admit("one", "", "echo", "Echo.Call")
    with pytest.raises(TooManyRequests, match="namespace one"):
        gate.admit("one", "", "echo", "Echo.Call")
    assert all(gate.admit("two", "", "echo", "Echo.Call") for _ in range(100))


async def test_with_a_limiter_a_request_waits_once_and_others_do_not() -> None:
    async with platform() as here:
        await here.limits.set("namespace", rate=1000, burst=3, concurrency=2)
        async with supplied(here, Gate()) as gate:
            first = await gate.obtain(*CALL)
            assert first is not FREE
            # One slot more was asked for with it.
            second = gate.admit(*CALL) or await gate.obtain(*CALL)
            with pytest.raises(TooManyRequests, match="2 requests under way"):
                _ = gate.admit(*CALL) or await gate.obtain(*CALL)
            (use,) = await here.limits.usage()
            assert (use.lent, use.doors) == (2, 1)
            first.release()
            second.release()
            await eventually(lambda: _lent(here, 0), within=PROMPT)


async def _lent(here: Here, wanted: int) -> bool:
    return sum(use.lent for use in await here.limits.usage()) == wanted


async def test_slots_of_a_door_that_goes_are_anothers() -> None:
    async with platform() as here:
        await here.limits.set("namespace", concurrency=1)
        async with supplied(here, Gate()) as staying:
            async with supplied(here, Gate()) as going:
                await going.obtain(*CALL)
                with pytest.raises(TooManyRequests):
                    await staying.obtain(*CALL)
            await eventually(lambda: _enters(staying), within=PROMPT)


async def _enters(gate: Gate) -> bool:
    try:
        return bool(gate.admit(*CALL) or await gate.obtain(*CALL))
    except TooManyRequests:
        return False


async def test_a_change_is_in_force_and_a_namespace_is_followed_when_it_comes() -> None:
    async with platform() as here, supplied(here, Gate()) as gate:
        assert await gate.obtain(*CALL) is FREE
        await here.limits.set("namespace", rate=0.001, namespace="tenant")
        admission = await gate.obtain("tenant", "", "echo", "Echo.Call")
        assert admission is not FREE
        with pytest.raises(TooManyRequests, match="namespace tenant"):
            await gate.obtain("tenant", "", "echo", "Echo.Call")
        begun = time.monotonic()
        await here.limits.unset("namespace", namespace="tenant")
        await eventually(lambda: gate.admit("tenant", "", "e", "E.C") is FREE, within=PROMPT)
        print(f"in force after {(time.monotonic() - begun) * 1e3:.1f} ms")


async def test_a_limiter_that_is_away_and_comes_back() -> None:
    async with platform() as here:
        await here.limits.set("namespace", concurrency=4)
        async with supplied(here, Gate(doors=2)) as gate:
            held = await gate.obtain(*CALL)
            await here.hosts["limits"].close()
            await eventually(lambda: gate.stale, within=PROMPT)
            assert await gate.obtain(*CALL) is not FREE
            held.release()


async def test_a_service_that_is_limited_keeps_it_for_callers_without_a_door() -> None:
    async with platform() as here:
        await here.serve(echo(limited=True))
        await here.limits.set("service", "echo", rate=0.001, burst=1)
        await here.limits.set("namespace", rate=0.001)

        async def refused() -> bool:
            try:
                await here.client.call("echo", "Echo.Call", {})
            except TooManyRequests as error:
                return error.detail.startswith("service echo may make 0.001 requests")
            return False

        assert await eventually(refused, within=PROMPT)
        # What a door has let in is not counted again.
        network = await here.network()
        gate = Gate(kinds=())
        async with Supply(gate, network), open_door(network, gate=gate) as door:
            for _ in range(3):
                assert (await door.http.get("/echo/call")).status_code == 200


@pytest.mark.parametrize(
    ("kind", "name", "numbers", "words"),
    [
        ("realm", "", {"rate": 1}, "kind 'realm' is none of namespace, account"),
        ("namespace", "micro", {"rate": 1}, "has no name"),
        ("account", "a b", {"rate": 1}, "name 'a b'"),
        ("route", "echo.Call", {"rate": 1}, "is not like service.Handler.Method"),
        ("service", "echo", {}, "give a rate, a burst or a concurrency"),
        ("service", "echo", {"rate": -1}, "rate is '-1'"),
        ("service", "echo", {"burst": 5}, "burst goes with a rate"),
        ("service", "echo", {"concurrency": 10**9}, "not a whole number from 1 to 1000000"),
    ],
)
async def test_what_cannot_be_is_refused(
    kind: str, name: str, numbers: dict[str, int], words: str
) -> None:
    async with platform() as here:
        with pytest.raises(MicroError) as raised:
            await here.limits.set(kind, name, **numbers)  # type: ignore[arg-type]
        assert words in raised.value.detail
        assert await here.config.items() == []


async def test_memory_that_is_short_refuses_with_503() -> None:
    clock, fraction = [0.0], [0.5]
    pressure = Pressure(0.9, look=lambda: fraction[0], clock=lambda: clock[0])
    async with platform() as here:
        await here.serve(echo())
        async with open_door(await here.network(), pressure=pressure) as door:
            assert (await door.http.get("/echo/call")).status_code == 200
            fraction[0] = 0.95
            assert (await door.http.get("/echo/call")).status_code == 200, "looked at seldom"
            clock[0] = 1.0
            answer = await door.http.get("/echo/call")
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["detail"] == "95% of the memory is in use here"
            assert (await door.http.get("/health")).status_code == 200
            fraction[0], clock[0] = 0.2, 2.0
            assert (await door.http.get("/echo/call")).status_code == 200


def test_memory_is_read_where_linux_says_it(tmp_path: Path) -> None:
    group = tmp_path / "cgroup" / "pod"
    (tmp_path / "proc" / "self").mkdir(parents=True)
    group.mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/pod/box\n")
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 1000 kB\nMemAvailable: 800 kB\n")
    assert used(tmp_path / "proc", tmp_path / "cgroup") == pytest.approx(0.2)
    (group / "memory.max").write_text("1000\n")
    (group / "memory.current").write_text("900\n")
    (group / "memory.stat").write_text("anon 5\ninactive_file 100\n")
    assert used(tmp_path / "proc", tmp_path / "cgroup") == pytest.approx(0.8)
    (group / "memory.max").write_text("max\n")
    assert used(tmp_path / "proc", tmp_path / "cgroup") == pytest.approx(0.2)
    assert used(tmp_path / "none", tmp_path / "none") == 0.0
    assert 0 < used() < 1
    assert not Pressure(1.0).short
