"""The gRPC door of a real platform, by grpc's own client: every kind of call, how calls end, what
is described, and its replicas killed and replaced."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import psutil
import pytest

from bench.stack import Server, micro
from micro_ray.serve.health import Status, question, status_in
from micro_ray.wire.statuses import code_of, error_of
from tests.fixtures.explorer import Explorer
from tests.fixtures.wait import PROMPT, eventually
from tests.journeys.conftest import Driver, Source

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

#: A service that waits, says whether it was let go on, and fails as it is told.
WAITS = """
import asyncio
from typing import Any
from micro_ray import Service
from micro_ray.context import Context
from micro_ray.errors import make

service = Service("waits")
ended = []

@service.endpoint
async def long(name: str) -> dict[str, str]:
    try:
        await asyncio.sleep(600)
    finally:
        ended.append(name)

@service.endpoint
async def seen() -> list[str]:
    return ended

@service.endpoint
async def fail(code: int) -> None:
    raise make(code, "", "as asked", 2.5)

@service.endpoint
async def about(context: Context) -> dict[str, Any]:
    return {"metadata": dict(context.metadata), "left": context.remaining()}
"""


@pytest.fixture(scope="module")
def services(server: Server) -> Iterator[None]:
    for name in ("helloworld", "streaming"):
        micro(server, "run", f"examples/{name}")
    yield
    for name in ("helloworld", "streaming"):
        micro(server, "kill", name)


@pytest.fixture
def waits(server: Server, source: Source) -> Iterator[None]:
    micro(server, "run", source("waits", WAITS))
    yield
    micro(server, "kill", "waits")


def channel(server: Server) -> Any:
    """A connection of its own."""
    return grpc.aio.insecure_channel(
        f"127.0.0.1:{server.proxy_port}", options=[("grpc.use_local_subchannel_pool", 1)]
    )


@pytest.fixture
async def door(server: Server) -> AsyncIterator[Any]:
    async with channel(server) as made:
        yield made


def told(error: grpc.aio.AioRpcError) -> Any:
    trailing: Any = error.trailing_metadata()
    found = error_of(trailing)
    assert found is not None
    return found


@pytest.mark.usefixtures("services")
class TestCalls:
    async def test_one_message_there_and_one_back(self, door: Any) -> None:
        call = door.unary_unary("/helloworld.Helloworld/Call")
        assert await call(b'{"name":"Alice"}') == b'{"message":"Hello Alice"}'

    async def test_streams_of_all_kinds(self, door: Any) -> None:
        counted = door.unary_stream("/streaming.Streaming/Count")(b'{"to":2}')
        assert [message async for message in counted] == [b'{"value":1}', b'{"value":2}']
        summed = door.stream_unary("/streaming.Streaming/Sum")
        assert await summed(iter([b'{"value":1}', b'{"value":2}'])) == b'{"value":3}'
        doubled = door.stream_stream("/streaming.Streaming/Double")()
        for value in range(3):
            await doubled.write(b'{"value":%d}' % value)
            assert await doubled.read() == b'{"value":%d}' % (2 * value)
        await doubled.done_writing()
        assert await doubled.read() is grpc.aio.EOF

    async def test_by_what_the_door_tells_of_it(self, door: Any) -> None:
        explorer = Explorer(door)
        names = await explorer.services()
        assert {"helloworld.Helloworld", "streaming.Streaming", "store.Store"} <= set(names)
        for name in names:
            await explorer.describe(name)
        (said,) = await explorer.call("helloworld.Helloworld/Call", {"name": "Ann"})
        assert said == {"message": "Hello Ann"}
        doubled = await explorer.call("streaming.Streaming/Double", {"value": 2}, {"value": 3})
        assert doubled == [{"value": "4"}, {"value": "6"}]
        await explorer.call("store.Store/Write", {"key": "by-grpc", "value": "ä"})
        (read,) = await explorer.call("store.Store/Read", {"key": "by-grpc"})
        (record,) = read["records"]
        assert record["value"] == "ä"

    async def test_health(self, door: Any) -> None:
        check = door.unary_unary("/grpc.health.v1.Health/Check")
        for name in ("", "helloworld", "streaming.Streaming", "store"):
            assert status_in(await check(question(name))) is Status.SERVING


@pytest.mark.usefixtures("waits")
async def test_how_calls_end(door: Any) -> None:
    """By the client's deadline, by the client, by an error: the service ends too, and the error
    arrives whole."""
    long = door.unary_unary("/waits.Waits/Long")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await long(b'{"name":"late"}', timeout=1.0)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    call = long(b'{"name":"left"}', timeout=600)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await call
    seen = door.unary_unary("/waits.Waits/Seen")

    async def both() -> bool:
        return {"late", "left"} <= set(json.loads(await seen(b"{}")))

    await eventually(both, within=PROMPT)
    for code in (404, 409, 429):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await door.unary_unary("/waits.Waits/Fail")(b'{"code":%d}' % code)
        error = told(raised.value)
        assert (error.code, error.detail, error.retry_after) == (code, "as asked", 2.5)
        assert raised.value.code() is code_of(error)
    sent = (("x-mine", "1"), ("micro-admitted", "no"))
    about = json.loads(
        await door.unary_unary("/waits.Waits/About")(b"{}", metadata=sent, timeout=9)
    )
    assert about["metadata"]["x-mine"] == "1"
    assert about["metadata"]["micro-admitted"] == "1"
    assert 0 < about["left"] < 9.1  # gRPC rounds a time-out up


def replicas(server: Server) -> dict[int, int]:
    """The replicas of the door, with how many connections each has."""
    found = {}
    for process in psutil.Process(server.pid).children(recursive=True):
        try:
            if process.cmdline()[0].startswith("ray::ServeReplica:proxy"):
                found[process.pid] = sum(
                    c.status == "ESTABLISHED" and c.laddr.port == server.proxy_port
                    for c in process.net_connections("tcp")
                )
        except (psutil.Error, IndexError):
            continue
    return found


def counted(server: Server) -> dict[str, int]:
    """Calls of helloworld that were answered, by replica, as the HTTP door shows them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    row = 'micro_proxy_requests_total{namespace="micro",service="helloworld",code="OK",pid="'
    found = [line.removeprefix(row).split('"} ') for line in lines if line.startswith(row)]
    return {pid: int(number) for pid, number in found}


