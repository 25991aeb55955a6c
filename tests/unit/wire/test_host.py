"""A service instance: where it listens, when it is known, how it leaves."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from micro_ray.errors import BadRequest, Conflict, Unavailable
from micro_ray.network import Refused
from micro_ray.sdk.testing import Here
from micro_ray.wire import host as module
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.host import Host
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.wire.line import call


class Gate:
    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.started = 0

    async def call(self) -> str:
        self.started += 1
        await self.open.wait()
        return "answer"

    async def forever(self) -> AsyncIterator[int]:
        self.started += 1
        yield 1
        await asyncio.Event().wait()

    def endpoints(self, service: str = "gate") -> Endpoints:
        made = Endpoints(service).add("Gate.Call", self.call, metadata={"path": "/gate"})
        return made.add("Gate.Forever", self.forever)


def host(here: Here, gate: Gate, **options: Any) -> Host:
    boot = here.bootstrap
    given: dict[str, Any] = {
        "service": "gate", "endpoints": gate.endpoints(), "registry_addresses": boot.registry,
        "run_dir": boot.run, "drain": 5.0,
    }  # fmt: skip
    return Host(**(given | options))


async def test_it_listens_and_registers_what_it_serves(here: Here) -> None:
    gate = Gate()
    gate.open.set()
    options = {
        "version": "v2", "weight": 7, "host": "box", "metadata": {"zone": "a"},
        "service_metadata": {"team": "b"}, "node_id": "gate-1",
    }  # fmt: skip
    async with host(here, gate, **options) as up:
        await up.registered(5)
        assert up.is_registered
        (service,) = await here.registry.get("micro", "gate")
        (node,) = service.nodes
        assert (service.version, service.metadata) == ("v2", {"team": "b"})
        assert [e.name for e in service.endpoints] == ["Gate.Call", "Gate.Forever"]
        assert service.endpoints[0].metadata["path"] == "/gate"
        assert (node.id, node.weight, node.host) == ("gate-1", 7, "box")
        assert node.metadata == {"zone": "a"}
        assert node.addresses == up.addresses
        unix, tcp = node.addresses
        assert unix == f"unix:{here.bootstrap.run}/gate-1.sock"
        assert tcp.startswith("tcp:127.0.0.1:")
        for address in node.addresses:
            peer = await WireDialer().dial(address, timeout=5)
            assert await peer.call(call(service="gate", endpoint="Gate.Call"), b"") == b'"answer"'
            await peer.close()
    assert [s.name for s in await here.registry.list("micro") if s.name == "gate"] == []


async def test_for_other_machines(here: Here) -> None:
    """Another address of loopback stands for one of the network; a port that is known, and taken
    for a while by the process before it."""
    with socket.create_server(("127.0.0.2", 0)) as before:
        port = before.getsockname()[1]
        opening = asyncio.create_task(
            host(here, Gate(), address="127.0.0.2", port=port).__aenter__()
        )
        await asyncio.sleep(0.2)
        assert not opening.done()
    up = await opening
    try:
        assert up.addresses[1] == f"tcp:127.0.0.2:{port}"
        peer = await WireDialer().dial(up.addresses[1], timeout=5)
        await peer.close()
    finally:
        await up.close()


async def test_an_address_of_another_machine(here: Here) -> None:
    with pytest.raises(Unavailable, match=r"cannot listen on tcp:192\.0\.2\.1:0"):
        await host(here, Gate(), address="192.0.2.1").__aenter__()


async def test_without_a_port(here: Here) -> None:
    async with host(here, Gate(), tcp=False, socket_name="short") as up:
        assert up.addresses == (f"unix:{here.bootstrap.run}/short.sock",)
        assert up.node_id.startswith("gate-")
        assert len(up.node_id) == len("gate-") + 16


async def test_it_leaves_without_losing_a_call(here: Here) -> None:
    """First the registry forgets it, then calls in flight end, then it is gone."""
    gate = Gate()
    up = await host(here, gate).__aenter__()
    await up.registered(5)
    await here.known("gate")
    calling = asyncio.ensure_future(here.client.call("gate", "Gate.Call"))
    await eventually(lambda: gate.started == 1)
    closing = asyncio.ensure_future(up.close())
    await eventually(lambda: not here.client.table.lookup("micro", "gate"))
    assert not calling.done()
    assert up.in_flight == 1
    gate.open.set()
    assert await calling == "answer"
    await closing
    await up.close()  # again
    for address in up.addresses:
        with pytest.raises(Refused):
            await WireDialer().dial(address, timeout=5)


async def test_callers_that_do_not_know_yet_are_served_while_it_leaves(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between leaving the registry and refusing there is time for the routers to say so."""
    monkeypatch.setattr(module, "LEAVING", 0.3)
    gate = Gate()
    gate.open.set()
    up = await host(here, gate).__aenter__()
    await up.registered(5)
    closing = asyncio.ensure_future(up.close())
    await eventually(lambda: not up.is_registered)
    peer = await WireDialer().dial(up.addresses[0], timeout=5)
    assert await peer.call(call(service="gate", endpoint="Gate.Call"), b"") == b'"answer"'
    await closing
    assert peer.closed


async def test_an_endless_stream_is_cut_after_the_drain(here: Here) -> None:
    gate = Gate()
    up = await host(here, gate, drain=0.2).__aenter__()
    await up.registered(5)
    peer = await WireDialer().dial(up.addresses[0], timeout=5)
    async with await peer.open(call(service="gate", endpoint="Gate.Forever")) as stream:
        await stream.end()
        assert await stream.receive() == b"1"
        begun = time.monotonic()
        await up.close()
        assert 0.2 < time.monotonic() - begun < PROMPT
        with pytest.raises(Exception, match="broke while the call was under way"):
            await stream.receive()
    await peer.close()


async def test_a_registration_that_is_refused_says_why(here: Here) -> None:
    async with host(here, Gate(), version="no version!") as up:
        with pytest.raises(BadRequest, match="version 'no version!'"):
            await up.registered(5)
        assert not up.is_registered


async def test_without_a_registry_it_serves_and_goes_on_asking(here: Here) -> None:
    gate = Gate()
    gate.open.set()
    nowhere = (f"unix:{here.bootstrap.run}/nobody.sock",)
    async with host(here, gate, registry_addresses=nowhere) as up:
        with pytest.raises(TimeoutError):
            await up.registered(0.05)
        peer = await WireDialer().dial(up.addresses[0], timeout=5)
        assert await peer.call(call(service="gate", endpoint="Gate.Call"), b"") == b'"answer"'
        await peer.close()


async def test_a_name_in_use_is_waited_for(here: Here) -> None:
    """A killed predecessor may hold its socket for a moment."""
    path = f"{here.bootstrap.run}/gate-0.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(path)
        old.listen()
        starting = asyncio.ensure_future(host(here, Gate(), socket_name="gate-0").__aenter__())
        await asyncio.sleep(0.15)
        assert not starting.done()
        old.close()
    up = await asyncio.wait_for(starting, 5)
    assert up.addresses[0] == f"unix:{path}"
    await up.close()


async def test_a_name_that_stays_in_use(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Conflict, match="another process listens on"):
        async with host(here, Gate(), socket_name="registry-0"):
            pass


async def test_a_folder_that_is_not_there(here: Here) -> None:
    with pytest.raises(Unavailable, match="cannot listen on /nowhere/at/all"):
        async with host(here, Gate(), run_dir="/nowhere/at/all"):
            pass
