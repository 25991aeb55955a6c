"""What the door calls again on another node: by the method, or by what the endpoint says."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from micro_ray.errors import Unavailable
from micro_ray.network.network import Network
from micro_ray.router import Delta, Entry, Route
from micro_ray.router.table import Table
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.server import Server
from tests.unit.api.door import Door, open_door

SAYS = {"Tally.Plain": {}, "Tally.Once": {"idempotent": "false"},
        "Tally.Again": {"idempotent": "true"}, "Tally.Odd": {"idempotent": "perhaps"}}  # fmt: skip


@dataclass(slots=True)
class Town:
    """A door before two nodes of one service. Whichever is called first fails: it dies with the
    call (``dies``), or answers that it is unavailable. ``begun`` counts the calls of both."""

    door: Door
    dies: bool = True
    begun: int = 0


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ag-"))
        table = Table()
        network = Network(table, WireDialer())
        stack.push_async_callback(network.close)
        here = Town(await stack.enter_async_context(open_door(network)))
        routes = [await node(stack, here, Path(folder), id) for id in ("a", "b")]
        entry = Entry(
            namespace="micro", service="tally", version="latest", endpoints=routes[0][1].published
        )
        delta = Delta(
            epoch="e", revision=1, full=True, entries=(entry,), routes=tuple(r for r, _ in routes)
        )
        table.apply(delta)
        yield here


async def node(stack: AsyncExitStack, here: Town, folder: Path, id: str) -> tuple[Route, Endpoints]:
    endpoints = Endpoints("tally")
    server = await stack.enter_async_context(Server(endpoints.handler))

    async def count() -> int:
        here.begun += 1
        if here.begun > 1:
            return here.begun
        if here.dies:
            for connection in list(server.connections):
                connection.kill()
        raise Unavailable("", "not now")

    for name, metadata in SAYS.items():
        endpoints.add(name, count, metadata=metadata)
    address = await server.listen(f"unix:{folder}/{id}.sock")
    route = Route(id=id, namespace="micro", service="tally", addresses=(address,))
    return route, endpoints


AGAIN = {
    ("GET", "plain"): True,
    ("HEAD", "plain"): True,
    ("POST", "plain"): False,
    ("PUT", "plain"): False,
    ("DELETE", "plain"): False,
    ("GET", "once"): False,
    ("HEAD", "once"): False,
    ("POST", "once"): False,
    ("GET", "again"): True,
    ("POST", "again"): True,
    ("PATCH", "again"): True,
    ("GET", "odd"): True,
    ("POST", "odd"): False,
}


@pytest.mark.parametrize("dies", [True, False], ids=["dies", "answers 503"])
@pytest.mark.parametrize(("method", "path", "again"), [(*case, a) for case, a in AGAIN.items()])
async def test_what_is_called_again(
    town: Town, dies: bool, method: str, path: str, again: bool
) -> None:
    """It reaches the other node, or its client is told and nobody is called a second time."""
    town.dies = dies
    answer = await town.door.http.request(method, f"/tally/{path}")
    assert answer.status_code == (200 if again else 502 if dies else 503)
    assert town.begun == (2 if again else 1)


async def test_the_door_says_so(town: Town) -> None:
    paths = (await town.door.http.get("/openapi.json")).json()["paths"]
    said = {path: place["post"].get("x-idempotent") for path, place in paths.items()}
    assert said == {
        "/tally/tally/plain": None,
        "/tally/tally/once": False,
        "/tally/tally/again": True,
        "/tally/tally/odd": None,
    }