@pytest.mark.usefixtures("services")
async def test_the_http_door_shows_what_each_replica_has_counted(server: Server) -> None:
    before = await asyncio.to_thread(counted, server)
    for _ in range(8):
        async with channel(server) as made:
            await made.unary_unary("/helloworld.Helloworld/Call")(b"{}")
    after = await asyncio.to_thread(counted, server)
    assert sum(after.values()) == sum(before.values()) + 8
    assert {int(pid) for pid in after} <= set(replicas(server))


@pytest.mark.usefixtures("services")
async def test_a_replica_is_killed_under_streams(server: Server) -> None:
    """Streams on the other one go on; those that broke end at once; all channels are good again,
    and another replica comes."""
    channels = [channel(server) for _ in range(16)]
    try:
        streams = [c.stream_stream("/streaming.Streaming/Double")() for c in channels]
        for stream in streams:
            await stream.write(b'{"value":1}')
            assert await stream.read() == b'{"value":2}'
        before = replicas(server)
        assert len(before) == 2
        victim = max(before, key=lambda pid: before[pid])
        lost = before[victim]
        assert lost
        waiting = [asyncio.ensure_future(stream.read()) for stream in streams]
        psutil.Process(victim).kill()
        begun = time.monotonic()
        await eventually(lambda: sum(read.done() for read in waiting) == lost, within=PROMPT)
        broken = [read for read in waiting if read.done()]
        for read in broken:
            error = read.exception()
            assert isinstance(error, grpc.aio.AioRpcError)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        print(f"[{lost} of 16 broke, seen in {time.monotonic() - begun:.2f} s] ", end="")
        for stream, read in zip(streams, waiting, strict=True):
            if read not in broken:
                await stream.write(b'{"value":3}')
                async with asyncio.timeout(PROMPT):
                    assert await read == b'{"value":6}'
        for made in channels:
            call = made.unary_unary("/helloworld.Helloworld/Call")
            said = await call(b"{}", wait_for_ready=True, timeout=PROMPT)
            assert said == b'{"message":"Hello World"}'
        await eventually(lambda: len(replicas(server)) == 2, within=60)
        assert victim not in replicas(server)
    finally:
        for made in channels:
            await made.close()


#: Joins the platform's Ray and brings the door to ``count`` replicas of a new version.
ROLL = """
from dataclasses import replace
from ray import serve
from micro_ray.serve.proxy_door import NAME, application
from micro_ray.settings import load
settings = load()
settings = replace(
    settings,
    key=(settings.state / "platform.key").read_text(),
    proxy=replace(settings.proxy, replicas={count}, max_in_flight={count}000),
)
serve.run(application(settings), name=NAME, route_prefix=None)
print("rolled")
"""


@pytest.mark.usefixtures("services")
async def test_replacing_replicas_breaks_off_no_call(server: Server, driver: Driver) -> None:
    """Every replica is replaced, to three and back to two, while channels that stay and channels
    that are made anew are called on. A call that comes in the moment in which a replica leaves is
    refused by grpc's server, without a handler having seen it: CANCELLED, and no details. That is
    one at most of each channel and replica."""
    ending, good = asyncio.Event(), 0
    failures: list[str] = []

    async def calling(fresh: bool) -> None:
        nonlocal good
        made = channel(server)
        while not ending.is_set():
            try:
                call = made.unary_unary("/helloworld.Helloworld/Call")
                assert await call(b"{}", timeout=PROMPT) == b'{"message":"Hello World"}'
                good += 1
            except grpc.aio.AioRpcError as error:
                failures.append(f"{error.code().name} {error.details()}")
            if fresh:
                await made.close()
                made = channel(server)
        await made.close()

    tasks = [asyncio.create_task(calling(fresh)) for fresh in (False, False, False, True)]
    try:
        await eventually(lambda: good > 100, within=PROMPT)
        for count in (3, 2):
            code = ROLL.format(count=count)
            assert "rolled\n" in await asyncio.to_thread(driver, server, code)
        target = good + 100
        await eventually(lambda: good > target, within=PROMPT)
    finally:
        ending.set()
        await asyncio.gather(*tasks)
    print(f"[{len(failures)} of {good} refused] ", end="")
    assert set(failures) <= {"CANCELLED CANCELLED"}
    assert len(failures) <= 5 * len(tasks)
    await eventually(lambda: len(replicas(server)) == 2, within=60)
