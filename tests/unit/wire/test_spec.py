"""docs/wire.md says what the code does: its bytes, its tables, its JSON."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import msgspec

from micro_ray.network import Call
from micro_ray.router import Delta
from micro_ray.sdk.testing import Here
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.protocol import COST, LEAST, MAX_CREDIT, MAX_HEADER, MAX_PING, Kind, Limits
from micro_ray.wire.server import Incoming
from tests.fixtures.wait import eventually
from tests.unit.wire import raw
from tests.unit.wire.line import Line

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "wire.md").read_text()


def section(name: str) -> str:
    """What is below a heading."""
    _, _, rest = TEXT.partition(f"\n## {name}\n")
    assert rest, f"no section {name!r}"
    return rest.partition("\n## ")[0]


def blocks(text: str, language: str = "") -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)


def table(text: str, first: str) -> list[list[str]]:
    """The rows of the table whose first column is headed like this."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(f"| {first} |"):
            break
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert rows, f"no table of {first}"
    return rows


def number(text: str) -> int:
    """1,024 or 16 MiB or 2^31 - 1."""
    if found := re.fullmatch(r"([0-9.]+) ([KM])iB", text):
        return int(float(found[1]) * {"K": 2**10, "M": 2**20}[found[2]])
    return int(text.replace(",", ""))


def test_kinds_and_flags() -> None:
    frames = section("Frames")
    assert {int(row[0]): row[1] for row in table(frames, "kind")} == {
        int(kind): kind.name for kind in Kind
    }
    flags = {row[1]: int(row[0]) for row in table(frames, "flag")}
    assert flags == {"END": raw.END, "MORE": raw.MORE, "ACK": raw.ACK, "BARE": raw.BARE}


def test_limits() -> None:
    rows = {row[0]: row for row in table(section("The beginning"), "member")}
    defaults = Limits()
    for name in ("max_frame", "max_message", "window", "max_streams"):
        assert number(rows[name][2]) == getattr(defaults, name)
    assert number(rows["max_header"][2]) == MAX_HEADER
    for name in ("max_frame", "window", "max_header"):
        assert number(rows[name][3]) == LEAST
    hello = json.loads(blocks(section("The beginning"), "json")[0])
    assert set(rows) == set(hello) - {"magic", "versions"}
    assert f"{defaults.handshake:g} seconds" in section("The beginning")
    assert f"{defaults.keepalive:g} seconds" in section("Staying alive")
    assert f"first {MAX_PING} bytes" in section("Staying alive")
    assert f"plus\n{COST}**" in section("Flow control")
    assert MAX_CREDIT == 2**31 - 1
    assert "2^31 - 1" in section("Flow control")


def packed(block: str) -> bytes:
    return bytes.fromhex("".join(block.split()))


async def test_the_example_byte_by_byte(line: Line) -> None:
    """Our caller and our server send exactly what the page shows."""
    hello, request, answer = map(packed, blocks(section("An example, byte by byte")))

    async def serve(peer: raw.Raw) -> None:
        reader = peer._reader
        assert await reader.readexactly(len(hello)) == hello
        peer.send(hello)
        assert await reader.readexactly(len(request)) == request
        peer.send(answer)
        await peer.rest()

    head = Call(service="helloworld", endpoint="Helloworld.Call", timeout=29.9999)
    async with raw.listening(f"{line.folder}/s", serve) as address:
        peer = await line.peer(address)
        said = await peer.call(head, b'{"name":"Alice"}')
        assert json.loads(said) == {"message": "Hello Alice"}

    async def greet(incoming: Incoming) -> None:
        name = json.loads(await incoming.receive() or b"")["name"]
        await incoming.reply(json.dumps({"message": f"Hello {name}"}).encode().replace(b": ", b":"))

    _, address = await line.server(greet)
    async with raw.connected(address) as caller:
        caller.send(hello)
        assert await caller._reader.readexactly(len(hello)) == hello
        caller.send(request)
        assert await caller._reader.readexactly(len(answer)) == answer


async def attached(here: Here, message: bytes) -> tuple[raw.Raw, Any]:
    """Register as the page says, by hand."""
    path = here.bootstrap.registry[0].removeprefix("unix:")
    peer = raw.Raw(*await asyncio.open_unix_connection(path))
    await peer.greet()
    peer.send(raw.request(1, message, 0, service="registry", endpoint="Registry.Attach"))
    return peer, (await peer.get(raw.DATA)).json


async def test_a_service_registers_as_the_page_says(here: Here) -> None:
    message = blocks(section("Being found: a service"), "json")[0]
    peer, answer = await attached(here, message.encode())
    assert answer == {"node": "perl-0123"}
    assert '{"node":"perl-0123"}' in section("Being found: a service")
    (service,) = await here.registry.get("micro", "perl")
    assert service.endpoints[0].name == "Perl.Call"
    assert service.nodes[0].addresses == ("unix:/run/perl-0123.sock",)
    await here.known("perl")
    peer.send(raw.data(1, b"{}"))
    assert (await peer.get(raw.DATA)).json == {"node": "perl-0123"}
    await peer.close()
    await eventually(lambda: not here.client.table.lookup("micro", "perl"))


async def test_a_table_looks_as_the_page_says(here: Here) -> None:
    shown = json.loads(blocks(section("Finding: a client"), "json")[0])
    delta = msgspec.convert(shown, Delta)  # every member is known, and of its type
    assert set(shown) <= set(msgspec.to_builtins(delta))
    path = here.bootstrap.routers[0].removeprefix("unix:")
    peer = raw.Raw(*await asyncio.open_unix_connection(path))
    await peer.greet()
    peer.send(raw.request(1, b"{}", service="router", endpoint="Router.Watch"))
    first = (await peer.get(raw.DATA)).json
    assert first["full"] is True
    assert set(shown) <= set(first)
    assert set(shown["routes"][0]) == set(first["routes"][0])
    body = b'{"service":"store"}'
    peer.send(raw.request(3, body, service="router", endpoint="Table.Read"))
    found = await peer.get(raw.DATA)
    while found.stream != 3:
        found = await peer.get(raw.DATA)
    (route,) = found.json
    assert (route["service"], set(route)) == ("store", set(shown["routes"][0]))
    await peer.close()
    address = route["addresses"][0]
    store = await WireDialer().dial(address, timeout=5)
    health = Call(service="store", endpoint="Debug.Health", timeout=5)
    assert json.loads(await store.call(health, b""))["status"] == "ok"
    await store.close()
