"""Logs of replicas: files of lines, bounded in size, read by tail and followed.

A line is ``<seconds> <stream> <text>``. A file that is full is renamed to ``.1`` (replacing the one
before) and begun anew, so each replica keeps between one and two times the limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

from micro_ray.runtime import LogLine

__all__ = ["Capture", "LogFile", "follow", "prune", "tail"]

#: Longest line kept, in bytes; a longer one is cut and marked.
MAX_LINE = 64 * 1024
#: Dead replicas of a workload whose logs are kept.
KEEP = 20
#: Seconds between looks for new lines while following.
POLL = 0.1
#: Bytes read from the end of each file for a tail.
TAIL_BYTES = 4 * 2**20


class LogFile:
    """Appends lines; safe from several threads."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._lock = threading.Lock()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def write(self, stream: str, line: bytes) -> None:
        if len(line) > MAX_LINE:
            line = line[:MAX_LINE] + b" ... (cut)"
        record = b"%.6f %b %b\n" % (time.time(), stream.encode(), line)
        with self._lock, contextlib.suppress(OSError):  # a full disk must not stop the service
            if self._file.tell() + len(record) > self._limit:
                self._file.close()
                os.replace(self._path, self._path.with_suffix(".log.1"))
                self._file = self._path.open("ab", buffering=0)
            self._file.write(record)

    def close(self) -> None:
        with self._lock:
            self._file.close()


class Capture:
    """This process's own stdout and stderr into a log file, from here on."""

    def __init__(self, log: LogFile) -> None:
        self._log = log
        for number, stream in ((1, "out"), (2, "err")):
            read, write = os.pipe()
            os.dup2(write, number)
            os.close(write)
            threading.Thread(
                target=self._pump, args=(read, stream), name=f"log-{stream}", daemon=True
            ).start()

    def _pump(self, read: int, stream: str) -> None:
        rest = b""
        while data := os.read(read, 65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._log.write(stream, line)
            if len(rest) > MAX_LINE:
                self._log.write(stream, rest)
                rest = b""
        if rest:
            self._log.write(stream, rest)


def tail(folder: Path, count: int) -> list[LogLine]:
    """The last ``count`` lines of all files of a workload, in order of time."""
    lines: list[LogLine] = []
    for path in sorted(folder.glob("*.log*")) if folder.is_dir() else ():
        lines += _last(path, count)
    lines.sort(key=lambda line: line.at)
    return lines[-count:] if count else []


def _last(path: Path, count: int) -> list[LogLine]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            rows = file.read().split(b"\n")
    except OSError:
        return []
    if size > TAIL_BYTES:
        rows = rows[1:]
    replica = path.name.partition(".log")[0]
    return [line for row in rows[-count - 1 :] if (line := _parse(row, replica)) is not None]


def _parse(row: bytes, replica: str) -> LogLine | None:
    at, _, rest = row.partition(b" ")
    stream, _, text = rest.partition(b" ")
    try:
        return LogLine(
            at=float(at),
            replica=replica,
            stream=stream.decode("ascii"),
            text=text.decode("utf-8", "replace"),
        )
    except ValueError:
        return None


async def follow(folder: Path) -> AsyncIterator[LogLine]:
    """Lines that are written from now on, also by replicas that start later."""
    places = await asyncio.to_thread(_ends, folder)
    while True:
        lines = await asyncio.to_thread(_news, folder, places)
        for line in lines:
            yield line
        if not lines:
            await asyncio.sleep(POLL)


def _ends(folder: Path) -> dict[Path, tuple[int, int]]:
    stats = {path: path.stat() for path in folder.glob("*.log")} if folder.is_dir() else {}
    return {path: (stat.st_ino, stat.st_size) for path, stat in stats.items()}


def _news(folder: Path, places: dict[Path, tuple[int, int]]) -> list[LogLine]:
    lines: list[LogLine] = []
    for path in folder.glob("*.log") if folder.is_dir() else ():
        lines += _since(path, places)
    return sorted(lines, key=lambda line: line.at)


def _since(path: Path, places: dict[Path, tuple[int, int]]) -> list[LogLine]:
    """What a file has got since the last look, also across its renaming."""
    lines: list[LogLine] = []
    inode, offset = places.get(path, (0, 0))
    replica = path.name.partition(".log")[0]
    with contextlib.suppress(OSError):
        stat = path.stat()
        if inode and stat.st_ino != inode:
            lines += _read(path.with_suffix(".log.1"), offset, replica)[0]
            offset = 0
        found, offset = _read(path, offset, replica)
        lines += found
        places[path] = (stat.st_ino, offset)
    return lines


def _read(path: Path, offset: int, replica: str) -> tuple[list[LogLine], int]:
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(2**20)
    whole = data.rfind(b"\n") + 1
    rows = data[:whole].split(b"\n")
    return [line for row in rows if (line := _parse(row, replica))], offset + whole


def prune(folder: Path, alive: set[str]) -> None:
    """Keep the logs of living replicas and of the ``KEEP`` that died last."""
    if not folder.is_dir():
        return
    dead = [p for p in folder.glob("*.log") if p.name.partition(".log")[0] not in alive]
    for path in sorted(dead, key=lambda p: p.stat().st_mtime)[:-KEEP]:
        for name in (path, path.with_suffix(".log.1")):
            with contextlib.suppress(OSError):
                name.unlink()
