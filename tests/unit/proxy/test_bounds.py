"""What the gRPC door lets in: limits, calls under way, memory; and its port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import msgspec
import pytest
from google.rpc import error_details_pb2, status_pb2

from micro_ray.errors import Unavailable
from micro_ray.limits import Kind, Limit, Rule
from micro_ray.limits.gate import ADMITTED, Gate
from micro_ray.limits.pressure import Pressure
from micro_ray.limits.rules import Rules
from micro_ray.serve.grpc_listener import GrpcListener
from micro_ray.serve.health import question
from micro_ray.wire.statuses import DETAILS
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.api import services
from tests.unit.api.services import Probe
from tests.unit.proxy.door import SETTINGS, Opened, opened
from tests.unit.proxy.test_health import WATCH, check
from tests.unit.proxy.test_proxy import failed, unary

pytestmark = pytest.mark.timeout(60)

HANG = b'{"name":"h"}'


@contextlib.asynccontextmanager
async def limited(probe: Probe, limit: Limit, **options: Any) -> AsyncIterator[Opened]:
    """A door of one, whose limiter is away: its part of a limit is all of it."""
    gate = Gate(doors=1)
    gate.follow("micro")
    gate.rule("micro", Rules((Rule(kind=Kind.NAMESPACE, limit=limit),)))
    gate.alone()
    async with opened(services.echo(probe), services.streams(probe), gate=gate, **options) as here:
        yield here


async def refused(channel: Any, path: str = "/echo.Echo/Call") -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await channel.unary_unary(path)(b"{}")
    return raised.value


async def test_a_rate_is_kept_and_told() -> None:
    async with limited(Probe(), Limit(rate=0.01, burst=3)) as door:
        for _ in range(3):
            await unary(door.channel, "/echo.Echo/Call", {})
        error = await refused(door.channel)
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        trailing: Any = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailing[DETAILS])
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(info)
        assert status.details[1].Unpack(retry)
        assert (info.reason, info.metadata["code"]) == ("TooManyRequests", "429")
        seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        assert seconds == pytest.approx(float(info.metadata["retry_after"]), abs=0.001)
        assert 0 < seconds <= 100
        stream = door.channel.stream_stream("/streams.Streams/Double")()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stream.read()
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        await check(door.channel)  # the door's own are not counted


async def test_a_place_is_given_back_however_a_call_ends() -> None:
    probe = Probe()
    async with limited(probe, Limit(concurrency=1)) as door:
        with pytest.raises(grpc.aio.AioRpcError):
            await unary(door.channel, "/echo.Echo/Crash", {})
        call = door.channel.unary_unary("/echo.Echo/Hang")(HANG)
        await eventually(lambda: probe.begun["h"])
        assert (await refused(door.channel)).code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        call.cancel()
        await eventually(lambda: not door.proxy.metrics.in_flight)
        await unary(door.channel, "/echo.Echo/Call", {})
        assert not door.proxy.metrics.in_flight


async def test_the_service_is_told_that_it_was_admitted() -> None:
    async with limited(Probe(), Limit(rate=1000)) as door:
        sent = ((ADMITTED, "no"),)
        seen = await unary(door.channel, "/echo.Echo/Context", {}, metadata=sent)
        assert seen["metadata"][ADMITTED] == "1"
    async with opened(services.echo(Probe())) as door:
        seen = await unary(door.channel, "/echo.Echo/Context", {}, metadata=sent)
        assert ADMITTED not in seen["metadata"]


async def test_calls_under_way_are_bounded() -> None:
    probe = Probe()
    settings = replace(SETTINGS, max_in_flight=2)
    async with opened(services.echo(probe), settings=settings) as door:
        calls = [door.channel.unary_unary("/echo.Echo/Hang")(HANG) for _ in range(2)]
        await eventually(lambda: probe.begun["h"] == 2)
        error = await refused(door.channel)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        probe.release.set()
        for call in calls:
            assert msgspec.json.decode(await call) == {"name": "h"}
        await unary(door.channel, "/echo.Echo/Call", {})


async def test_calls_that_only_the_door_knows_are_bounded_too() -> None:
    """Those that ask the door itself, and those whose message does not come."""
    async with opened(services.echo(Probe()), settings=replace(SETTINGS, max_in_flight=2)) as door:
        watches = [door.channel.unary_stream(WATCH)(question()) for _ in range(2)]
        for watch in watches:
            await watch.read()
        silent = [door.channel.stream_stream("/echo.Echo/Call")() for _ in range(2)]
        for call in silent:
            await call.wait_for_connection()

        error = await refused(door.channel)
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert DETAILS not in dict(error.trailing_metadata() or ())  # it is grpc's own
        for call in (*watches, *silent):
            call.cancel()

        async def good() -> bool:
            return bool(await unary(door.channel, "/echo.Echo/Call", {}))

        await eventually(good, within=PROMPT)


async def test_shedding_before_memory_goes() -> None:
    used = [0.5]
    pressure = Pressure(0.9, look=lambda: used[0], clock=iter(range(10**6)).__next__)
    async with opened(services.echo(Probe()), pressure=pressure) as door:
        await unary(door.channel, "/echo.Echo/Call", {})
        used[0] = 0.95
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await unary(door.channel, "/echo.Echo/Call", {})
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        assert failed(raised).retry_after == 1.0
        assert "95%" in failed(raised).detail
        used[0] = 0.5
        await unary(door.channel, "/echo.Echo/Call", {})


async def test_streams_of_one_connection_are_bounded() -> None:
    """What is beyond waits at the client until another has ended."""
    probe = Probe()
    async with opened(services.echo(probe), settings=replace(SETTINGS, max_streams=2)) as door:
        await check(door.channel)  # the client knows the bound of the connection then
        calls = [door.channel.unary_unary("/echo.Echo/Hang")(HANG) for _ in range(3)]
        waiting = [asyncio.ensure_future(call) for call in calls]
        await eventually(lambda: probe.begun["h"] == 2)
        calls[0].cancel()
        await eventually(lambda: probe.begun["h"] == 3)
        probe.release.set()
        await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_port_that_another_program_has(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = replace(SETTINGS, host=host, port=other.getsockname()[1])
        listener = GrpcListener([], settings, asyncio.Event())
        with pytest.raises(Unavailable, match="cannot listen"):
            await listener.start()
        assert not listener.serving


async def test_replicas_share_a_port() -> None:
    async with opened(services.echo(Probe())) as door:
        settings = replace(SETTINGS, port=door.listener.bound)
        second = GrpcListener([door.proxy], settings, asyncio.Event())
        await second.start()
        assert second.serving
        await second.stop(0)
        await unary(door.channel, "/echo.Echo/Call", {})
