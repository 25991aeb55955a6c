"""Nodes of a service behind real sockets, and callers with a table that names them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from micro_ray.context import current
from micro_ray.errors import make
from micro_ray.network import Dialer, Peer
from micro_ray.network.network import Network
from micro_ray.router import Delta, Entry, Route
from micro_ray.router.table import Table
from micro_ray.settings import Network as NetworkSettings
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.server import Server
from tests.fixtures.wait import eventually


class Spot:
    """One node: what it has been asked, and levers to make it fail."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.address = ""
        self.started: list[str] = []
        self.finished: list[str] = []
        self.left: list[float | None] = []
        self.delay = 0.0
        #: Code of the error that each call gets (0: none).
        self.code = 0
        self.hold = asyncio.Event()
        self.hold.set()
        self.server: Server | None = None
        self.endpoints = (
            Endpoints("greeter").add("Greeter.Who", self._who).add("Greeter.Count", self._count)
        )

    async def _who(self, tag: str = "") -> str:
        self.started.append(tag)
        self.left.append(current().remaining())
        await self.hold.wait()
        await asyncio.sleep(self.delay)
        if self.code:
            raise make(self.code, "greeter", f"{self.id} says {self.code}")
        self.finished.append(tag)
        return self.id

    async def _count(self, to: int = 3) -> AsyncIterator[int]:
        self.started.append("count")
        for number in range(to):
            await self.hold.wait()
            yield number

    @property
    def connections(self) -> int:
        return len(self.server.connections) if self.server is not None else 0

    async def open(self, address: str) -> None:
        self.server = Server(self.endpoints.handler)
        self.address = await self.server.listen(address)

    async def close(self) -> None:
        """Be gone: nobody listens, calls in flight break."""
        server, self.server = self.server, None
        if server is not None:
            self.cut(server)
            await server.close()

    def cut(self, server: Server | None = None) -> None:
        """Break the connections; go on listening."""
        server = server or self.server
        assert server is not None
        for connection in list(server.connections):
            connection.kill()


class CountingDialer(Dialer):
    """The real one; remembers what was dialed."""

    def __init__(self) -> None:
        self.dialed: list[str] = []
        self._dialer = WireDialer()

    async def dial(
        self, address: str, *, timeout: float, service: str = "", namespace: str = ""
    ) -> Peer:
        self.dialed.append(address)
        return await self._dialer.dial(
            address, timeout=timeout, service=service, namespace=namespace
        )


class Shift:
    """The monotonic clock, which can be put forward."""

    def __init__(self) -> None:
        self.by = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.by


class Fleet:
    """Spots, a table and callers."""

    def __init__(self, folder: Path, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.table = Table()
        self.dialer = CountingDialer()
        self.shift = Shift()
        self._stack = stack
        self.table.apply(Delta(epoch="e", revision=0, full=True, entries=(entry("greeter"),)))

    async def spot(self, id: str, *, tcp: bool = False, **route: Any) -> Spot:
        """A node that serves and is in the table."""
        spot = Spot(id)
        await spot.open("tcp:127.0.0.1:0" if tcp else f"unix:{self.folder}/{id}.sock")
        self._stack.push_async_callback(spot.close)
        self.route(id, spot.address, **route)
        return spot

    async def spots(self, *ids: str, **route: Any) -> list[Spot]:
        return [await self.spot(id, **route) for id in ids]

    def nobody(self, id: str, **route: Any) -> str:
        """A node in the table where nobody listens."""
        address = f"unix:{self.folder}/{id}.sock"
        self.route(id, address, **route)
        return address

    def hole(self, id: str, **route: Any) -> str:
        """A node in the table that takes connections and says nothing."""
        path = f"{self.folder}/{id}.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(100)
        self._stack.callback(listener.close)
        self.route(id, f"unix:{path}", **route)
        return f"unix:{path}"

    def route(self, id: str, *addresses: str, **fields: Any) -> None:
        """Put a route into the table."""
        fields.setdefault("namespace", "micro")
        fields.setdefault("service", "greeter")
        route = Route(id=id, addresses=addresses, **fields)
        known = entry(route.service, route.version, route.namespace)
        self._apply(routes=(route,), entries=(known,))

    def change(self, id: str, **fields: Any) -> None:
        (route,) = [r for r in self.table.routes() if r.id == id]
        self._apply(routes=(replace(route, **fields),))

    def drop(self, *ids: str) -> None:
        """Take routes out of the table."""
        self._apply(gone=tuple(("micro", id) for id in ids))

    def _apply(self, **fields: Any) -> None:
        table = self.table
        assert table.apply(Delta(epoch="e", revision=table.revision + 1, **fields))

    def network(self, **options: Any) -> Network:
        """A caller; settings are given by their names."""
        given = {k: options.pop(k) for k in ("timeout", "dial_timeout", "retry_budget")
                 if k in options}  # fmt: skip
        network = Network(
            options.pop("table", self.table),
            options.pop("dialer", self.dialer),
            settings=NetworkSettings(**given),
            clock=options.pop("clock", self.shift),
            **options,
        )
        self._stack.push_async_callback(network.close)
        return network


def entry(service: str, version: str = "latest", namespace: str = "micro") -> Entry:
    return Entry(namespace=namespace, service=service, version=version)


async def who(network: Network, tag: str = "", **options: Any) -> str:
    """Ask some node who it is."""
    body = b'{"tag":"%s"}' % tag.encode()
    answer = await network.call("greeter", "Greeter.Who", body, **options)
    return answer.decode().strip('"')


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: the name of a Unix socket must be short.
    with TemporaryDirectory(prefix="ne-") as name:
        yield Path(name)


@pytest.fixture
async def fleet(folder: Path) -> AsyncIterator[Fleet]:
    """Everything that is started is closed, and nothing may be left then."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
    async with AsyncExitStack() as stack:
        yield Fleet(folder, stack)
    await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
    assert not complaints
