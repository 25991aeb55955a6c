"""What closing leaves: nothing, whatever handlers and peers do."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from micro_ray.network import Broken, Refused
from micro_ray.wire import server as server_module
from micro_ray.wire.server import Incoming
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.wire import raw
from tests.unit.wire.line import Line, call


async def hang(incoming: Incoming) -> None:
    await asyncio.Event().wait()


async def test_a_server_that_closes_cancels_what_it_serves(any_line: Line) -> None:
    ended: list[str] = []

    async def noted(incoming: Incoming) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    server, peer = await any_line.pair(noted)
    calls = [asyncio.ensure_future(peer.call(call(), b"")) for _ in range(3)]
    await eventually(lambda: server.in_flight == 3)
    await server.close()
    assert ended == ["cancelled"] * 3
    assert (server.in_flight, len(server.connections)) == (0, 0)
    for one in calls:
        with pytest.raises(Broken):
            await one
    await server.close()  # again


async def test_calls_that_had_not_begun_are_refused(line: Line) -> None:
    """They are in the same packet as those before, and no handler saw them."""
    server, address = await line.server(hang)
    async with raw.caller(address) as caller:
        connection = next(iter(server.connections))
        connection.data_received(raw.request(1))
        assert server.in_flight == 1
        closing = asyncio.ensure_future(server.close())
        await caller.rest()
        await closing
    assert server.in_flight == 0


async def test_a_handler_that_does_not_end_is_left_behind(
    line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "CLOSING", 0.1)
    go = asyncio.Event()

    async def stubborn(incoming: Incoming) -> None:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue

    server, peer = await line.pair(stubborn)
    calling = asyncio.ensure_future(peer.call(call(), b""))
    await eventually(lambda: server.in_flight == 1)
    begun = time.monotonic()
    with caplog.at_level(logging.ERROR, "micro_ray"):
        await server.close()
    assert 0.05 < time.monotonic() - begun < PROMPT
    assert "test closed with 1 handlers or connections left" in caplog.text
    go.set()
    with pytest.raises(Broken):
        await calling
    await eventually(lambda: server.in_flight == 0)


async def test_close_waits_for_handlers_whose_caller_has_gone(line: Line) -> None:
    ended = asyncio.Event()

    async def tidies_up(incoming: Incoming) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            ended.set()
            raise

    server, address = await line.server(tidies_up)
    async with raw.caller(address) as caller:
        caller.send(raw.request(1))
        await eventually(lambda: server.in_flight == 1)
    await eventually(lambda: server.leaving)
    assert not ended.is_set()
    await server.close()  # cancels what tidies up a second time: it is to end now
    assert server.in_flight == 0
    assert not server.leaving


async def test_a_peer_that_does_not_read_does_not_keep_a_closing_server(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "CLOSING", 60.0)

    async def flood(incoming: Incoming) -> None:
        while True:
            await incoming.send(b"x" * 100_000)

    server, address = await line.server(flood)
    async with raw.connected(address) as caller:
        caller._writer.transport.pause_reading()
        caller.send(raw.hello(window=2**30, max_frame=2**20), raw.request(1))
        await eventually(lambda: any(c.paused for c in server.connections))
        begun = time.monotonic()
        await server.close()
        assert 0.5 < time.monotonic() - begun < PROMPT
        assert not server.connections


async def test_a_context_that_raises_closes_too(line: Line) -> None:
    server, address = await line.server(hang)
    with pytest.raises(RuntimeError, match="on purpose"):
        async with server:
            raise RuntimeError("on purpose")
    with pytest.raises(Refused):
        await line.peer(address)
