"""A client that works by reflection alone: it lists, describes and calls what it did not know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import msgspec
import pytest

from micro_ray import Service
from micro_ray.serve.forms import SAID
from tests.fixtures.explorer import Explorer, NotThere
from tests.unit.api import services
from tests.unit.api.services import Probe
from tests.unit.proxy.door import Opened, opened
from tests.unit.proxy.test_proxy import failed

pytestmark = pytest.mark.timeout(60)

PROTO, JSON = ((SAID, "application/grpc+proto"),), ((SAID, "application/grpc+json"),)
OWN = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
]


@pytest.fixture
async def door() -> AsyncIterator[Opened]:
    probe = Probe()
    async with opened(services.echo(probe), services.streams(probe)) as here:
        yield here


@pytest.fixture
def explorer(door: Opened) -> Explorer:
    return Explorer(door.channel)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_what_there_is(door: Opened, version: str) -> None:
    explorer = Explorer(door.channel, version)
    found = await explorer.services()
    assert {"echo.Echo", "streams.Streams", "registry.Registry", *OWN} <= set(found)
    for name in found:
        assert (await explorer.describe(name)).full_name == name


async def test_what_a_method_takes(explorer: Explorer) -> None:
    streams = await explorer.describe("streams.Streams")
    kinds = {m.name: (m.client_streaming, m.server_streaming) for m in streams.methods}
    assert kinds["Count"] == (False, True)
    assert kinds["Sum"] == (True, False)
    assert kinds["Double"] == (True, True)
    everything = (await explorer.method("echo.Echo/Everything")).input_type
    types = {
        f.name: (f.message_type.name if f.message_type else f.cpp_type, f.is_repeated)
        for f in everything.fields
    }
    assert types["place"] == ("Place", False)
    assert types["tags"][1]
    assert types["labels"] == ("LabelsEntry", True)
    assert types["either"] == ("Value", False)


async def test_all_four_kinds(explorer: Explorer) -> None:
    assert await explorer.call("echo.Echo/Call", {"name": "Ann"}) == [{"message": "Hello Ann"}]
    counted = await explorer.call("streams.Streams/Count", {"to": 3})
    assert counted == [{"value": "1"}, {"value": "2"}, {"value": "3"}]
    summed = await explorer.call("streams.Streams/Sum", {"value": 1}, {"value": 2})
    assert summed == [{"value": "3"}]
    doubled = await explorer.call("streams.Streams/Double", {"value": 1}, {"value": 4})
    assert doubled == [{"value": "2"}, {"value": "8"}]


async def test_what_is_not_said_is_not_said_to_the_service(explorer: Explorer) -> None:
    assert await explorer.call("echo.Echo/Call", {}) == [{"message": "Hello World"}]
    assert await explorer.call("echo.Echo/Call", {"name": ""}) == [{"message": "Hello "}]
    (answer,) = await explorer.call("echo.Echo/Everything", {})
    assert (answer["colour"], answer["maybe"], answer["pair"]) == ("red", "7", [0.0, ""])
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await explorer.call("echo.Echo/Fail", {})
    assert "code" in failed(raised).detail
    assert failed(raised).code == 400


async def test_every_type_there_and_back(explorer: Explorer) -> None:
    sent = {
        "count": "-5", "ratio": 1.5, "sure": True, "text": "ä", "tags": ["a", ""],
        "numbers": ["9007199254740993", "0"], "pair": [3, "x"], "place": {"city": "B", "zip": "7"},
        "labels": {"a": "b", "": ""}, "colour": "1", "maybe": "0", "either": "word",
        "when": "2026-01-02T03:04:05",
    }  # fmt: skip
    (answer,) = await explorer.call("echo.Echo/Everything", sent)
    assert answer == sent
    anything: dict[str, Any] = {"a": [1, None, {"b": False}], "c": 2.5}
    assert await explorer.call("echo.Echo/Free", anything) == [anything]


async def test_bytes(door: Opened, explorer: Explorer) -> None:
    """Bytes pass as they are; who wants them in a message says so."""
    (answer,) = await explorer.call("echo.Echo/BytesOf", {"size": 3})
    assert answer == "eHh4"
    assert await explorer.call("echo.Echo/Raw", "eHh4", metadata=PROTO) == ["eHh4"]
    raw = door.channel.unary_unary("/echo.Echo/Raw")
    for body in (b"\n\x03xxx", b"{}", b""):
        assert await raw(body) == body
    (pieces,) = await explorer.call("streams.Streams/Mirror", "eHh4", metadata=PROTO)
    assert pieces == "eHh4"


@pytest.mark.parametrize("body", [b"{}", b'{"name":"A"}', b"\x07[", b'{"name":'])
async def test_json_is_left_alone(door: Opened, body: bytes) -> None:
    """What begins with a brace is JSON by itself; anything is when the client says so."""
    call = door.channel.unary_unary("/echo.Echo/Call")
    said = () if body.startswith(b"{") else JSON
    if body.endswith(b"}"):
        assert msgspec.json.decode(await call(body, metadata=said))["message"].startswith("Hello")
    else:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(body, metadata=said)
        assert "malformed application/json" in failed(raised).detail


async def test_an_answer_before_the_first_message(door: Opened) -> None:
    """The form is protobuf until the client has said otherwise."""
    listening = door.channel.stream_stream("/streams.Streams/Double")
    call = listening(metadata=JSON)
    await call.write(b' {"value": 2}')
    assert await call.read() == b'{"value":4}'
    call.cancel()
    call = listening()
    await call.write(b'{"value": 2}')
    assert await call.read() == b'{"value":4}'
    await call.write(b' {"value": 3}')  # the form stays that of the first
    assert await call.read() == b'{"value":6}'
    call.cancel()


@pytest.mark.parametrize("path", ["/echo.Echo/Call", "/streams.Streams/Double"])
async def test_what_is_neither(door: Opened, path: str) -> None:
    """A stream is given up with the first message that cannot be read, though it goes on."""
    call = door.channel.stream_stream(path)()
    await call.write(b"\xff\xff\xff")
    if path == "/echo.Echo/Call":  # a unary method waits for the end
        await call.done_writing()
    async with asyncio.timeout(20):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert SAID in failed(raised).detail


async def test_a_content_type_that_is_not_known(door: Opened) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await door.channel.unary_unary("/echo.Echo/Call")(b"{}", metadata=((SAID, "text/xml"),))
    assert failed(raised).code == 415


async def test_names_that_are_not_there(explorer: Explorer) -> None:
    for name in ("nobody.Echo", "echo.Nothing", "", ".", "echo", "x" * 5000, "grpc.health.v1.No"):
        with pytest.raises(NotThere):
            await explorer.describe(name)
    for question in (
        {"file_by_filename": "micro/nobody.proto"},
        {"file_containing_extension": {"containing_type": "echo.Echo", "extension_number": 5}},
        {},
    ):
        answer = await explorer.asked(**question)
        assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    for name in ("micro/echo.proto", "grpc/health/v1/health.proto"):
        assert (await explorer.asked(file_by_filename=name)).HasField("file_descriptor_response")
    answer = await explorer.asked(all_extension_numbers_of_type="echo.EchoCallRequest")
    assert answer.all_extension_numbers_response.base_type_name == "echo.EchoCallRequest"
    assert (await explorer.describe("echo.Echo")).full_name == "echo.Echo"


async def test_what_is_no_question(door: Opened) -> None:
    call = door.channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")()
    await call.write(b"\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_service_that_comes_later_and_changes(door: Opened) -> None:
    """What is described follows the table; a field keeps its number."""
    numbers = []
    for parameters in (("b",), ("a", "b", "c")):
        service = _late(parameters)
        await door.here.serve(service, "late-svc-1")
        explorer = Explorer(door.channel)
        async with asyncio.timeout(20):
            while True:
                table = door.network.table
                entry = table.entry("micro", "late-svc")
                found = entry.endpoints[0].request["properties"] if entry else {}
                if len(found) == len(parameters):
                    break
                await table.changed()
        method = await explorer.method("late_svc.Late/Call")
        numbers.append(method.input_type.fields_by_name["b"].number)
        assert {f.name for f in method.input_type.fields} == set(parameters)
        assert await explorer.call("late_svc.Late/Call", {"b": "x"}) == [{"said": "x"}]
        await service.stop()
    assert numbers[0] == numbers[1]


def _late(parameters: tuple[str, ...]) -> Service:
    service = Service("late-svc")
    if len(parameters) == 1:

        @service.endpoint(name="Late.Call")
        async def one(b: str = "") -> dict[str, str]:
            return {"said": b}

    else:

        @service.endpoint(name="Late.Call")
        async def three(a: str = "", b: str = "", c: int = 0) -> dict[str, str]:
            return {"said": b}

    return service
