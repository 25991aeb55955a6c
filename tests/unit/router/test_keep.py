"""The last good table in a file, across restarts of the router."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from micro_ray.registry import Endpoint
from micro_ray.router import Delta, Entry, Route
from micro_ray.router.derive import LINGER, Router
from micro_ray.router.keep import Keeper
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.registry import RemoteRegistry
from tests.fixtures.lines import RegistryPlace
from tests.fixtures.registries import Clock, instance
from tests.fixtures.wait import eventually
from tests.unit.router.conftest import Follow

TABLE = Delta(
    epoch="e",
    revision=7,
    full=True,
    routes=(
        Route(
            id="a", namespace="t", service="s", version="2", addresses=("unix:/a", "tcp:h:1"),
            host="h", weight=3, metadata={"k": "ä"},
        ),
    ),
    entries=(
        Entry(
            namespace="t", service="s", version="2", metadata={"m": "n"},
            endpoints=(Endpoint(name="S.Call", request={"type": "object"}),),
        ),
    ),
    at=12.5,
)  # fmt: skip


async def test_what_is_kept_comes_back(folder: Path) -> None:
    keeper = Keeper(folder / "router-0.table")
    assert keeper.load() is None
    keeper.keep(lambda: TABLE)
    await keeper.close()
    assert Keeper(folder / "router-0.table").load() == TABLE


async def test_only_the_newest_is_written_and_the_file_is_always_whole(folder: Path) -> None:
    """Read all the while, it is one of the tables that were kept, in their order."""
    path = folder / "t"
    keeper = Keeper(path)
    asked: list[int] = []

    def table(number: int) -> Delta:
        asked.append(number)
        return Delta(epoch="e", revision=number, routes=TABLE.routes * 1_000, full=True)

    seen: list[int] = []
    for number in range(1, 200):
        keeper.keep(lambda number=number: table(number))
        await asyncio.sleep(0.002)
        if path.exists():
            seen.append(msgspec.msgpack.decode(path.read_bytes(), type=Delta).revision)
    await keeper.close()
    assert msgspec.msgpack.decode(path.read_bytes(), type=Delta).revision == 199
    assert seen == sorted(seen)
    assert len(asked) < 20
    assert os.listdir(folder) == ["t"]


async def test_who_reads_has_one_table_or_the_other(folder: Path) -> None:
    path = folder / "t"
    keeper = Keeper(path)
    keeper.keep(lambda: TABLE)
    await keeper.close()
    with path.open("rb", buffering=0) as reading:
        begun = reading.read(10)
        keeper.keep(lambda: replace(TABLE, revision=8, routes=()))
        await keeper.close()
        assert msgspec.msgpack.decode(begun + reading.readall(), type=Delta) == TABLE
    loaded = keeper.load()
    assert loaded is not None
    assert loaded.revision == 8


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\x00garbage", msgspec.msgpack.encode({"epoch": "e"}),
        msgspec.msgpack.encode(TABLE)[:-5], msgspec.msgpack.encode([TABLE]),
        msgspec.msgpack.encode({**msgspec.to_builtins(TABLE), "gone": ["of", "old"]}),
        b"\x81" * 100_000, bytes(len(msgspec.msgpack.encode(TABLE))),
    ],
    ids=["empty", "garbage", "another thing", "cut", "list", "another version", "deep", "zeros"],
)  # fmt: skip
async def test_an_unreadable_file_is_passed_over(
    folder: Path, content: bytes, place: RegistryPlace, follow: Follow,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    path = folder / "t"
    path.write_bytes(content)
    caplog.set_level(logging.WARNING)
    await place.registry.register(instance())
    following = await follow(keep=path)
    await following.has("n1")
    assert "is of no use" in caplog.text
    assert str(path) in caplog.text
    # ... and is replaced by a good one.
    await eventually(lambda: Keeper(path).load() is not None, within=2)


async def test_it_is_on_disk_before_it_has_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure a name may be there whose bytes are not, unless they went first."""
    path, done = folder / "t", list[tuple[str, str, bytes]]()
    fsync, replace_file = os.fsync, os.replace

    def synced(handle: int) -> None:
        named = Path(os.readlink(f"/proc/self/fd/{handle}"))
        done.append(("fsync", named.name, b"" if named.is_dir() else named.read_bytes()))
        fsync(handle)

    def renamed(old: Path, new: Path) -> None:
        done.append(("rename", new.name, b""))
        replace_file(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    keeper = Keeper(path)
    keeper.keep(lambda: TABLE)
    await keeper.close()
    whole = msgspec.msgpack.encode(TABLE)
    assert done == [("fsync", "t.new", whole), ("rename", "t", b""), ("fsync", folder.name, b"")]
    assert keeper.load() == TABLE


async def test_a_folder_that_cannot_be_written_is_reported_once_per_attempt(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    keeper = Keeper(folder / "nowhere" / "t")
    keeper.keep(lambda: TABLE)
    await keeper.close()
    assert "cannot be kept" in caplog.text
    (folder / "nowhere").mkdir()
    keeper.keep(lambda: TABLE)
    await keeper.close()
    assert keeper.load() == TABLE


async def test_a_file_in_place_of_the_table_that_is_a_folder(folder: Path) -> None:
    (folder / "t").mkdir()
    assert Keeper(folder / "t").load() is None


# -- a router that restarts ------------------------------------------------------------------------


async def kept(folder: Path, place: RegistryPlace) -> Path:
    """The file of a router that has followed a registry with two nodes, and is gone."""
    path = folder / "kept"
    for node in ("a", "b"):
        ends = (Endpoint(name=f"G.{node}"),)
        await place.registry.register(instance(node=node, endpoints=ends))
    remote = RemoteRegistry(WireDialer(), [place.address])
    async with Router(remote, keep=path) as router:
        await eventually(lambda: router.table.size == 2)
    await remote.close()
    return path


async def test_a_restarted_router_serves_before_the_registry_answers(
    folder: Path, place: RegistryPlace, follow: Follow, clock: Clock
) -> None:
    path = await kept(folder, place)
    await place.close()
    following = await follow(keep=path, grace=30)
    assert following.ids() == ["a", "b"]
    assert following.table.stale
    entry = following.table.entry("micro", "greeter")
    assert [e.name for e in entry.endpoints] == ["G.b"]
    first = await anext(aiter(following.router.watch()))
    assert (first.full, first.stale, len(first.routes)) == (True, True, 2)
    # As long as no registry answers, nothing is taken from it.
    clock.now += 10_000
    following.router.prune()
    assert following.ids() == ["a", "b"]
    # One that has lost all may be filled within the grace, which begins with its answer.
    await place.open()
    await following.stale(False)
    await place.registry.register(instance(node="a"))
    clock.now += 29
    following.router.prune()
    assert following.ids() == ["a", "b"]
    clock.now += 2
    await eventually(lambda: following.ids() == ["a"], within=2)


async def test_a_restarted_router_takes_what_the_registry_says(
    folder: Path, place: RegistryPlace, follow: Follow
) -> None:
    """The registry lived: the router sees another epoch than none, and confirms what is there."""
    path = await kept(folder, place)
    await place.registry.register(instance(node="c"))
    await place.registry.register(instance(node="a", weight=9))
    following = await follow(keep=path)
    await following.has("a", "b", "c")
    assert following.table.lookup("micro", "greeter")[0].weight == 9


async def test_a_stale_table_is_not_kept(
    folder: Path, place: RegistryPlace, follow: Follow
) -> None:
    path = await kept(folder, place)
    written = path.stat().st_mtime_ns
    await place.close()
    following = await follow(keep=path)
    await following.stale()
    await following.router.__aexit__()
    assert path.stat().st_mtime_ns == written


async def test_a_kept_service_without_nodes_lingers_and_goes(
    folder: Path, place: RegistryPlace, follow: Follow, clock: Clock
) -> None:
    path = folder / "t"
    path.write_bytes(msgspec.msgpack.encode(replace(TABLE, routes=())))
    following = await follow(keep=path)
    assert following.table.known("t", "s")
    await following.stale(False)
    clock.now += LINGER + 1
    following.router.prune()
    assert not following.table.known("t", "s")
