"""What a caller sees of nodes, routes and services, as values and as endpoints."""

from __future__ import annotations

import asyncio

import pytest

from micro_ray.errors import NotFound
from micro_ray.network import Broken
from micro_ray.sdk.testing import Here
from micro_ray.wire.endpoints import Endpoints
from tests.fixtures.wait import PROMPT, eventually
from tests.unit.network.conftest import Fleet, who


async def test_nodes_as_the_caller_knows_them(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    fleet.nobody("b", service="other")
    fleet.nobody("c", namespace="tenant")
    network = fleet.network()
    assert [(s.id, s.service, s.connected) for s in network.nodes()] == [
        ("a", "greeter", False), ("b", "other", False), ("c", "greeter", False),
    ]  # fmt: skip
    assert [s.id for s in network.nodes("tenant")] == ["c"]
    assert fleet.dialer.dialed == []  # looking costs nothing
    spot.delay = 0.02
    for _ in range(3):
        await who(network)
    (status,) = [s for s in network.nodes("micro") if s.id == "a"]
    assert status.address == spot.address
    assert (status.connected, status.in_flight, status.calls, status.errors) == (True, 0, 3, 0)
    assert 0.015 < status.latency < PROMPT
    assert not status.out
    spot.cut()
    await eventually(lambda: not network.nodes()[0].connected)


async def test_what_is_in_flight_and_what_failed(fleet: Fleet) -> None:
    spot = await fleet.spot("a")
    spot.hold.clear()
    network = fleet.network()
    calls = [asyncio.create_task(who(network)) for _ in range(7)]
    await eventually(lambda: len(spot.started) == 7)
    assert network.nodes()[0].in_flight == 7
    spot.cut()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, Broken) for result in results)
    (status,) = network.nodes()
    assert (status.in_flight, status.calls, status.errors) == (0, 7, 7)
    spot.hold.set()


async def test_routes(fleet: Fleet) -> None:
    fleet.nobody("b")
    fleet.nobody("a")
    fleet.nobody("c", namespace="tenant")
    network = fleet.network()
    assert [route.id for route in network.routes()] == ["a", "b", "c"]
    assert [route.id for route in network.routes("micro")] == ["a", "b"]


async def test_over_frames(here: Here) -> None:
    endpoints = Endpoints("greeter").add("Greeter.Call", _call)
    await here.host("greeter", endpoints, version="2", node_id="g1", weight=7)
    await here.known("greeter")
    network = await here.network()
    await eventually(lambda: network.table.has("micro", "g1"))
    ask = here.client.call

    assert set(await ask("network", "Network.Services")) == {
        "broker", "certs", "config", "events", "greeter", "limits", "network", "registry", "router",
        "store",
    }  # fmt: skip
    nodes = {row["id"]: row for row in await ask("network", "Network.Nodes")}
    assert nodes["g1"]["service"] == "greeter"
    assert nodes["g1"]["address"].startswith("unix:/")
    assert await ask("network", "Network.Nodes", {"namespace": "other"}) == []
    (route,) = await ask("network", "Network.Routes", {"service": "Greeter"})
    assert (route["id"], route["version"], route["weight"]) == ("g1", "2", 7)
    assert len(await ask("network", "Network.Routes")) == 10
    graph = await ask("network", "Network.Graph")
    assert graph["namespace"] == "micro"
    assert graph["services"]["greeter"] == [{"id": "g1", "version": "2", "host": ""}]
    status = await ask("network", "Network.Status")
    assert (status["stale"], status["routes"]) == (False, 10)
    assert status["epoch"]


async def test_the_routers_own_endpoints(here: Here) -> None:
    endpoints = Endpoints("greeter").add("Greeter.Call", _call)
    await here.host("greeter", endpoints, version="1", node_id="g1")
    await here.host("greeter", endpoints, version="2", node_id="g2")
    await here.known("greeter")
    ask = here.client.call

    async def ids(**filter: str) -> list[str]:
        rows = await ask("router", "Router.Lookup", {"service": "greeter", **filter})
        return [row["id"] for row in rows]

    async def both() -> bool:
        return await ids() == ["g1", "g2"]

    await eventually(both)
    assert await ids(version="2") == ["g2"]
    assert await ids(node="g1") == ["g1"]
    assert await ids(protocol="http") == await ids(network="x") == await ids(link="x") == []
    assert await ids(host="x") == await ids(namespace="x") == []
    (row,) = await ask("router", "Router.Lookup", {"service": "GREETER", "node": "g1"})
    assert await ids(address=row["addresses"][0]) == ["g1"]
    rows = await ask("router", "Table.Read", {"service": "greeter"})
    assert [row["id"] for row in rows] == ["g1", "g2"]
    assert len(await ask("router", "Table.Read")) == 11
    assert await ask("router", "Table.Read", {"namespace": "other"}) == []
    entries = await ask("router", "Table.Entries")
    (entry,) = [e for e in entries if e["service"] == "greeter" and e["version"] == "2"]
    assert [endpoint["name"] for endpoint in entry["endpoints"]] == ["Greeter.Call"]
    async for delta in here.client.stream("router", "Router.Watch", {}):
        assert delta["full"]
        assert {"g1", "g2"} <= {route["id"] for route in delta["routes"]}
        break


async def test_the_registrys_own_endpoints(here: Here) -> None:
    ask = here.client.call
    node = {"id": "n1", "addresses": ["tcp:10.0.0.1:5"]}
    await ask("registry", "Registry.Register", {"instance": {"service": "far", "node": node}})
    (service,) = await ask("registry", "Registry.GetService", {"service": "FAR"})
    assert (service["name"], service["nodes"][0]["weight"]) == ("far", 100)
    names = {row["name"] for row in await ask("registry", "Registry.ListServices")}
    assert names == {
        "broker", "certs", "config", "events", "far", "limits", "network", "registry", "router",
        "store",
    }  # fmt: skip
    assert await ask("registry", "Registry.Renew", {"nodes": ["n1", "n2"]}) == ["n2"]
    await ask("registry", "Registry.Deregister", {"node": "n1"})
    with pytest.raises(NotFound, match="no service 'far'"):
        await ask("registry", "Registry.GetService", {"service": "far"})
    pages = [page async for page in here.client.stream("registry", "Registry.Snapshot", {})]
    assert len(pages) == 1
    assert {i["service"] for i in pages[0]["instances"]} == names - {"far"}


async def _call(name: str = "World") -> str:
    """Say hello."""
    return name
