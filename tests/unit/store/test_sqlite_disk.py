"""SQLite against what happens to disks and processes: a kill, a full disk, a broken file."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from micro_ray.errors import InternalError, MicroError, Unavailable
from micro_ray.store.sqlite import SqliteStore

#: A process that writes one record after another and says so after each acknowledgement.
WRITER = """
import asyncio, sys
from pathlib import Path
from micro_ray.store.sqlite import SqliteStore

async def main():
    async with SqliteStore(Path(sys.argv[1])) as store:
        async def lane(lane):
            number = 0
            while True:
                number += 1
                record = await store.write(f"{lane}/{number}", b"x" * 100)
                print(lane, number, record.version, flush=True)
        await asyncio.gather(*(lane(n) for n in range(8)))

asyncio.run(main())
"""

#: A process that adds to one counter by compare-and-set, as often as it is told.
COUNTER = """
import asyncio, sys
from pathlib import Path
from micro_ray.errors import Conflict, NotFound
from micro_ray.store.sqlite import SqliteStore

async def main():
    async with SqliteStore(Path(sys.argv[1])) as store:
        left = int(sys.argv[2])
        while left:
            try:
                record = await store.read("counter")
                value, version = int(record.value), record.version
            except NotFound:
                value, version = 0, 0
            try:
                await store.write("counter", str(value + 1).encode(), expected=version)
                left -= 1
            except Conflict:
                pass

asyncio.run(main())
"""


def started(script: str, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *args], stdout=subprocess.PIPE, text=True
    )


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """Four lives of a writer, each killed in the middle: nothing it was told is missing, no version
    is given twice."""
    acknowledged: dict[str, int] = {}
    for _ in range(4):
        writer = started(WRITER, str(tmp_path))
        assert writer.stdout
        lines = [await asyncio.to_thread(writer.stdout.readline) for _ in range(300)]
        os.kill(writer.pid, signal.SIGKILL)
        lines += (await asyncio.to_thread(writer.communicate))[0].splitlines()
        for line in lines:
            if len(line.split()) < 3:
                continue  # torn by the kill
            lane, number, version = line.split()
            acknowledged[f"{lane}/{number}"] = int(version)
        async with SqliteStore(tmp_path) as store:
            for key, version in acknowledged.items():
                assert (await store.read(key)).version >= version
            assert await store.revision() >= max(acknowledged.values())
    assert len(acknowledged) >= 300


async def test_processes_share_the_files(tmp_path: Path) -> None:
    """Compare-and-set holds between processes: no addition is lost."""
    counters = [started(COUNTER, str(tmp_path), "100") for _ in range(3)]
    for counter in counters:
        await asyncio.to_thread(counter.communicate)
        assert counter.returncode == 0
    async with SqliteStore(tmp_path) as store:
        assert (await store.read("counter")).value == b"300"


async def test_another_process_is_seen_by_watchers(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path) as here, SqliteStore(tmp_path) as there:
        await here.write("k", b"1")
        watch = here.watch(revision=1)
        seen = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        await there.write("k", b"2")
        async with asyncio.timeout(2):
            assert (await seen).revision == 2
        await watch.aclose()  # type: ignore[attr-defined]


async def test_commits_reach_the_disk(tmp_path: Path) -> None:
    """The log is written ahead and synced at each commit; the settings are what they say."""
    async with SqliteStore(tmp_path) as store:
        await store.write("k", b"v")
        (file,) = store._files.values()
        connection = file._connections[0]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


async def fill(store: SqliteStore) -> tuple[dict[str, bytes], MicroError]:
    """Write until the disk is full; what was acknowledged, and the refusal."""
    kept: dict[str, bytes] = {}
    for number in range(1000):
        value = bytes([number % 251]) * 20_000
        try:
            await store.write(f"k{number}", value)
        except MicroError as error:
            return kept, error
        kept[f"k{number}"] = value
    raise AssertionError("the disk never filled up")


async def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    """Writes are refused with what to do, reads go on, and writes again once there is room."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2**19))
    async with SqliteStore(small_disk / "store") as store:
        kept, error = await fill(store)
        assert isinstance(error, Unavailable)
        assert "full" in error.detail
        assert "free some space" in error.detail
        assert error.retry_after is not None
        for key, value in kept.items():
            assert (await store.read(key)).value == value
        ballast.unlink()
        await store.write("after", b"room")
        assert (await store.read("after")).value == b"room"
    async with SqliteStore(small_disk / "store") as store:
        for key, value in kept.items():
            assert (await store.read(key)).value == value


async def test_a_blob_that_does_not_fit_leaves_nothing(small_disk: Path) -> None:
    async def large() -> object:
        for _ in range(64):
            yield bytes(2**16)

    async with SqliteStore(small_disk / "store") as store:
        with pytest.raises(Unavailable, match="No space left"):
            await store.write_blob("b", large())  # type: ignore[arg-type]
        assert await store.blobs() == []
        assert list((small_disk / "store" / "blobs" / "micro").iterdir()) == []


async def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "micro.db").write_bytes(
        b"no database at all, but long enough to be read as one" * 9
    )
    async with SqliteStore(tmp_path) as store:
        with pytest.raises(InternalError, match=r"micro\.db: .*restore it from a backup"):
            await store.read("k")
    assert (tmp_path / "micro.db").read_bytes().startswith(b"no database")


async def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("in the way")
    with pytest.raises(Unavailable, match="store"):
        async with SqliteStore(tmp_path / "store"):
            pass


async def test_a_lock_that_is_held_is_waited_for(tmp_path: Path) -> None:
    """Another program's transaction delays a write, and does not fail it."""
    async with SqliteStore(tmp_path) as store:
        await store.write("k", b"1")
        with sqlite3.connect(tmp_path / "micro.db", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            write = asyncio.ensure_future(store.write("k", b"2"))
            done, _ = await asyncio.wait({write}, timeout=0.2)
            assert not done
            other.execute("COMMIT")
        other.close()
        async with asyncio.timeout(5):
            await write
        assert (await store.read("k")).value == b"2"


async def test_what_a_killed_process_left_of_a_blob_goes(tmp_path: Path) -> None:
    async def piece() -> object:
        yield b"kept"

    async with SqliteStore(tmp_path) as store:
        await store.write_blob("b", piece())  # type: ignore[arg-type]
        left = tmp_path / "blobs" / "micro" / ("0" * 32)
        left.write_bytes(b"half")
        await store.sweep_blobs()
        assert left.exists()  # it may still be being written
        os.utime(left, (0, 0))
        await store.sweep_blobs()
        assert not left.exists()
        assert b"".join([p async for p in store.read_blob("b")]) == b"kept"


async def test_one_write_that_breaks_takes_no_other_with_it(tmp_path: Path) -> None:
    """Whatever it raises: those that wait with it share a commit, not its fate."""

    def breaks(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM records")
        raise OverflowError("too large for SQLite")

    async with SqliteStore(tmp_path) as store:
        await store.write("first", b"1")
        (file,) = store._files.values()
        done = await asyncio.gather(
            store.write("before", b"1"),
            file.write(breaks),
            store.write("after", b"1"),
            return_exceptions=True,
        )
        assert [isinstance(outcome, BaseException) for outcome in done] == [False, True, False]
        assert isinstance(done[1], OverflowError)
        assert await store.keys() == ["after", "before", "first"]
