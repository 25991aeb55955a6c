"""Uploaded sources: kept while they are named, apart by namespace, and then removed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from micro_ray.errors import BadRequest, NotFound, TooLarge
from micro_ray.runtime import source
from micro_ray.runtime.archives import Archives
from micro_ray.store import Store
from tests.fixtures.stores import Clock, memory, sqlite


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    opener = {"memory": memory, "sqlite": sqlite}[request.param]
    async with opener(tmp_path / "db", Clock()) as store:
        yield store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def archives(store: Store, tmp_path: Path, clock: Clock) -> Archives:
    return Archives(store, tmp_path, namespace="micro", limit=100_000, clock=clock)


def packed(tmp_path: Path, text: str = "1") -> bytes:
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    (folder / "main.py").write_text(text)
    return source.pack(folder)


async def test_kept_and_unpacked(archives: Archives, tmp_path: Path) -> None:
    archive = packed(tmp_path)
    digest = await archives.keep(archive, "micro")
    assert digest == hashlib.sha256(archive).hexdigest()
    assert await archives.has("micro", digest)
    assert not await archives.has("micro", "0" * 64)
    folder = await archives.unpacked("micro", digest)
    assert folder == tmp_path / "sources" / "micro" / digest
    assert (folder / "main.py").read_text() == "1"
    assert await archives.unpacked("micro", digest) == folder


async def test_namespaces_are_apart(archives: Archives, tmp_path: Path) -> None:
    """To know the digest of another's source is not to have it."""
    digest = await archives.keep(packed(tmp_path), "a")
    assert not await archives.has("b", digest)
    with pytest.raises(NotFound):
        await archives.unpacked("b", digest)


async def test_refused_archives_are_not_kept(
    archives: Archives, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(BadRequest, match="not a gzipped tar"):
        await archives.keep(b"nonsense", "micro")

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield os.urandom(40_000)

    with pytest.raises(TooLarge, match="source over 100000 bytes"):
        await archives.keep(endless(), "micro")

    async def breaks() -> AsyncIterator[bytes]:
        yield packed(tmp_path)[:50]
        raise ConnectionError("the client has gone")

    with pytest.raises(ConnectionError):
        await archives.keep(breaks(), "micro")
    assert await store.blobs() == []


async def test_many_want_it_at_once(archives: Archives, tmp_path: Path) -> None:
    digest = await archives.keep(packed(tmp_path), "micro")
    folders = await asyncio.gather(*(archives.unpacked("micro", digest) for _ in range(10)))
    assert len(set(folders)) == 1
    assert os.listdir(folders[0].parent) == [digest]


async def test_a_damaged_archive(archives: Archives, store: Store, tmp_path: Path) -> None:
    digest = await archives.keep(packed(tmp_path), "micro")

    async def other() -> AsyncIterator[bytes]:
        yield packed(tmp_path, "other")

    (blob,) = await store.blobs()
    await store.write_blob(blob.key, other())
    with pytest.raises(NotFound, match="is damaged: upload it again"):
        await archives.unpacked("micro", digest)


async def test_what_nothing_names_is_removed_after_an_hour(
    archives: Archives, store: Store, tmp_path: Path, clock: Clock
) -> None:
    named = await archives.keep(packed(tmp_path, "named"), "micro")
    other = await archives.keep(packed(tmp_path, "other"), "micro")
    same = await archives.keep(packed(tmp_path, "named"), "tenant")
    folder = await archives.unpacked("micro", other)
    kept = await archives.unpacked("micro", named)
    wanted = {("micro", named)}
    await archives.collect(wanted)
    clock.now += 3_599
    await archives.collect(wanted)
    assert await archives.has("micro", other)
    clock.now += 2
    await archives.collect(wanted)
    assert not await archives.has("micro", other)
    assert not await archives.has("tenant", same)
    assert not folder.exists()
    assert await archives.has("micro", named)
    assert kept.exists()
    assert len(await store.blobs()) == 1


async def test_an_hour_begins_anew(archives: Archives, tmp_path: Path, clock: Clock) -> None:
    """With an upload of the same, and with the last workload that named it."""
    archive = packed(tmp_path)
    digest = await archives.keep(archive, "micro")
    await archives.collect(set())
    for again in (True, False):
        clock.now += 3_500
        if again:
            await archives.keep(archive, "micro")
        else:
            await archives.collect({("micro", digest)})
            await archives.collect(set())
        clock.now += 3_500
        await archives.collect(set())
        assert await archives.has("micro", digest)
    clock.now += 200
    await archives.collect(set())
    assert not await archives.has("micro", digest)


async def test_an_upload_while_the_same_is_removed(
    archives: Archives, tmp_path: Path, clock: Clock
) -> None:
    """Whichever comes first, what was uploaded is there afterwards."""
    archive = packed(tmp_path)
    digest = await archives.keep(archive, "micro")
    await archives.collect(set())
    for _ in range(20):
        clock.now += 4_000
        await asyncio.gather(archives.collect(set()), archives.keep(archive, "micro"))
        assert await archives.has("micro", digest)


async def test_a_new_life_waits_an_hour_too(
    archives: Archives, store: Store, tmp_path: Path, clock: Clock
) -> None:
    """It cannot know how long something has lain there; folders without an archive go as well."""
    digest = await archives.keep(packed(tmp_path), "micro")
    (tmp_path / "sources" / "micro" / ("0" * 64)).mkdir(parents=True)
    anew = Archives(store, tmp_path, namespace="micro", limit=1, clock=clock)
    clock.now += 10_000
    await anew.collect(set())
    assert await anew.has("micro", digest)
    clock.now += 3_601
    await anew.collect(set())
    assert not await anew.has("micro", digest)
    assert list((tmp_path / "sources" / "micro").iterdir()) == []


async def test_what_a_killed_unpacking_has_left(archives: Archives, tmp_path: Path) -> None:
    for name, old in (("a.xyz.new", 10_000), ("b.xyz.new", 10)):
        left = tmp_path / "sources" / "micro" / name
        left.mkdir(parents=True)
        at = time.time() - old
        os.utime(left, (at, at))
    await archives.collect(set())
    assert os.listdir(tmp_path / "sources" / "micro") == ["b.xyz.new"]


async def test_more_than_one_listing_holds(
    archives: Archives, store: Store, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store lists so many blobs at once; there may be more sources."""
    digests = [await archives.keep(packed(tmp_path, str(n)), "micro") for n in range(12)]
    listed = type(store).blobs

    async def few(self: Store, *, prefix: str = "", namespace: str = "micro") -> object:
        found = await listed(self, prefix=prefix, namespace=namespace)
        if len(found) > 3:
            raise TooLarge("store", "give a longer prefix")
        return found

    monkeypatch.setattr(type(store), "blobs", few)
    await archives.collect(set())
    clock.now += 4_000
    await archives.collect({("micro", digests[0])})
    monkeypatch.undo()
    assert [blob.key for blob in await store.blobs()] == [f"source/{digests[0]}/micro"]
