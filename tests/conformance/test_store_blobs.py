"""What every store does: blobs."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence

import pytest

from micro_ray.errors import NotFound, TooLarge
from micro_ray.store import MAX_BLOB, Blob, Store
from tests.fixtures.wait import eventually


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def whole(store: Store, key: str, namespace: str = "micro") -> bytes:
    return b"".join([piece async for piece in store.read_blob(key, namespace=namespace)])


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [b""],
        [b"x"],
        [b"", b"a", b"", b"b", b""],
        [bytes(range(256)) * 300] * 3,
        [b'{"key": "other"}', b"\n"],
        [os.urandom(20 * 2**20)],
    ],
    ids=["none", "empty", "one", "gaps", "pieces", "like-json", "large"],
)
async def test_a_blob_comes_back(store: Store, chunks: Sequence[bytes]) -> None:
    value = b"".join(chunks)
    assert await store.write_blob("k/ä %", pieces(*chunks)) == Blob(key="k/ä %", size=len(value))
    sizes, same = [], bytearray()
    async for piece in store.read_blob("k/ä %"):
        sizes.append(len(piece))
        same += piece
    assert max(sizes, default=0) <= 64 * 1024
    equal = bytes(same) == value
    assert equal
    assert await store.blobs() == [Blob(key="k/ä %", size=len(value))]


async def test_blobs_are_listed_and_deleted(store: Store) -> None:
    for key in ("a%1", "ab1", "a%2", "ä"):
        await store.write_blob(key, pieces(key.encode()))
    await store.write_blob("a%1", pieces(b"other"), namespace="other")
    await store.write("a%record", b"")
    assert [b.key for b in await store.blobs()] == ["a%1", "a%2", "ab1", "ä"]
    assert [b.key for b in await store.blobs(prefix="a%")] == ["a%1", "a%2"]
    assert await store.delete_blob("a%1") is True
    assert await store.delete_blob("a%1") is False
    with pytest.raises(NotFound, match="a%1"):
        await whole(store, "a%1")
    assert await whole(store, "a%1", "other") == b"other"


async def test_a_blob_is_replaced_whole(store: Store) -> None:
    """Who reads sees the old one or the new one, whatever the moment."""
    values = [bytes([i]) * 300_000 for i in range(10)]
    await store.write_blob("k", pieces(values[0]))
    done = asyncio.Event()

    async def read() -> int:
        count = 0
        while not done.is_set() or not count:
            assert len(set(value := await whole(store, "k"))) == 1
            assert len(value) == 300_000
            count += 1
        return count

    readers = [asyncio.create_task(read()) for _ in range(3)]
    for value in values:
        await store.write_blob("k", pieces(value[:100_000], value[100_000:]))
    done.set()
    assert all(await asyncio.gather(*readers))
    assert await whole(store, "k") == values[-1]


async def test_half_a_blob_is_none(store: Store) -> None:
    await store.write_blob("old", pieces(b"old"))

    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        raise RuntimeError("the source broke")

    for key in ("old", "new"):
        with pytest.raises(RuntimeError, match="the source broke"):
            await store.write_blob(key, breaks())

    started = asyncio.Event()

    async def hangs() -> AsyncIterator[bytes]:
        yield b"x" * 100_000
        started.set()
        await asyncio.Event().wait()

    for key in ("old", "new"):
        started.clear()
        writer = asyncio.create_task(store.write_blob(key, hangs()))
        await asyncio.wait_for(started.wait(), 5)
        writer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writer
    assert await store.blobs() == [Blob(key="old", size=3)]
    assert await whole(store, "old") == b"old"


async def test_a_blob_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_BLOB == 2**30
    monkeypatch.setattr("micro_ray.store.checks.MAX_BLOB", 1000)
    await store.write_blob("k", pieces(b"x" * 500, b"x" * 500))
    with pytest.raises(TooLarge, match="1000"):
        await store.write_blob("l", pieces(b"x" * 500, b"x" * 501))
    assert await store.blobs() == [Blob(key="k", size=1000)]


async def test_leaving_a_blob_releases_it(store: Store) -> None:
    await store.write_blob("k", pieces(b"x" * 2**20))

    def open_blobs() -> int:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        found = 0
        for link in links:
            with contextlib.suppress(OSError):
                found += "/blobs/" in os.readlink(link)
        return found

    for _ in range(3):
        async with contextlib.aclosing(store.read_blob("k")) as reading:
            assert await anext(reading)
    await eventually(lambda: open_blobs() == 0)
