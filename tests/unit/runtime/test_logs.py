"""Logs as they are read: the last lines, what comes, what is kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from micro_ray.runtime import LogLine, logs
from micro_ray.runtime.logfile import LogFile
from micro_ray.runtime.logs import Reader


def write(path: Path, *rows: tuple[float, str]) -> None:
    """Rows with times of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(f"{at:.6f} out {text}\n" for at, text in rows)


def texts(lines: list[LogLine]) -> list[str]:
    return [line.text for line in lines]


class Ear:
    """Collects what a follower tells."""

    def __init__(self, reader: Reader) -> None:
        self.lines: list[LogLine] = []
        self._reader = reader

    async def listen(self) -> None:
        async for line in self._reader.follow():
            self.lines.append(line)

    async def hears(self, count: int) -> list[str]:
        async with asyncio.timeout(10):
            while len(self.lines) < count:
                await asyncio.sleep(0.01)
        return texts(self.lines)


@contextlib.asynccontextmanager
async def following(reader: Reader) -> AsyncIterator[Ear]:
    ear = Ear(reader)
    task = asyncio.create_task(ear.listen())
    try:
        yield ear
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL", 0.01)


def test_all_replicas_in_order_of_time(tmp_path: Path) -> None:
    write(tmp_path / "a-1.log", (1, "one"), (3, "three"), (5, "five"))
    write(tmp_path / "b.2.log", (2, "two"), (4, "four"))
    lines = Reader(tmp_path).tail(4)
    assert [(line.at, line.replica, line.stream, line.text) for line in lines] == [
        (2.0, "b.2", "out", "two"),
        (3.0, "a-1", "out", "three"),
        (4.0, "b.2", "out", "four"),
        (5.0, "a-1", "out", "five"),
    ]
    assert texts(Reader(tmp_path, "a-1").tail(2)) == ["three", "five"]
    assert Reader(tmp_path).tail(0) == []
    assert Reader(tmp_path / "missing").tail(5) == []


def test_across_a_full_file(tmp_path: Path) -> None:
    """The older file is read only as far as it is needed; equal times keep their order."""
    write(tmp_path / "r.log.1", (1, "one"), (2, "two"))
    write(tmp_path / "r.log", (2, "three"), (2, "four"))
    assert texts(Reader(tmp_path).tail(3)) == ["two", "three", "four"]
    assert texts(Reader(tmp_path).tail(9)) == ["one", "two", "three", "four"]
    (tmp_path / "r.log").unlink()
    assert texts(Reader(tmp_path).tail(9)) == ["one", "two"]


def test_only_whole_lines(tmp_path: Path) -> None:
    """A line that is being written, one cut by a kill, and what is no line at all."""
    write(tmp_path / "r.log", (1, "one"))
    with (tmp_path / "r.log").open("ab") as file:
        file.write(b"garbage without a time\n\n2.5 out two\n3.0 out unfinish")
    (tmp_path / "notes.txt").write_text("1.0 out no log\n")
    assert texts(Reader(tmp_path).tail(9)) == ["one", "two"]


def test_as_much_of_a_file_as_is_needed(tmp_path: Path) -> None:
    """However many lines are asked for, and however long they are."""
    rows = [(float(n), f"line {n} " + "x" * (n * 37 % 5_000)) for n in range(700)]
    write(tmp_path / "r.log", *rows)
    for count in (1, 2, 15, 100, 699, 700, 10_000):
        assert texts(Reader(tmp_path).tail(count)) == [text for _, text in rows[-count:]]


def test_the_end_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so much is read, and the first line of it is a whole one."""
    monkeypatch.setattr(logs, "TAIL_BYTES", 1_000)
    write(tmp_path / "r.log", *((n, f"line {n}") for n in range(500)))
    said = texts(Reader(tmp_path).tail(10_000))
    assert said == [f"line {n}" for n in range(500 - len(said), 500)]
    assert 20 < len(said) < 60


async def test_follow_begins_where_tail_ended(tmp_path: Path) -> None:
    """Lines between the two are neither lost nor told twice, whatever tail was asked for."""
    for tail in (0, 1, 50):
        folder = tmp_path / str(tail)
        write(folder / "r.log", (1, "one"), (2, "two"))
        reader = Reader(folder)
        assert texts(reader.tail(tail)) == ["one", "two"][2 - min(tail, 2) :]
        write(folder / "r.log", (3, "three"))
        write(folder / "new.log", (4, "of a new one"))
        async with following(reader) as ear:
            assert await ear.hears(2) == ["three", "of a new one"]
            write(folder / "r.log", (5, "five"))
            assert await ear.hears(3) == ["three", "of a new one", "five"]


async def test_follow_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    write(tmp_path / "r.log", (1, "one"))
    async with following(Reader(tmp_path)) as ear:
        assert await ear.hears(1) == ["one"]
        with (tmp_path / "r.log").open("ab", buffering=0) as file:
            file.write(b"2.0 out tw")
            write(tmp_path / "other.log", (3, "other"))
            assert await ear.hears(2) == ["one", "other"]
            file.write(b"o\n")
        assert await ear.hears(3) == ["one", "other", "two"]


async def test_follow_before_there_is_anything(tmp_path: Path) -> None:
    async with following(Reader(tmp_path / "later")) as ear:
        write(tmp_path / "later" / "r.log", (1, "one"))
        assert await ear.hears(1) == ["one"]


def flood(folder: Path, count: int, limit: int) -> Iterator[None]:
    """Writes numbered lines, a few at a time."""
    log = LogFile(folder / "r.log", limit)
    for number in range(0, count, 10):
        log.write("out", [b"%d" % n for n in range(number, number + 10)])
        yield
    log.close()


async def test_follow_across_full_files(tmp_path: Path) -> None:
    """Every line once and in order, while files fill up and are renamed under the reader."""
    reader = Reader(tmp_path)
    reader.tail(0)
    written = flood(tmp_path, 2_000, limit=8_192)
    async with following(reader) as ear:
        for number, _ in enumerate(written, 1):
            if number % 20 == 0:  # a file holds more than what comes between two looks
                await ear.hears(number * 10)
        assert await ear.hears(2_000) == [str(n) for n in range(2_000)]
    assert (tmp_path / "r.log.1").exists()


async def test_more_than_a_look_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a file that was renamed is read in as many looks as it needs."""
    monkeypatch.setattr(logs, "PIECE", 1_000)
    reader = Reader(tmp_path)
    log = LogFile(tmp_path / "r.log", 100_000)
    log.write("out", [b"first"])
    reader.tail(0)
    log.write("out", [b"%d" % n for n in range(5_000)])
    log.close()
    assert (tmp_path / "r.log.1").exists()
    async with following(reader) as ear:
        assert await ear.hears(5_000) == [str(n) for n in range(5_000)]


