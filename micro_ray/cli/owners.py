"""Who holds a port or a lock on this machine, as /proc has it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["lock_holder", "port_holder"]

_LISTEN = "0A"


def port_holder(port: int) -> str:
    """The program that listens on a TCP port: ``pid 123 (nginx)``; blank when it cannot be seen
    (another user's)."""
    inodes = {f"socket:[{inode}]" for inode in _listening(port)}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for handle in (folder / "fd").iterdir():
                if os.readlink(handle) in inodes:
                    return f"pid {folder.name} ({(folder / 'comm').read_text().strip()})"
    return ""


def _listening(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]


def lock_holder(path: Path) -> int:
    """The pid that holds a lock (flock) on a file, 0 when nobody does. It is looked up and not
    tried: trying would take the lock from a server that is just starting."""
    with contextlib.suppress(OSError):
        inode = path.stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == str(inode):
                return int(fields[4])
    return 0
