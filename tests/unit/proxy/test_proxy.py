"""The gRPC door over a platform in this process, by grpc's own client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc
import msgspec
import pytest

from micro_ray import Service
from micro_ray.context import Context
from micro_ray.errors import CODES, BadRequest, MicroError, NotFound, from_dict, make
from micro_ray.serve.proxy import split
from micro_ray.wire.statuses import DETAILS, code_of, details_of, error_of
from tests.unit.api import services
from tests.unit.api.services import Probe
from tests.unit.proxy.door import SETTINGS, opened

pytestmark = pytest.mark.timeout(60)

encode, decode = msgspec.json.encode, msgspec.json.decode


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
async def channel(probe: Probe) -> AsyncIterator[Any]:
    async with opened(services.echo(probe), services.streams(probe)) as here:
        yield here.channel


def failed(raised: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> MicroError:
    trailing: Any = raised.value.trailing_metadata()
    error = error_of(trailing)
    assert error is not None
    return error


async def unary(channel: Any, path: str, value: Any, **options: Any) -> Any:
    return decode(await channel.unary_unary(path)(encode(value), **options))


async def test_unary(channel: Any) -> None:
    for path in ("/echo.Echo/Call", "/ECHO.echo/call"):
        assert await unary(channel, path, {"name": "Ann"}) == {"message": "Hello Ann"}
    by_metadata = {"metadata": (("micro-service", "echo"),)}
    assert await unary(channel, "/Echo/Call", {}, **by_metadata) == {"message": "Hello World"}


async def test_bytes_are_untouched(channel: Any) -> None:
    body = bytes(range(256)) * 100
    assert await channel.unary_unary("/echo.Echo/Raw")(body) == body


async def test_metadata_and_deadline(channel: Any) -> None:
    sent = (("authorization", "Bearer x"), ("x-mine", "1"), ("micro-namespace", "other"))
    seen = await unary(channel, "/echo.Echo/Context", {}, metadata=sent, timeout=7)
    assert seen["namespace"] == "micro"
    assert "authorization" not in seen["metadata"]  # it is for auth alone
    assert seen["metadata"]["x-mine"] == "1"
    assert 0 < seen["remaining"] < 7.1  # gRPC rounds a time-out up


@pytest.mark.parametrize(("host", "source"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1")])
async def test_auth_alone_gets_the_credential_and_where_it_comes_from(
    host: str, source: str
) -> None:
    service = Service("auth")

    @service.endpoint(name="Auth.Seen")
    async def seen(context: Context) -> dict[str, str]:
        return dict(context.metadata)

    sent = (("authorization", "Bearer x"), ("micro-source", "9.9.9.9"))
    settings = replace(SETTINGS, host=host)
    async with opened(service, services.echo(Probe()), settings=settings) as door:
        found = await unary(door.channel, "/auth.Auth/Seen", {}, metadata=sent)
        assert (found["authorization"], found["micro-source"]) == ("Bearer x", source)
        found = await unary(door.channel, "/echo.Echo/Context", {}, metadata=sent)
        assert not {"authorization", "micro-source"} & set(found["metadata"])


async def test_streams(channel: Any) -> None:
    served = channel.unary_stream("/streams.Streams/Count")(encode({"to": 4}))
    assert [decode(m)["value"] async for m in served] == [1, 2, 3, 4]
    numbers = [encode({"value": n}) for n in (1, 2, 3)]
    summed = await channel.stream_unary("/streams.Streams/Sum")(iter(numbers))
    assert decode(summed) == {"value": 6}


@pytest.mark.parametrize("code", sorted(CODES))
async def test_every_error_arrives_whole(channel: Any, code: int) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await unary(channel, "/echo.Echo/Fail", {"code": code, "retry_after": 2.5})
    error = failed(raised)
    assert raised.value.code() == code_of(CODES[code]("", ""))
    assert (error.code, error.detail, error.retry_after) == (code, f"as asked: {code}", 2.5)


async def test_a_late_error_of_a_stream(channel: Any) -> None:
    served = channel.unary_stream("/streams.Streams/Count")(encode({"to": 2, "fail": 409}))
    assert [decode(await served.read())["value"] for _ in range(2)] == [1, 2]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await served.read()
    assert failed(raised).code == 409


@pytest.mark.parametrize("path", ["/nobody.Echo/Call", "/echo.Echo/Nothing"])
async def test_unknown(channel: Any, path: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await unary(channel, path, {})
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    assert failed(raised).code == 404


async def test_too_large(channel: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await channel.unary_unary("/echo.Echo/Raw")(b"x" * (SETTINGS.max_message + 1))
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_leaving_cancels_the_call_behind(channel: Any, probe: Probe) -> None:
    call = channel.unary_unary("/echo.Echo/Hang")(encode({"name": "a"}))
    waiting = asyncio.ensure_future(call)
    async with asyncio.timeout(20):
        while not probe.begun["a"]:
            await asyncio.sleep(0.01)
        call.cancel()
        while not probe.cancelled["a"]:
            await asyncio.sleep(0.01)
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_split() -> None:
    assert split("/a.b.Foo/Bar") == ("a.b", "Foo", "Bar")
    assert split("/Foo/Bar", "a") == ("a", "Foo", "Bar")
    for bad in ("", "/", "/a", "a.b/c", "/a.b/", "//b", "/a.b/c/d", "/a./c", "/a.b/" + "c" * 2000):
        with pytest.raises(BadRequest):
            split(bad)
    with pytest.raises(NotFound):
        split("/Foo/Bar")


def test_a_status_fits_into_metadata() -> None:
    error = make(503, "i" * 600, "é" * 16_000, 1.0)
    assert len(details_of(error)) < 5000
    found = error_of([(DETAILS, details_of(error))])
    assert found is not None
    assert (found.code, found.retry_after) == (503, 1.0)
    assert found.detail.endswith("…")
    assert error_of([(DETAILS, b"\xff\xff")]) is None
    assert from_dict(found.to_dict()).detail == found.detail


async def test_the_deadline_ends_the_call_behind(channel: Any, probe: Probe) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await unary(channel, "/echo.Echo/Hang", {"name": "late"}, timeout=1.0)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(20):
        while probe.begun["late"] != probe.cancelled["late"]:
            await asyncio.sleep(0.01)


async def test_a_credential_that_is_too_long(channel: Any) -> None:
    sent = (("authorization", "x" * 8193),)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await unary(channel, "/echo.Echo/Call", {}, metadata=sent)
    assert failed(raised).code == 431


async def test_too_much_metadata(channel: Any) -> None:
    sent = (("x-much", "x" * 2 * SETTINGS.max_metadata),)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await unary(channel, "/echo.Echo/Call", {}, metadata=sent)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_both_ways_in_turn(channel: Any) -> None:
    call = channel.stream_stream("/streams.Streams/Double")()
    for value in range(5):
        await call.write(encode({"value": value}))
        assert decode(await call.read()) == {"value": value * 2}
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_leaving_a_stream_cancels_it(channel: Any, probe: Probe) -> None:
    call = channel.unary_stream("/streams.Streams/Silent")(encode({"name": "s"}))
    async with asyncio.timeout(20):
        while not probe.begun["s"]:
            await asyncio.sleep(0.01)
        call.cancel()
        while not probe.cancelled["s"]:
            await asyncio.sleep(0.01)