async def test_lines_that_were_lost_are_said_to_be(tmp_path: Path) -> None:
    """Two files were filled between two looks: what was in the first is gone."""
    reader = Reader(tmp_path)
    log = LogFile(tmp_path / "r.log", 1_000)
    log.write("out", [b"seen"])
    reader.tail(0)
    for number in range(200):
        log.write("out", [b"%d" % number])
    log.close()
    async with following(reader) as ear:
        said = await ear.hears(2)
        assert "lines are missing" in said[0]
        assert ear.lines[0].stream == "err"
        await ear.hears(1 + 200 - int(said[1]))
        assert texts(ear.lines)[1:] == [str(n) for n in range(int(said[1]), 200)]


def test_tail_while_files_are_renamed(tmp_path: Path) -> None:
    """A reader never sees a line twice, or a gap, whatever the moment."""
    ends = threading.Event()

    def write_on() -> None:
        log, number = LogFile(tmp_path / "r.log", 4_096), 0
        while not ends.is_set():
            log.write("out", [b"%d" % n for n in range(number, number + 5)])
            number += 5
        log.close()

    thread = threading.Thread(target=write_on)
    thread.start()
    try:
        until = time.monotonic() + 0.7
        looks = 0
        while time.monotonic() < until:
            numbers = [int(text) for text in texts(Reader(tmp_path).tail(1_000))]
            if numbers:
                assert numbers == list(range(numbers[0], numbers[-1] + 1))
                looks += 1
        assert looks > 20
    finally:
        ends.set()
        thread.join()


def age(path: Path, seconds: float) -> None:
    at = time.time() - seconds
    os.utime(path, (at, at))


def test_prune_keeps_those_that_ended_last(tmp_path: Path) -> None:
    for number in range(30):
        for name in (f"r{number}.log", f"r{number}.log.1"):
            write(tmp_path / name, (1, "x"))
            age(tmp_path / name, 1_000 - number)
    write(tmp_path / "alive.log", (1, "x"))
    age(tmp_path / "alive.log", 10_000)
    logs.prune(tmp_path, {"alive"})
    kept = {f"r{n}.log{end}" for n in range(10, 30) for end in ("", ".1")}
    assert {p.name for p in tmp_path.iterdir()} == kept | {"alive.log"}


def test_prune_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones fewer; the last one always."""
    monkeypatch.setattr(logs, "KEEP_BYTES", 1_000)
    for number, size in enumerate([10, 600, 600, 300]):
        (tmp_path / f"r{number}.log").write_bytes(b"x" * size)
        age(tmp_path / f"r{number}.log", 100 - number)
    logs.prune(tmp_path, set())
    assert {p.name for p in tmp_path.iterdir()} == {"r2.log", "r3.log"}
    (tmp_path / "r9.log").write_bytes(b"x" * 5_000)
    logs.prune(tmp_path, set())
    assert {p.name for p in tmp_path.iterdir()} == {"r9.log"}


def test_prune_of_nothing(tmp_path: Path) -> None:
    logs.prune(tmp_path / "missing", set())


def test_forgetting_old_logs(tmp_path: Path) -> None:
    for name, old in (("old", 1_000), ("young", 10)):
        write(tmp_path / name / "r.log", (1, "x"))
        age(tmp_path / name / "r.log", old)
    before = time.time() - 500
    assert logs.forget_old(tmp_path / "old", before)
    assert not logs.forget_old(tmp_path / "young", before)
    assert not logs.forget_old(tmp_path / "missing", before)
    assert [p.name for p in tmp_path.iterdir()] == ["young"]
