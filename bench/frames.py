"""Frames against grpc.aio and against a Ray actor call: an echo, between two processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measure import calls, interleave, table
from bench.stack import ROOT

if TYPE_CHECKING:
    from micro_ray.wire.identity import Secured

__all__ = ["run"]

Echo = Callable[[bytes], Awaitable[bytes]]


@asynccontextmanager
async def _echo_server(kind: str, folder: str) -> AsyncIterator[str]:
    path = f"{folder}/{kind}.sock"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.echo", kind, path, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout
        if await process.stdout.readline() != b"ready\n":
            raise SystemExit(f"bench: the {kind} server did not start")
        yield path
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def _frames(folder: str) -> AsyncIterator[Echo]:
    from micro_ray.network import Call
    from micro_ray.wire.dialer import WireDialer

    async with _echo_server("frames", folder) as path:
        peer = await WireDialer().dial(f"unix:{path}", timeout=5)
        head = Call(service="echo", endpoint="Echo.Call", timeout=30.0)
        yield lambda body: peer.call(head, body)
        await peer.close()


@asynccontextmanager
async def _tcp(folder: str, identity: Secured | None) -> AsyncIterator[Echo]:
    """Frames over TCP of loopback; with an identity, TLS by which both prove who they are."""
    from micro_ray.network import Call
    from micro_ray.wire.dialer import WireDialer

    kind = "frames-tcp" if identity is None else "frames-tls"
    async with _echo_server(kind, folder) as path:
        address = await asyncio.to_thread(Path(f"{path}.address").read_text)
        peer = await WireDialer(identity=identity).dial(address, timeout=5)
        head = Call(service="echo", endpoint="Echo.Call", timeout=30.0)
        yield lambda body: peer.call(head, body)
        await peer.close()


@asynccontextmanager
async def _grpc(folder: str) -> AsyncIterator[Echo]:
    import grpc.aio

    async with (
        _echo_server("grpc", folder) as path,
        grpc.aio.insecure_channel(f"unix:{path}") as channel,
    ):
        call = channel.unary_unary("/echo.Echo/Call")
        yield lambda body: call(body, timeout=30.0)


@asynccontextmanager
async def _ray(folder: str) -> AsyncIterator[Echo]:
    os.environ.update(
        RAY_AUTH_MODE="disabled",
        RAY_worker_niceness="0",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_enable_metrics_collection="0",
    )
    import ray

    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        num_cpus=2,
        object_store_memory=100 * 2**20,
        _temp_dir=folder,
        _node_ip_address="127.0.0.1",
    )

    class Actor:
        async def echo(self, body: bytes) -> bytes:
            return body

    options: dict[str, Any] = {"num_cpus": 0, "enable_task_events": False}
    actor = ray.remote(**options)(Actor).remote()
    try:
        yield lambda body: actor.echo.remote(body)
    finally:
        ray.shutdown()


async def run(*, quick: bool) -> str:
    """1 and 32 calls in flight, 100 bytes and 10 KB."""
    seconds, rounds = (0.5, 1) if quick else (2.0, 5)
    parts = await _with_identity(seconds, rounds)
    with tempfile.TemporaryDirectory(prefix="mb-") as folder:
        async with _frames(folder) as ours, _grpc(folder) as grpc, _ray(folder) as actor:
            echoes = {"frames": ours, "grpc.aio": grpc, "Ray actor call": actor}
            for in_flight in (1, 32):
                for size in (100, 10_000):
                    body = os.urandom(size)
                    contenders = {
                        name: lambda e=echo, b=body, n=in_flight: calls(e, b, b, n, seconds)
                        for name, echo in echoes.items()
                    }
                    figures = await interleave(contenders, rounds=rounds)
                    title = f"Echo of {size} bytes, {in_flight} in flight"
                    parts.append(table(title, figures, "frames"))
    return "\n\n".join(parts)


async def _with_identity(seconds: float, rounds: int) -> list[str]:
    """What identities cost on TCP."""
    from bench.echo import identity

    parts = []
    with tempfile.TemporaryDirectory(prefix="mb-") as folder:
        mine = await identity(folder, "bench")
        async with (
            _frames(folder) as unix,
            _tcp(folder, None) as plain,
            _tcp(folder, mine) as secured,
        ):
            echoes = {"TCP": plain, "TCP with TLS": secured, "Unix socket": unix}
            for in_flight in (1, 32):
                for size in (100, 10_000):
                    body = os.urandom(size)
                    contenders = {
                        name: lambda e=echo, b=body, n=in_flight: calls(e, b, b, n, seconds)
                        for name, echo in echoes.items()
                    }
                    figures = await interleave(contenders, rounds=rounds)
                    title = f"Frames, echo of {size} bytes, {in_flight} in flight"
                    parts.append(table(title, figures, "TCP"))
    return parts
