"""The log of one replica as it is written: lines in a file that is bounded in size.

A line is ``<seconds> <stream> <text>``. A file that is full is renamed to ``.log.1`` (replacing the
one before) and begun anew, so a replica keeps its last lines, between one and two times the limit.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["MAX_LINE", "Capture", "Lines", "LogFile"]

#: Longest line kept, in bytes; of a longer one the beginning is kept, and marked.
MAX_LINE = 64 * 1024
CUT = b" ... (cut)"


class LogFile:
    """Appends lines; safe from several threads. A full disk loses lines and stops nobody."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._longest = min(MAX_LINE, limit // 2)
        self._lock = threading.Lock()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)

    def write(self, stream: str, lines: Sequence[bytes], at: float = 0.0) -> None:
        """Append lines of ``stream`` ("out" or "err"), all under one time (default: now)."""
        head = b"%.6f %b " % (at or time.time(), stream.encode())
        with self._lock:
            batch: list[bytes] = []
            size = 0
            room = self._limit - self._file.tell()
            for line in lines:
                record = b"%b%b\n" % (head, _cut(line, self._longest))
                if size + len(record) > room and (size or self._file.tell()):
                    self._append(batch)
                    self._turn()
                    batch, size, room = [], 0, self._limit
                batch.append(record)
                size += len(record)
            self._append(batch)

    def _append(self, batch: list[bytes]) -> None:
        with contextlib.suppress(OSError):
            data = b"".join(batch)
            while data:
                data = data[self._file.write(data) :]

    def _turn(self) -> None:
        with contextlib.suppress(OSError):
            os.replace(self._path, self._path.with_suffix(".log.1"))
            fresh = self._path.open("ab", buffering=0)
            self._file.close()
            self._file = fresh

    def close(self) -> None:
        with self._lock:
            self._file.close()


def _cut(line: bytes, longest: int) -> bytes:
    return line if len(line) <= longest else line[:longest] + CUT


class Lines:
    """Cuts a stream of bytes into lines and logs them; holds at most one line's beginning."""

    def __init__(self, log: LogFile, stream: str) -> None:
        self._log = log
        self._stream = stream
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = self._rest + lines[0]
            if self._skipping:  # the end of a line whose beginning has been logged
                del lines[0]
            self._skipping, self._rest = False, b""
            self._log.write(self._stream, lines)
        if self._skipping:
            return
        self._rest += rest
        if len(self._rest) > MAX_LINE:
            self._log.write(self._stream, [self._rest])
            self._rest, self._skipping = b"", True

    def end(self) -> None:
        """The stream is over: what it said last may lack its newline."""
        if self._rest:
            self._log.write(self._stream, [self._rest])
            self._rest = b""


class Capture:
    """This process's own stdout and stderr into a log file, from here on."""

    def __init__(self, log: LogFile) -> None:
        for number, stream in ((1, "out"), (2, "err")):
            read, write = os.pipe()
            os.dup2(write, number)
            os.close(write)
            threading.Thread(
                target=pump, args=(read, Lines(log, stream)), name=f"log-{stream}", daemon=True
            ).start()


def pump(read: int, lines: Lines) -> None:
    """Log what comes from a descriptor until its end."""
    while data := os.read(read, 65536):
        lines.feed(data)
    lines.end()
