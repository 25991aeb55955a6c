"""Files that are replaced whole and are their owner's alone, and locks between processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["fsync_folder", "locked", "replace_file"]


def replace_file(path: Path, content: bytes) -> None:
    """Put a file of mode 0600 in place: a reader, and who comes after a kill or a power failure,
    finds the one before or this one, whole. One writer at a time. Raises OSError. Blocks."""
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)  # one that others made would keep their mode
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        # Else the name may be on disk before what it names.
        os.fsync(file.fileno())
    os.replace(new, path)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Put on disk what is in a folder, by name."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Alone among the processes that lock this file, which is made, with its folder, where it is
    not there. A lock goes with its process. Raises OSError. Blocks."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
