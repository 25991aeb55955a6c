"""gRPC's health protocol: of the door, of services, and while they come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from micro_ray.api.visitors import Visitors
from micro_ray.router.table import Table
from micro_ray.serve.health import Health, Status, question, status_in
from tests.unit.api import services
from tests.unit.api.services import Probe
from tests.unit.proxy.door import Opened, opened

pytestmark = pytest.mark.timeout(60)

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"


@pytest.fixture
async def door() -> AsyncIterator[Opened]:
    async with opened(services.echo(Probe())) as here:
        yield here


async def check(channel: Any, service: str = "") -> Status:
    return status_in(await channel.unary_unary(CHECK)(question(service)))


@pytest.mark.parametrize("service", ["", "echo", "ECHO", "echo.Echo", "registry"])
async def test_what_serves(door: Opened, service: str) -> None:
    assert await check(door.channel, service) is Status.SERVING


@pytest.mark.parametrize("service", ["nobody", "echo.Nothing", "echo.", ".", "x" * 1000])
async def test_what_is_not_there(door: Opened, service: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await check(door.channel, service)
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    call = door.channel.unary_stream(WATCH)(question(service))
    assert status_in(await call.read()) is Status.SERVICE_UNKNOWN
    call.cancel()


@pytest.mark.parametrize("path", [CHECK, WATCH])
async def test_what_is_no_question(door: Opened, path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await door.channel.unary_stream(path)(b"\xff\xff").read()
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_before_the_first_table() -> None:
    ready: list[bool] = []
    health = Health(Table(), Visitors(), ready=lambda: bool(ready), leaving=asyncio.Event())
    assert health.of("") is Status.NOT_SERVING
    ready.append(True)
    assert health.of("") is Status.SERVING


async def test_a_service_that_comes_and_goes(door: Opened) -> None:
    call = door.channel.unary_stream(WATCH)(question("streams"))
    async with asyncio.timeout(30):
        assert status_in(await call.read()) is Status.SERVICE_UNKNOWN
        service = services.streams(Probe())
        await door.here.serve(service, "streams-1")
        assert status_in(await call.read()) is Status.SERVING
        await service.stop()
        assert status_in(await call.read()) is Status.NOT_SERVING
    call.cancel()


async def test_leaving_tells_who_watches_and_waits_for_nobody(door: Opened) -> None:
    """A drain of a minute ends at once: watches and reflection end, and they are told why."""
    watch = door.channel.unary_stream(WATCH)(question())
    assert status_in(await watch.read()) is Status.SERVING
    name = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    asking = door.channel.stream_stream(name)()
    question_of_it = reflection_pb2.ServerReflectionRequest(list_services="")
    await asking.write(question_of_it.SerializeToString())
    assert await asking.read()  # it has begun: what has not is cancelled when the door leaves
    async with asyncio.timeout(30):
        await door.listener.stop(60.0)
        assert not door.listener.serving
        assert status_in(await watch.read()) is Status.NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        assert await asking.read() is grpc.aio.EOF
