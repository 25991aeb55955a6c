"""Handlers that raise, exit, answer garbage, flood, hang: the call fails, the server goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from micro_ray.errors import BadRequest, Cancelled, InternalError, MicroError, NotFound
from micro_ray.network import Broken
from micro_ray.wire.protocol import Limits
from micro_ray.wire.server import Incoming
from tests.fixtures.wait import eventually
from tests.unit.wire import raw
from tests.unit.wire.line import Line, call


class Odd(MicroError):
    """An error of a service's own."""

    code = 418

    def __init__(self) -> None:
        super().__init__("odd", "teapot")


class _Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words for it")


RAISES: dict[str, tuple[BaseException, type[MicroError], str]] = {
    "its own": (NotFound("x", "not here"), NotFound, "not here"),
    "odd": (Odd(), BadRequest, "teapot"),
    "anything": (ValueError("some value"), InternalError, "ValueError: some value"),
    "a group": (ExceptionGroup("both", [ValueError("a"), KeyError("b")]), InternalError, "both"),
    "exit": (SystemExit(3), InternalError, "SystemExit: 3"),
    "interrupt": (KeyboardInterrupt(), InternalError, "KeyboardInterrupt"),
    "no memory": (MemoryError(), InternalError, "MemoryError"),
    "stop": (StopIteration(), InternalError, "StopIteration"),
    "stop async": (StopAsyncIteration(), InternalError, "StopAsyncIteration"),
    "generator exit": (GeneratorExit(), InternalError, "GeneratorExit"),
    "half a pair": (NotFound("\ud800", "file \udcff"), NotFound, "file ?"),
    "a long one": (ValueError("x" * 10**6), InternalError, "ValueError: xxx"),
    "no text": (_Unreadable(), InternalError, "_Unreadable"),
    "odd fields": (NotFound(5, "x"), NotFound, "x"),  # type: ignore[arg-type]
    "odd time": (NotFound("x", "y", object()), InternalError, "NotFound, which"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", RAISES.values(), ids=RAISES.keys())
@pytest.mark.parametrize("begun", [False, True], ids=["at once", "in the answer"])
async def test_what_a_handler_raises_is_the_answer(
    line: Line, case: tuple[BaseException, type[MicroError], str], begun: bool
) -> None:
    error, kind, detail = case

    async def raises(incoming: Incoming) -> None:
        if incoming.head.endpoint == "Echo.Call":
            if begun:
                await incoming.send(b"a beginning")
            raise error
        await incoming.reply(b"fine")

    server, peer = await line.pair(raises)
    async with await peer.open(call()) as stream:
        if begun:
            assert await stream.receive() == b"a beginning"
        with pytest.raises(MicroError) as caught:
            await stream.receive()
        assert type(caught.value) is kind
        assert caught.value.detail.startswith(detail) or detail in caught.value.detail
        assert len(caught.value.detail) < 20_000
    await eventually(lambda: server.in_flight == 0)
    assert await peer.call(call(endpoint="Other.Call"), b"") == b"fine"


@pytest.mark.parametrize("answer", ["text", None, 5, object(), [b"x"]])
@pytest.mark.parametrize("verb", ["send", "reply"])
async def test_an_answer_that_is_no_bytes(line: Line, answer: Any, verb: str) -> None:
    async def garbage(incoming: Incoming) -> None:
        await getattr(incoming, verb)(answer)

    server, peer = await line.pair(garbage)
    for body in (b"", bytes(500_000)):
        with pytest.raises(InternalError, match="TypeError"):
            await peer.call(call(timeout=5), body)
    assert server.in_flight == 0


@pytest.mark.parametrize("kind", [bytearray, memoryview])
async def test_an_answer_of_another_kind_of_bytes(line: Line, kind: Any) -> None:
    async def some(incoming: Incoming) -> None:
        await incoming.reply(kind(await incoming.receive() or b""))

    _, peer = await line.pair(some)
    for size in (10, 400_000):
        assert await peer.call(call(), b"x" * size) == b"x" * size


async def test_answers_after_the_answer(line: Line) -> None:
    errors: list[str] = []

    async def twice(incoming: Incoming) -> None:
        await incoming.reply(b"one")
        for verb in (incoming.send, incoming.reply):
            try:
                await verb(b"two")
            except Cancelled as error:
                errors.append(error.detail)
        await incoming.end()
        raise NotFound("x", "nobody hears this")

    server, address = await line.server(twice)
    async with raw.caller(address) as caller:
        caller.send(raw.request(1))
        answer = await caller.get(raw.DATA)
        assert (answer.flags, answer.payload) == (raw.END, b"one")
        await eventually(lambda: server.in_flight == 0)
        caller.send(raw.frame(raw.PING))
        await caller.get(raw.PING)  # and nothing in between
    assert errors == ["this side of the stream has ended"] * 2


async def test_tasks_that_a_handler_leaves_behind_are_told(line: Line) -> None:
    left: list[asyncio.Task[Any]] = []

    async def leaves(incoming: Incoming) -> None:
        await incoming.send(bytes(960))  # all the credit
        left.append(asyncio.ensure_future(incoming.receive()))
        left.append(asyncio.ensure_future(incoming.send(b"more")))
        await asyncio.sleep(0.01)
        left.append(asyncio.ensure_future(_later(incoming)))

    async def _later(incoming: Incoming) -> bytes | None:
        await asyncio.sleep(0.05)
        return await incoming.receive()

    server, address = await line.server(leaves)
    async with raw.caller(address, window=1024, max_frame=1024) as caller:
        caller.send(raw.request(1, b"", raw.BARE))
        assert (await caller.get(raw.DATA)).flags == 0
        assert (await caller.get(raw.DATA)).flags == raw.END | raw.BARE
        outcomes = await asyncio.gather(*left, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Cancelled, Cancelled, Cancelled]
    assert server.in_flight == 0


async def test_a_handler_that_floods_waits_for_its_reader(line: Line) -> None:
    """The caller reads ten messages of an endless answer and goes."""
    sent = 0

    async def flood(incoming: Incoming) -> None:
        nonlocal sent
        while True:
            await incoming.send(b"x" * 1000)
            sent += 1

    limits = Limits(window=10_000, max_frame=10_000, max_message=10_000)
    server, peer = await line.pair(flood, limits=limits, caller=limits)
    async with await peer.open(call()) as stream:
        await eventually(lambda: sent == 9)  # 64 bytes of each message's credit are its own
        for _ in range(100):
            assert await stream.receive() == b"x" * 1000
    await eventually(lambda: server.in_flight == 0)
    assert 100 <= sent <= 121


async def test_a_handler_that_hangs_keeps_its_own_call_only(line: Line) -> None:
    async def hangs(incoming: Incoming) -> None:
        if incoming.head.endpoint == "Echo.Call":
            await asyncio.Event().wait()
        await incoming.reply(b"fine")

    server, peer = await line.pair(hangs)
    hanging = asyncio.ensure_future(peer.call(call(), b""))
    await eventually(lambda: server.in_flight == 1)
    assert await peer.call(call(endpoint="Other.Call"), b"") == b"fine"
    hanging.cancel()
    await asyncio.gather(hanging, return_exceptions=True)


EXITS = """
import asyncio, os, sys
from micro_ray.wire.server import Server

async def handler(incoming):
    if incoming.head.endpoint == "Echo.Call":
        os._exit(3)
    await asyncio.Event().wait()

async def main():
    async with Server(handler) as server:
        print(await server.listen(f"unix:{sys.argv[1]}"), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["exit", "kill"])
async def test_a_process_that_ends_breaks_what_it_served(
    line: Line, folder: Path, how: str
) -> None:
    """Every call in flight is told at once that it was under way; the peer knows it is closed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", EXITS, f"{folder}/p.sock", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        address = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()
        peer = await line.peer(address)
        stream = await peer.open(call(endpoint="Echo.Hang"))
        waiting = asyncio.ensure_future(peer.call(call(endpoint="Echo.Hang"), b""))
        await asyncio.sleep(0.05)
        last = None
        if how == "exit":
            last = asyncio.ensure_future(peer.call(call(), b""))
        else:
            os.kill(process.pid, signal.SIGKILL)
        await asyncio.wait_for(peer.wait_closed(), 5)
        assert peer.closed
        for broken in (waiting, stream.receive(), *([last] if last else [])):
            with pytest.raises(Broken, match="broke while the call was under way"):
                await broken
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]  # asyncio keeps its pipes open


@pytest.mark.parametrize("size", [0, 300])
async def test_a_flood_on_endless_credit_lets_others_live(line: Line, size: int) -> None:
    """The caller allows two gigabytes and breaks the protocol behind its request: the handler that
    never has to wait must not keep the loop from learning of it."""

    async def flood(incoming: Incoming) -> None:
        while incoming.head.endpoint == "Echo.Call":
            await incoming.send(b"x" * size)
        await incoming.reply(b"fine")

    server, address = await line.server(flood)
    peer = await line.peer(address)
    async with raw.caller(address, window=2**31 - 1) as caller:
        caller.send(raw.request(1))
        await caller.get(raw.DATA)
        assert await peer.call(call(endpoint="Other.Call", timeout=5), b"") == b"fine"
        caller.send(raw.request(3), raw.frame(99))
        assert (await caller.rest(10))[-1].kind == raw.ERROR
    await eventually(lambda: server.in_flight == 0)
    assert await peer.call(call(endpoint="Other.Call", timeout=5), b"") == b"fine"
