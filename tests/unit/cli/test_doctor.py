"""doctor: each thing that can be wrong is found on a machine where it is, with what to do."""

from __future__ import annotations

import asyncio
import fcntl
import importlib.metadata
import json
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from micro_ray.api.app import Api
from micro_ray.cli import doctor
from micro_ray.cli.owners import lock_holder, port_holder
from micro_ray.sdk import client
from micro_ray.sdk.testing import Here, platform
from micro_ray.serve.grpc_listener import GrpcListener
from micro_ray.serve.listener import Listener
from micro_ray.settings import Api as ApiSettings
from micro_ray.settings import Proxy as ProxySettings
from tests.fixtures.terminal import Done, Terminal
from tests.unit.cli.test_no_server import mute

pytestmark = pytest.mark.asyncio(loop_scope="package")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def alone(lonely: Terminal) -> Terminal:
    """No server, and ports that nobody has."""
    return lonely.within(MICRO_API_PORT=str(free_port()), MICRO_PROXY_PORT=str(free_port()))


async def found(terminal: Terminal) -> tuple[dict[str, tuple[bool, str]], Done]:
    done = await terminal.inside("doctor", "-o", "json")
    rows = {row["check"]: (row["good"], row["text"]) for row in json.loads(done.out)}
    assert done.code == (0 if all(good for good, _ in rows.values()) else 1)
    return rows, done


@asynccontextmanager
async def door(town: Here) -> AsyncIterator[int]:
    """The real door in front of the platform."""
    network = await town.network()
    settings = ApiSettings()
    api = Api(network, network.table, settings, ready=lambda: True)
    listener = Listener(api, "127.0.0.1", 0, settings)
    await listener.start()
    try:
        yield listener.bound
    finally:
        await listener.stop()


@asynccontextmanager
async def grpc_door() -> AsyncIterator[int]:
    """The real listener of the gRPC door."""
    listener = GrpcListener([], ProxySettings(port=0), asyncio.Event())
    await listener.start()
    try:
        yield listener.bound
    finally:
        await listener.stop(0)


async def test_all_is_well(terminal: Terminal, town: Here) -> None:
    async with door(town) as port, grpc_door() as other:
        well = terminal.within(MICRO_API_PORT=str(port), MICRO_PROXY_PORT=str(other))
        rows, done = await found(well)
        assert done.code == 0, rows
        assert list(rows) == [
            "python", "ray", "disk", "state", "server", "certs", "sockets", "api", "proxy",
        ]  # fmt: skip
        assert rows["ray"][1] == importlib.metadata.version("ray")
        assert rows["server"] == (True, "all platform services")
        table = await well.micro("doctor")
        assert table.code == 0
        assert table.lines[0].split() == ["CHECK", "FOUND"]
        assert all("ok" in line for line in table.lines[1:])


async def test_no_server(alone: Terminal) -> None:
    rows, done = await found(alone)
    assert done.code == 1
    good, text = rows.pop("server")
    assert not good
    assert text.startswith("no micro server at unix:/")
    assert text.endswith("start one with `micro server`")
    assert all(good for good, _ in rows.values())
    table = await alone.inside("doctor")
    assert any(line.split()[:2] == ["server", "WRONG"] for line in table.lines)


