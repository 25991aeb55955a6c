"""services, get, network, health and stats."""

from __future__ import annotations

import re

import pytest

from micro_ray.sdk.testing import Here
from micro_ray.wire.endpoints import Endpoints
from tests.fixtures.terminal import Terminal

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_services(terminal: Terminal) -> None:
    """Names, sorted, one a line: those of the platform as those of its users."""
    done = await terminal.micro("services")
    assert (done.code, done.err) == (0, "")
    assert done.lines == sorted(done.lines)
    assert {"helloworld", "toolbox", "registry", "router", "store", "network", "runtime"} <= set(
        done.lines
    )


async def test_services_with_details(terminal: Terminal) -> None:
    rows = {row[0]: row[1:] for row in (await terminal.inside("services", "-v")).rows()}
    assert rows["helloworld"] == ["latest", "1", "Helloworld.Call"]
    assert rows["toolbox"][0] == "v2"
    assert "Greeter.Hello" in rows["toolbox"]


async def test_get_service(terminal: Terminal) -> None:
    (entry,) = (await terminal.inside("get", "service", "helloworld")).json()
    assert (entry["name"], entry["version"]) == ("helloworld", "latest")
    (endpoint,) = entry["endpoints"]
    assert endpoint["name"] == "Helloworld.Call"
    assert endpoint["request"]["properties"]["name"] == {"type": "string", "default": "World"}
    (node,) = entry["nodes"]
    assert node["id"] == "helloworld-1"


async def test_network_nodes(terminal: Terminal) -> None:
    done = await terminal.inside("network", "nodes")
    assert done.lines[0].split() == ["ID", "SERVICE", "ADDRESS", "CALLS", "ERRORS"]
    rows = {row[0]: row for row in done.rows()}
    assert rows["toolbox-1"][1] == "toolbox"
    assert rows["toolbox-1"][2].startswith("unix:/")


async def test_network_routes(terminal: Terminal) -> None:
    everything = (await terminal.inside("network", "routes")).rows()
    assert {"toolbox", "helloworld", "store"} <= {row[0] for row in everything}
    rows = (await terminal.inside("network", "routes", "--service", "toolbox")).rows()
    assert {row[0] for row in rows} == {"toolbox"}
    assert [row[2].partition(":")[0] for row in rows] == ["unix", "tcp"]
    assert all(row[1] == "v2" for row in rows)


async def test_network_routes_are_filtered(terminal: Terminal) -> None:
    (route,) = (await terminal.inside("network", "routes", "--service=toolbox", "-o=json")).json()
    address = route["addresses"][1]
    rows = (await terminal.inside("network", "routes", "--address", address)).rows()
    assert {row[0] for row in rows} == {"toolbox"}
    assert (await terminal.inside("network", "routes", "--address=tcp:none:1")).rows() == []
    assert (await terminal.inside("network", "routes", "--network=elsewhere")).rows() == []
    assert (await terminal.inside("network", "routes", "--network=micro")).rows()


async def test_network_services_and_graph(terminal: Terminal) -> None:
    names = (await terminal.inside("network", "services")).lines
    graph = (await terminal.inside("network", "graph")).json()
    assert set(graph["services"]) == set(names)
    assert graph["services"]["toolbox"] == [
        {"id": "toolbox-1", "version": "v2", "host": graph["services"]["toolbox"][0]["host"]}
    ]


async def test_health_of_a_service_that_is_well(terminal: Terminal) -> None:
    done = await terminal.inside("health", "Toolbox")
    (row,) = done.rows()
    assert (row[0], row[1], row[-1]) == ("toolbox-1", "v2", "ok")


async def test_health_of_one_that_is_not(terminal: Terminal) -> None:
    """Exit 1, the reason in the table, and nothing in it that could drive a terminal."""
    done = await terminal.inside("health", "ailing")
    assert done.code == 1
    assert len(done.lines) == 2
    assert done.lines[1].startswith("ailing-1")
    assert "OSError: disk" in done.lines[1]
    assert "\x1b" not in done.out


async def test_health_asks_every_node(terminal: Terminal, town: Here) -> None:
    endpoints = Endpoints("pair")

    async def call() -> None: ...

    endpoints.add("Pair.Call", call)
    one = await town.host("pair", endpoints, node_id="pair-1")
    two = await town.host("pair", endpoints, node_id="pair-2")
    await town.known("pair")
    try:
        for command in ("health", "stats"):
            rows = (await terminal.inside(command, "pair")).rows()
            assert [row[0] for row in rows] == ["pair-1", "pair-2"]
    finally:
        await one.close()
        await two.close()


async def test_stats(terminal: Terminal) -> None:
    await terminal.inside("call", "helloworld", "call")
    (node,) = (await terminal.inside("stats", "helloworld", "-o", "json")).json()
    assert node["requests"] >= 2
    assert node["errors"] == 0
    done = await terminal.inside("stats", "helloworld")
    head = "NODE PID STARTED MEMORY REQUESTS ERRORS IN FLIGHT SOCKETS"
    assert done.lines[0].split() == head.split()
    (row,) = done.rows()
    assert row[:2] == ["helloworld-1", str(node["pid"])]
    assert re.fullmatch(r"\d+\.\d\dmb", row[4])


async def test_stats_of_a_node_that_does_not_answer(terminal: Terminal, town: Here) -> None:
    """Its figures are n/a, the others are shown, the reason is said, and the command fails."""
    endpoints = Endpoints("limp")

    async def call() -> None: ...

    endpoints.add("Limp.Call", call)
    well = await town.host("limp", endpoints, node_id="limp-1")
    full = Endpoints("limp", max_in_flight=0)
    full.add("Limp.Call", call)
    busy = await town.host("limp", full, node_id="limp-2")
    await town.known("limp")
    try:
        done = await terminal.inside("stats", "limp")
        assert done.code == 1
        rows = [line.split() for line in done.lines[1:]]
        assert rows[0][0] == "limp-1"
        assert rows[1] == ["limp-2", *["n/a"] * 7]
        assert done.err.startswith("limp-2: ")
    finally:
        await well.close()
        await busy.close()
