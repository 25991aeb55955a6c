"""How much memory this process's world has left: what its control group may use, or its machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["Pressure", "used"]

#: Seconds between two looks.
EVERY = 0.25
_UNLIMITED = 2**60


def used(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> float:
    """The fraction (0 to 1) of the memory in use that cannot be had back: of the control group's
    limit, or of the machine, whichever is nearer its end. 0 where neither can be read."""
    return max(_of_machine(proc), _of_group(proc, groups))


def _of_machine(proc: Path) -> float:
    try:
        rows = dict(
            line.split(":", 1)
            for line in (proc / "meminfo").read_text().splitlines()
            if ":" in line
        )
        total, free = (int(rows[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError, IndexError):
        return 0.0
    return 1.0 - free / total if total else 0.0


def _of_group(proc: Path, groups: Path) -> float:
    """Of the process's group and those above it (version 2), the one that is nearest its limit."""
    try:
        rows = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return 0.0
    path = next((row[3:] for row in rows if row.startswith("0::")), "/").strip("/")
    folder = groups / path
    most = 0.0
    for place in (folder, *folder.parents):
        if place != groups and groups not in place.parents:
            break
        most = max(most, _of_folder(place))
    return most


def _of_folder(folder: Path) -> float:
    try:
        limit = (folder / "memory.max").read_text().strip()
        if limit == "max" or not 0 < int(limit) < _UNLIMITED:
            return 0.0
        stat = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
        now = int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return 0.0
    # What is cached of files is given back when it is needed.
    return max(0, now - int(stat.get("inactive_file", 0))) / int(limit)


class Pressure:
    """``short`` says whether over ``most`` of the memory is in use; it looks a few times a second
    at most, and only when it is asked. 1 and above: never."""

    def __init__(
        self,
        most: float,
        *,
        look: Callable[[], float] = used,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.most = most
        self.fraction = 0.0
        self._look = look
        self._clock = clock
        self._next = 0.0

    @property
    def short(self) -> bool:
        if self.most >= 1:
            return False
        now = self._clock()
        if now >= self._next:
            self._next = now + EVERY
            self.fraction = self._look()
        return self.fraction > self.most
