"""What the platform's settings allow of frames holds for the services that it starts, as a driver
starts them: a message over the default limit comes in, goes out and is asked for."""

from __future__ import annotations

import asyncio
import os
import pickle
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from micro_ray import Service
from micro_ray.errors import TooLarge
from micro_ray.runtime import Workload
from micro_ray.sdk.client import AsyncClient
from micro_ray.settings import Bootstrap, Wire, load, service_environ
from tests.unit.runtime.conftest import Shop

#: Over the default of 16 MiB, within what is allowed here.
SIZE = 20 * 2**20
ALLOWED = 32 * 2**20

MAIN = """
from micro_ray import Service

service = Service("w")

@service.endpoint
async def call(body: bytes) -> bytes:
    return body

@service.endpoint
async def ask(size: int) -> int:
    return len(await service.client.call("large", "call", bytes(size)))

if __name__ == "__main__":
    service.run()
"""

#: What Ray does with a replica's actor, in a process of its own.
ACTOR = """
import asyncio, pickle, sys
from micro_ray.runtime import ray
from micro_ray.runtime.ray import Replica

ray._own_node = lambda: "home"  # there is no Ray to ask

async def main():
    state, replica, workload, boot = pickle.load(open(sys.argv[1], "rb"))
    actor = Replica.__new__(Replica)
    await actor.__init__(state, 2**20)
    await actor.start(replica, workload, boot, "home")
    await asyncio.to_thread(sys.stdin.read)
    await actor.stop()

asyncio.run(main())
"""


@asynccontextmanager
async def as_process(shop: Shop, boot: Bootstrap) -> AsyncIterator[None]:
    settings = load({"MICRO_STATE": str(shop.state), "MICRO_RUN": str(boot.run)})
    driver = shop.driver(environ=service_environ(boot, settings))
    workload = Workload(name="w", digest=await shop.unpacked(MAIN), driver="process")
    replica = await driver.start(shop.replica(workload), workload)
    try:
        yield
    finally:
        await driver.stop(replica, 2)


@asynccontextmanager
async def as_actor(shop: Shop, boot: Bootstrap) -> AsyncIterator[None]:
    workload = Workload(name="w", digest=await shop.unpacked(MAIN), driver="ray")
    given = shop.state / "given"
    given.write_bytes(pickle.dumps((shop.state, shop.replica(workload), workload, boot)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ACTOR, str(given), stdin=asyncio.subprocess.PIPE,
        env={**os.environ, "MICRO_ADDRESS": "127.0.0.1"},
    )  # fmt: skip
    try:
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(15):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.mark.parametrize("driven", [as_process, as_actor], ids=["process", "ray"])
async def test_a_message_over_the_default_goes_both_ways(shop: Shop, driven: object) -> None:
    wide = replace(shop.here.bootstrap, wire=Wire(max_message=ALLOWED))
    large = Service("large")

    @large.endpoint
    async def call(body: bytes) -> bytes:
        return body

    await large.start(wide)
    try:
        async with driven(shop, wide), AsyncClient(wide) as client:  # type: ignore[operator]
            await shop.here.known("w")
            assert len(await client.call("w", "call", bytes(SIZE))) == SIZE
            assert await client.call("w", "ask", {"size": SIZE}) == SIZE
            with pytest.raises(TooLarge, match=str(ALLOWED)):
                await client.call("w", "call", bytes(ALLOWED + 1))
            # Who was not told of it has the default, and is told so.
            with pytest.raises(TooLarge, match=str(Wire().max_message)):
                await shop.here.client.call("w", "call", bytes(SIZE))
    finally:
        await large.stop()
