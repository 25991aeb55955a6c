"""Processes that a benchmark needs: a platform, peers; started on free ports, ended by their id."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Server", "free_port", "micro", "peer", "server"]

ROOT = Path(__file__).resolve().parent.parent
MICRO = Path(sys.executable).with_name("micro")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A platform that runs: the environment with which ``micro`` reaches it, its ports, its pid,
    and the seconds from its start to the first good answer."""

    environ: Mapping[str, str]
    port: int
    serve_port: int
    pid: int
    started_in: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def server(**extra: str) -> AsyncIterator[Server]:
    """``micro server`` on a fresh state folder; ``extra`` are environment variables."""
    state = tempfile.mkdtemp(prefix="mb-")
    port, serve_port = free_port(), free_port()
    environ = {
        **os.environ,
        "MICRO_STATE": state,
        "MICRO_API_PORT": str(port),
        "MICRO_API_SERVE_PORT": str(serve_port),
        **extra,
    }
    begun = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        MICRO,
        "server",
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        lines: list[str] = []
        assert process.stdout
        while not lines or not lines[-1].startswith("ready"):
            line = (await process.stdout.readline()).decode()
            if not line:
                raise SystemExit("bench: micro server ended:\n" + "".join(lines))
            lines.append(line)
        yield Server(
            environ=environ,
            port=port,
            serve_port=serve_port,
            pid=process.pid,
            started_in=time.monotonic() - begun,
        )
    finally:
        await _end(process)
        shutil.rmtree(state, ignore_errors=True)


@asynccontextmanager
async def peer(name: str, module: str = "bench.peers", *args: str) -> AsyncIterator[int]:
    """A peer process that prints ``ready``; its port."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, name, str(port), *args,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout
        while (line := await process.stdout.readline()) != b"ready\n":
            if not line:
                raise SystemExit(f"bench: peer {name} ended with {await process.wait()}")
        await _accepts(port)
        yield port
    finally:
        await _end(process)


async def micro(at: Server, *args: str) -> str:
    """Run one command of the command line against a server; its output."""
    process = await asyncio.create_subprocess_exec(
        MICRO, *args, env=at.environ, cwd=ROOT,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output = (await process.communicate())[0].decode()
    if process.returncode:
        raise SystemExit(f"bench: micro {' '.join(args)}: {output}")
    return output


async def _accepts(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        await asyncio.wait_for(process.communicate(), 60)
    except TimeoutError:
        process.kill()
        await process.wait()