async def test_a_server_that_holds_its_lock_and_does_not_answer(alone: Terminal) -> None:
    state = Path(alone.environ["MICRO_STATE"])
    with (state / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert lock_holder(state / "server.lock") == os.getpid()
        rows, _ = await found(alone)
        assert not rows["server"][0]
        assert rows["server"][1].startswith(f"micro server (pid {os.getpid()}) does not answer")
    # The file alone, left by a server that has ended, is nothing.
    assert lock_holder(state / "server.lock") == 0
    assert lock_holder(state / "none") == 0
    assert "no micro server" in (await found(alone))[0]["server"][1]


async def test_looking_for_the_lock_does_not_take_it(alone: Terminal) -> None:
    """A server that starts while the doctor looks must get it."""
    state = Path(alone.environ["MICRO_STATE"])
    (state / "server.lock").touch()
    looking = asyncio.create_task(found(alone))
    with (state / "server.lock").open("w") as lock:
        while not looking.done():
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(lock, fcntl.LOCK_UN)
            await asyncio.sleep(0)
    await looking


async def test_part_of_the_platform_is_missing(town: Here, lonely: Terminal) -> None:
    """A platform without a runtime answers, and is not complete."""
    async with platform() as other:
        bare = lonely.within(
            MICRO_ROUTER=",".join(other.bootstrap.routers), MICRO_API_PORT=str(free_port())
        )
        rows, _ = await found(bare)
    assert rows["server"] == (
        False,
        "missing: runtime; they come back by themselves within seconds",
    )
    good, text = rows["api"]
    assert not good
    assert text.startswith("nothing answers on 127.0.0.1:")


async def test_a_port_that_another_program_has(lonely: Terminal, town: Here) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as other:
        port = other.sockets[0].getsockname()[1]
        both = {"MICRO_API_PORT": str(port), "MICRO_PROXY_PORT": str(port)}
        rows, done = await found(lonely.within(**both))
        holder = port_holder(port)
        assert re.fullmatch(rf"pid {os.getpid()} \(.+\)", holder)
    good, text = rows["api"]
    assert (done.code, good) == (1, False)
    assert text == (
        f"127.0.0.1:{port} is taken by {holder}; stop it, or set MICRO_API_PORT to another port"
    )
    assert rows["proxy"] == (False, text.replace("MICRO_API_PORT", "MICRO_PROXY_PORT"))


async def test_a_program_that_says_nothing_has_the_port(
    lonely: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 0.3)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        rows, _ = await found(lonely.within(MICRO_API_PORT=str(mute.getsockname()[1])))
    assert not rows["api"][0]


async def test_sockets_left_by_a_killed_server(alone: Terminal) -> None:
    run = Path(alone.environ["MICRO_STATE"]) / "run"
    run.mkdir()
    for name in ("router-0", "store-0"):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{run}/{name}.sock")
    rows, _ = await found(alone)
    assert rows["sockets"][0]
    assert rows["sockets"][1].startswith(f"2 left in {run} by processes that were killed")
    assert "the server has ended" in rows["server"][1]


@pytest.mark.parametrize("state", ["/proc/micro", "/dev/null", "/dev/null/deep/down"])
async def test_a_state_that_cannot_be_written(alone: Terminal, state: str) -> None:
    rows, done = await found(alone.within(MICRO_STATE=state, MICRO_RUN="/tmp"))
    good, text = rows["state"]
    assert (done.code, good) == (1, False)
    assert text.endswith("; set MICRO_STATE to a folder that you may write")


async def test_a_state_that_is_not_there_yet(alone: Terminal, here_folder: Path) -> None:
    rows, _ = await found(alone.within(MICRO_STATE=f"{here_folder}/a/b"))
    assert rows["state"] == (True, f"{here_folder}/a/b")
    assert not (here_folder / "a").exists()  # looking makes nothing


@pytest.mark.parametrize(
    ("version", "good"),
    [((3, 10, 14), False), ((3, 11, 0), True), ((3, 14, 2), True), ((3, 15, 0), False)],
)
async def test_the_python(version: tuple[int, ...], good: bool) -> None:
    name, found_good, text = doctor.python(version)
    assert (name, found_good) == ("python", good)
    assert text.startswith(".".join(map(str, version)))
    assert good or "use Python 3.11 to 3.14" in text


async def test_the_disk(tmp_path: Path) -> None:
    assert doctor.disk(tmp_path, 10 * 2**30) == ("disk", True, f"10.0 GiB free at {tmp_path}")
    _, good, text = doctor.disk(tmp_path, 100 * 2**20)
    assert not good
    assert text.startswith(f"0.1 GiB free at {tmp_path}; make room, or set MICRO_STATE")


async def test_settings_that_are_wrong_end_the_examination(alone: Terminal) -> None:
    rows, done = await found(alone.within(MICRO_API_PORT="many"))
    assert done.code == 1
    assert list(rows) == ["python", "ray", "settings"]
    assert "MICRO_API_PORT" in rows["settings"][1]


async def test_a_server_that_hangs(
    alone: Terminal, town: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "FIRST_TABLE", 0.3)
    async with mute(town) as router:
        rows, _ = await found(alone.within(MICRO_ROUTER=router))
    assert not rows["server"][0]
