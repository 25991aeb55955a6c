"""Large bodies pass through the door; they are not held in it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import AsyncIterator

import pytest

from tests.fixtures.wait import eventually
from tests.unit.api.door import Door
from tests.unit.api.services import Probe

pytestmark = pytest.mark.asyncio(loop_scope="package")

SIZE, PIECE = 200 * 2**20, 256 * 1024
ROOM = 40 * 2**20


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.asynccontextmanager
async def bounded(room: int) -> AsyncIterator[None]:
    """This process, which is service, door and client in one, grows by less than ``room``."""
    gc.collect()
    before = highest = resident()

    async def watch() -> None:
        nonlocal highest
        while True:
            highest = max(highest, resident())
            await asyncio.sleep(0.005)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
    assert highest - before < room, f"{(highest - before) / 2**20:.0f} MiB more"


async def test_an_upload(door: Door) -> None:
    async with bounded(ROOM), door.line() as line:
        head = b"POST /streams/take HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        await line.send(head % SIZE)
        piece = b"x" * PIECE
        for _ in range(SIZE // PIECE):
            await line.send(piece)
        assert (await line.answer()).json()["size"] == SIZE


async def test_a_download(door: Door) -> None:
    async with bounded(ROOM), door.line() as line:
        path = f"/streams/pieces?size={PIECE}&times={SIZE // PIECE}"
        await line.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (await line.head())[0] == 200
        size = 0
        while piece := await line.chunk():
            size += len(piece)
        assert size == SIZE


async def test_an_upload_that_the_service_does_not_read(door: Door, probe: Probe) -> None:
    """The client is held back; nothing of what it would send is gathered."""
    async with bounded(ROOM), door.line() as line:
        await line.send(
            b"POST /streams/deaf HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            b'22\r\n{"value":1,"name":"deaf-upload"}\n\n\r\n'
        )
        message = b'{"value":1,"pad":"' + b"x" * 60_000 + b'"}\n'
        chunk = b"%x\r\n%b\r\n" % (len(message), message)
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                for _ in range(SIZE // len(chunk)):
                    await line.send(chunk)
                    sent += len(chunk)
        assert sent < SIZE // 4
        line.cut()
    # It left while nothing of it was being read.
    await eventually(lambda: probe.cancelled["deaf-upload"] == 1)
    assert door.api.metrics.in_flight == 0
    assert await door.alive()
