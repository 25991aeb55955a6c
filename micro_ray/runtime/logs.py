"""Logs of replicas, read: the last lines of a workload, and what comes after them. ``logfile.py``
writes them, one file per replica and the one before it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from micro_ray.runtime import LogLine

__all__ = ["Reader", "forget_old", "prune"]

#: Ended replicas of a workload whose logs are kept, and how many bytes of them together.
KEEP = 20
KEEP_BYTES = 64 * 2**20
#: Seconds between looks for new lines while following.
POLL = 0.1
#: Bytes read from the end of each file for the last lines, at first and at most, and in one look
#: while following.
FIRST_LOOK = 16 * 2**10
TAIL_BYTES = 4 * 2**20
PIECE = 2**20

LOG = ".log"
OLDER = ".log.1"
MISSING = "... lines are missing: they were written faster than they could be read"
#: Bytes by which a file is known again.
HEAD = 32


@dataclass(slots=True)
class _Place:
    """How far a replica's log has been read: so many bytes of the file with this inode that begins
    so (inodes are used again, and a line begins with its time). ``seen`` spares looks at a file
    that has not changed."""

    inode: int = 0
    head: bytes = b""
    offset: int = 0
    seen: tuple[int, int, int] = (0, 0, 0)

    def enter(self, file: BinaryIO) -> bool:
        """Whether this is the file that was read; its beginning may be known only now."""
        head = os.pread(file.fileno(), HEAD, 0)
        if os.fstat(file.fileno()).st_ino != self.inode or not head.startswith(self.head):
            return False
        self.head = head
        return True

    def begin(self, file: BinaryIO) -> None:
        """Another file, from its beginning."""
        self.inode, self.head, self.offset = os.fstat(file.fileno()).st_ino, b"", 0
        self.enter(file)


@dataclass(slots=True)
class Reader:
    """Reads the logs of a workload's folder: :meth:`tail`, then :meth:`follow` from there, so that
    no line is lost or told twice between them. ``replica`` keeps to one replica."""

    folder: Path
    replica: str = ""
    _places: dict[str, _Place] = field(default_factory=dict)

    def tail(self, count: int) -> list[LogLine]:
        """The last ``count`` lines of all files, in order of time. Blocks."""
        lines: list[LogLine] = []
        for replica in self._replicas():
            older, newer = _opened(self.folder, replica)
            with older or contextlib.nullcontext(), newer or contextlib.nullcontext():
                found: list[LogLine] = []
                if newer is not None:
                    found, place = _last(newer, replica, count)
                    self._places[replica] = place
                if older is not None and len(found) < count:
                    found = [*_last(older, replica, count - len(found))[0], *found]
                lines += found
        lines.sort(key=lambda line: line.at)
        return lines[-count:] if count else []

    async def follow(self) -> AsyncGenerator[LogLine, None]:
        """Lines that were written after :meth:`tail`, and those to come, also of replicas that
        start later; for ever. A log that is written faster than it is read says so where lines are
        missing."""
        async with contextlib.aclosing(self.batches()) as batches:
            async for lines in batches:
                for line in lines:
                    yield line

    async def batches(self) -> AsyncGenerator[list[LogLine], None]:
        """The same, as many at once as there are."""
        while True:
            lines = await asyncio.to_thread(self._news)
            if lines:
                yield lines
            else:
                await asyncio.sleep(POLL)

    def _replicas(self) -> list[str]:
        if self.replica:
            return [self.replica]
        try:
            names = os.listdir(self.folder)
        except OSError:
            return []
        return sorted({n.removesuffix(".1").removesuffix(LOG) for n in names if LOG in n})

    def _news(self) -> list[LogLine]:
        lines: list[LogLine] = []
        for replica in self._replicas():
            place = self._places.setdefault(replica, _Place())
            with contextlib.suppress(OSError):
                lines += self._since(replica, place)
        return sorted(lines, key=lambda line: line.at)

    def _since(self, replica: str, place: _Place) -> Iterator[LogLine]:
        """What one log has got since the last look, at most a piece of it."""
        path = self.folder / f"{replica}{LOG}"
        stat = path.stat()
        seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if seen == place.seen:
            return
        with path.open("rb") as newer:
            if place.inode and not place.enter(newer):
                # The one that was read was full and was renamed: its end first.
                more = self._older(path.with_suffix(OLDER), replica, place)
                if more:
                    yield from more
                    return
                place.begin(newer)
            elif not place.inode:
                place.begin(newer)
            begun = place.offset
            yield from _read(newer, replica, place)
            if place.offset == begun:
                place.seen = seen

    def _older(self, path: Path, replica: str, place: _Place) -> list[LogLine]:
        """What is left of a file that was renamed, or, when it is gone, all of the one after it."""
        with contextlib.suppress(FileNotFoundError), path.open("rb") as older:
            if place.enter(older):
                return list(_read(older, replica, place))
            place.begin(older)
            lines = list(_read(older, replica, place))
            at = lines[0].at if lines else time.time()
            return [LogLine(at=at, replica=replica, stream="err", text=MISSING), *lines]
        return []


def _opened(folder: Path, replica: str) -> tuple[BinaryIO | None, BinaryIO | None]:
    """The older and the newer file of a replica as they are at one moment."""
    for _ in range(10):
        newer = _open(folder / f"{replica}{LOG}")
        older = _open(folder / f"{replica}{OLDER}")
        again = _inode(folder / f"{replica}{LOG}")
        if newer is None or os.fstat(newer.fileno()).st_ino == again:
            break
        newer.close()  # it was renamed just now
        if older is not None:
            older.close()
    return older, newer


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except OSError:
        return None


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _last(file: BinaryIO, replica: str, count: int) -> tuple[list[LogLine], _Place]:
    size = file.seek(0, os.SEEK_END)
    back = min(FIRST_LOOK, TAIL_BYTES)
    while True:
        begin = max(0, size - back)
        file.seek(begin)
        data = file.read(size - begin)
        whole = data.rfind(b"\n") + 1
        rows = data[:whole].split(b"\n")[:-1]
        if begin:
            rows = rows[1:]  # a part of a line
        if len(rows) >= count or not begin or back >= TAIL_BYTES:
            break
        back = min(back * 8, TAIL_BYTES)
    place = _Place()
    place.begin(file)
    place.offset = begin + whole
    wanted = rows[-count:] if count else []
    return [line for row in wanted if (line := _parse(row, replica)) is not None], place


def _read(file: BinaryIO, replica: str, place: _Place) -> Iterator[LogLine]:
    file.seek(place.offset)
    data = file.read(PIECE)
    whole = data.rfind(b"\n") + 1
    place.offset += whole
    for row in data[:whole].split(b"\n"):
        line = _parse(row, replica)
        if line is not None:
            yield line


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


def prune(folder: Path, alive: set[str]) -> None:
    """Keep the logs of living replicas, and of those that ended last: ``KEEP`` of them, or fewer
    when they are over ``KEEP_BYTES`` together; the one that ended last always."""
    ended: list[tuple[float, int, str]] = []
    with contextlib.suppress(OSError):
        names = {n.removesuffix(".1").removesuffix(LOG) for n in os.listdir(folder) if LOG in n}
        for replica in names - alive:
            stats = [s for s in (_stat(p) for p in _files(folder, replica)) if s is not None]
            if stats:
                size = sum(stat.st_size for stat in stats)
                ended.append((max(stat.st_mtime for stat in stats), size, replica))
    total = 0
    for number, (_, size, replica) in enumerate(sorted(ended, reverse=True)):
        total += size
        if number and (number >= KEEP or total > KEEP_BYTES):
            for path in _files(folder, replica):
                path.unlink(missing_ok=True)


def forget_old(folder: Path, before: float) -> bool:
    """Remove a folder of logs to which nothing was written since ``before`` (wall clock); whether
    that was so."""
    with contextlib.suppress(OSError):
        times = [stat.st_mtime for p in folder.iterdir() if (stat := _stat(p)) is not None]
        if max(times, default=folder.stat().st_mtime) < before:
            shutil.rmtree(folder, ignore_errors=True)
            return True
    return False


def _files(folder: Path, replica: str) -> tuple[Path, Path]:
    return folder / f"{replica}{LOG}", folder / f"{replica}{OLDER}"


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None
