"""Without a server: said at once, with what to do, and exit 4; what needs none works on."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from micro_ray.sdk import client
from micro_ray.sdk.testing import Here
from tests.fixtures.terminal import Terminal
from tests.fixtures.wait import PROMPT

pytestmark = pytest.mark.asyncio(loop_scope="package")

#: Every command that needs the platform.
NEEDY = [
    ["services"],
    ["get", "service", "x"],
    ["status"],
    ["kill", "x"],
    ["logs", "x"],
    ["logs", "-f", "x"],
    ["update", "x"],
    ["run", "--name", "x", "--command", "sleep 1"],
    ["call", "x", "X.Call"],
    ["stream", "x", "X.Call"],
    ["store", "read", "k"],
    ["store", "write", "k", "v"],
    ["store", "list"],
    ["store", "delete", "k"],
    ["store", "databases"],
    ["store", "tables"],
    ["network", "nodes"],
    ["network", "routes"],
    ["network", "services"],
    ["network", "graph"],
    ["health", "x"],
    ["stats", "x"],
    ["helloworld", "call", "--name=Alice"],
    ["qqqqqqq"],
]


@pytest.mark.parametrize("args", NEEDY, ids=" ".join)
async def test_each_command_says_so(lonely: Terminal, args: list[str]) -> None:
    done = await lonely.inside(*args)
    assert done.code == 4
    assert not done.raw
    assert "no micro server at unix:/" in done.err.lower()
    assert done.err.endswith("; start one with `micro server`\n")
    assert "Traceback" not in done.err


async def test_a_service_that_cannot_be_looked_up_is_named(lonely: Terminal) -> None:
    done = await lonely.inside("helloworld", "call")
    assert done.err.startswith(
        "'helloworld' is no command, and no service can be looked up: no micro server at unix:/"
    )


async def test_a_command_that_was_meant_is_still_told(lonely: Terminal) -> None:
    done = await lonely.inside("stauts")
    assert done.code == 1
    assert done.err.startswith("Unrecognized micro command: stauts. Did you mean ")
    assert "status" in done.err


async def test_as_json(lonely: Terminal) -> None:
    done = await lonely.inside("services", "-o", "json")
    form = json.loads(done.err)
    assert (done.code, form["id"], form["code"]) == (4, "client", 503)


async def test_it_is_said_at_once(lonely: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not after the seconds that a service waits for a table."""
    monkeypatch.setattr(client, "FIRST_TABLE", 60.0)
    begun = time.monotonic()
    done = await lonely.inside("helloworld", "call")
    assert done.code == 4
    assert time.monotonic() - begun < PROMPT


@pytest.mark.parametrize("args", [["services"], ["helloworld", "call"], ["logs", "-f", "x"]])
async def test_sockets_that_a_killed_server_has_left(
    lonely: Terminal, town: Here, args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_TABLE", 60.0)
    with socket.socket(socket.AF_UNIX) as listener:
        path = f"{town.bootstrap.run}/left-{args[0]}.sock"
        listener.bind(path)
        listener.listen()
    begun = time.monotonic()
    done = await lonely.within(MICRO_ROUTER=f"unix:{path}").inside(*args)
    assert time.monotonic() - begun < PROMPT
    assert done.code == 4
    assert f"o micro server at unix:{path} (its socket is left, the server has ended)" in done.err


async def test_one_router_of_two_is_enough(terminal: Terminal) -> None:
    for order in ("{there},unix:/nowhere.sock", "unix:/nowhere.sock,{there}"):
        routers = order.format(there=terminal.environ["MICRO_ROUTER"])
        done = await terminal.within(MICRO_ROUTER=routers).inside("services")
        assert done.code == 0


@asynccontextmanager
async def mute(town: Here) -> AsyncIterator[str]:
    """Somebody who accepts and never says a word: a server that hangs."""
    path = f"{town.bootstrap.run}/mute-0.sock"
    held: list[asyncio.StreamWriter] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    server = await asyncio.start_unix_server(hold, path)
    async with server:
        yield f"unix:{path}"
        for writer in held:
            writer.close()


async def test_a_server_that_hangs_is_given_up(
    lonely: Terminal, town: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_TABLE", 0.3)
    async with mute(town) as router:
        done = await lonely.within(MICRO_ROUTER=router).inside("services")
    assert done.code == 4
    assert f"o micro server at {router}" in done.err


async def test_somebody_else_at_the_address(lonely: Terminal, town: Here) -> None:
    """A program that speaks another language: one line, and no tracebacks of ours."""
    path = f"{town.bootstrap.run}/other-0.sock"

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n" * 100)
        writer.close()

    async with await asyncio.start_unix_server(babble, path):
        done = await lonely.within(MICRO_ROUTER=f"unix:{path}").micro("services")
    assert done.code == 4
    assert done.err.count("\n") == 1
    assert f"o micro server at unix:{path}" in done.err


@pytest.mark.parametrize("args", [
    ["--help"], ["--version"], ["run", "--help"], ["store", "--help"], ["server", "--help"],
    ["completion", "bash"], ["env"], ["new", "made-alone"],
], ids=" ".join)  # fmt: skip
async def test_what_needs_no_server(lonely: Terminal, args: list[str]) -> None:
    done = await lonely.inside(*args)
    assert (done.code, done.err) == (0, "")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MICRO_ROUTER", "nonsense", "MICRO_ROUTER: 'nonsense' is neither"),
        ("MICRO_API_PORT", "many", "MICRO_API_PORT"),
        ("MICRO_RUN", "/tmp/" + "x" * 120, "MICRO_RUN"),
        ("MICRO_CONFIG", "/nowhere.toml", "MICRO_CONFIG names /nowhere.toml"),
    ],
)
async def test_settings_that_are_wrong_are_named(
    lonely: Terminal, variable: str, value: str, said: str
) -> None:
    wrong = lonely.within(**{variable: value})
    done = await wrong.inside("services")
    assert done.code == 1
    assert said in done.err
    # What needs no settings runs whatever they say.
    for args in (["--help"], ["--version"], ["new", f"x-{variable.lower().replace('_', '-')}"]):
        assert (await wrong.inside(*args)).code == 0
