"""Where a server listens: sockets that are taken, stale, in the way, or not to be had."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from micro_ray.errors import BadRequest, Conflict, Unavailable
from micro_ray.wire.server import Incoming, Server
from tests.unit.wire.line import Line, call


async def echo(incoming: Incoming) -> None:
    await incoming.reply(await incoming.receive() or b"")


def stale(path: Path) -> None:
    """The socket of a process that was killed."""
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.listen()
    dead.close()
    assert path.is_socket()


async def test_a_socket_is_its_owners_alone(line: Line) -> None:
    _, address = await line.server(echo)
    mode = os.stat(address.removeprefix("unix:")).st_mode
    assert stat.S_IMODE(mode) == 0o600


async def test_the_mask_of_the_process_is_as_before(line: Line) -> None:
    before = os.umask(0o022)
    try:
        await line.server(echo)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


async def test_a_stale_socket_is_replaced(line: Line, folder: Path) -> None:
    stale(folder / "a.sock")
    async with Server(echo) as server:
        address = await server.listen(f"unix:{folder}/a.sock")
        peer = await line.peer(address)
        assert await peer.call(call(), b"x") == b"x"
        await peer.close()
    assert not (folder / "a.sock").exists()


async def test_a_socket_in_use_is_not(line: Line, folder: Path) -> None:
    first, address = await line.server(echo)
    async with Server(echo) as second:
        with pytest.raises(Conflict, match="another process listens on"):
            await second.listen(address)
    peer = await line.peer(address)
    assert await peer.call(call(), b"still the first") == b"still the first"
    assert len(first.connections) == 1


@pytest.mark.parametrize("what", ["file", "empty file", "folder", "link", "dangling link", "fifo"])
async def test_what_is_no_socket_is_left_alone(folder: Path, what: str) -> None:
    """Somebody's file at that name is not ours to remove."""
    path, target = folder / "a.sock", folder / "target"
    if "file" in what:
        path.write_text("precious" if what == "file" else "")
    elif what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    else:
        if what == "link":
            target.write_text("precious")
        path.symlink_to(target)
    before = os.lstat(path)
    async with Server(echo) as server:
        with pytest.raises(Conflict, match="is in the way: it is no socket"):
            await server.listen(f"unix:{path}")
    after = os.lstat(path)
    assert (after.st_ino, after.st_mode, after.st_size) == (
        before.st_ino, before.st_mode, before.st_size
    )  # fmt: skip
    assert what != "link" or target.read_text() == "precious"


async def test_a_socket_that_is_full_is_in_use(folder: Path) -> None:
    """Nobody accepts there just now, but somebody listens."""
    path = folder / "a.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))
        async with Server(echo) as server:
            with pytest.raises(Conflict, match=r"another process listens on .* and is busy"):
                await server.listen(f"unix:{path}")
    assert path.exists()


async def test_a_socket_of_another_kind_is_in_the_way(folder: Path) -> None:
    path = folder / "a.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        async with Server(echo) as server:
            with pytest.raises(Conflict, match="is in the way: Protocol wrong type"):
                await server.listen(f"unix:{path}")
        assert path.exists()


@pytest.mark.parametrize(
    ("address", "error", "why"),
    [
        ("unix:/nowhere/at/all.sock", Unavailable, "No such file"),
        ("unix:/proc/self/x.sock", Unavailable, "cannot listen on /proc/self/x.sock"),
        ("tcp:nobody.invalid:0", Unavailable, "cannot listen on tcp:nobody.invalid:0"),
        ("tcp:192.0.2.1:0", Unavailable, "Cannot assign requested address"),
        ("http://x", BadRequest, "not an address"),
    ],
)
async def test_addresses_that_cannot_be_had(address: str, error: type[Exception], why: str) -> None:
    async with Server(echo) as server:
        with pytest.raises(error, match=why):
            await server.listen(address)


async def test_a_port_in_use(line: Line) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"tcp:127.0.0.1:{other.getsockname()[1]}"
        async with Server(echo) as server:
            with pytest.raises(Conflict, match=f"another process listens on {address}"):
                await server.listen(address)


async def test_closing_removes_the_own_socket_and_no_other(folder: Path) -> None:
    path = folder / "a.sock"
    async with Server(echo) as first:
        await first.listen(f"unix:{path}")
        # A successor has taken the name, as after a kill and a restart.
        path.unlink()
        async with Server(echo) as second:
            await second.listen(f"unix:{path}")
            await first.close()
            assert path.is_socket()
    assert not path.exists()


async def test_draining_gives_the_name_free(line: Line, folder: Path) -> None:
    path = folder / "a.sock"
    async with Server(echo) as first:
        await first.listen(f"unix:{path}")
        await first.drain(0.1)
        assert not path.exists()
        async with Server(echo) as second:
            await second.listen(f"unix:{path}")
            peer = await line.peer(f"unix:{path}")
            assert await peer.call(call(), b"x") == b"x"
            await peer.close()
