"""What the members of a platform hold, and whether any of them, or all together, hold more than
before. Pure: who looks passes in what was seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["Baselines", "Bounds", "Held", "Roll", "Seen", "grown", "total"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """``descriptors`` are open sockets, pipes and files; ``memory`` is in bytes, without what is
    shared with others; ``tasks`` is 0 where there is no loop of ours."""

    descriptors: int
    memory: int
    tasks: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(
            descriptors=self.descriptors + other.descriptors,
            memory=self.memory + other.memory,
            tasks=self.tasks + other.tasks,
        )

    def __str__(self) -> str:
        return f"{self.descriptors} fds, {self.tasks} tasks, {self.memory / 2**20:.1f} MiB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much more may be held."""

    descriptors: int
    memory: int
    tasks: int

    def broken(self, before: Held, now: Held) -> bool:
        return (
            now.descriptors > before.descriptors + self.descriptors
            or now.memory > before.memory + self.memory
            or now.tasks > before.tasks + self.tasks
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One process: its title, and the ``group`` whose places it may take (``store-1``, of which
    there is one; ``helloworld``, of which there are several that nothing tells apart)."""

    pid: int
    title: str
    group: str


class Roll:
    """Which process is which member, over restarts: a new process takes the free place of its group
    that was there first (``store-1``; ``helloworld``, ``helloworld+1``, ...)."""

    def __init__(self) -> None:
        self._pids: dict[str, int] = {}

    def call(self, seen: Iterable[Seen]) -> dict[str, Seen]:
        """Member -> its process."""
        by_pid = {process.pid: process for process in seen}
        self._pids = {name: pid for name, pid in self._pids.items() if pid in by_pid}
        placed = set(self._pids.values())
        for pid, process in sorted(by_pid.items()):
            if pid not in placed:
                self._pids[self._free(process.group)] = pid
        return {name: by_pid[pid] for name, pid in self._pids.items()}

    def _free(self, group: str) -> str:
        number, name = 0, group
        while name in self._pids:
            number += 1
            name = f"{group}+{number}"
        return name


@dataclass
class Baselines:
    """What each member held first, and what it held last time it had started and settled."""

    first: dict[str, Held] = field(default_factory=dict)
    latest: dict[str, Held] = field(default_factory=dict)
    _pids: dict[str, int] = field(default_factory=dict)

    def take(self, members: Mapping[str, Seen], held: Mapping[str, Held]) -> list[str]:
        """Remember those whose process is another than last time; their names."""
        new = [name for name, process in members.items() if self._pids.get(name) != process.pid]
        for name in new:
            self._pids[name] = members[name].pid
            self.first.setdefault(name, held[name])
            self.latest[name] = held[name]
        return new

    def grown(self, now: Mapping[str, Held], bounds: Bounds) -> list[str]:
        """The members that hold more than at the start of this life, or of their first one."""
        return [*grown(self.latest, now, bounds), *grown(self.first, now, bounds)]


def grown(before: Mapping[str, Held], now: Mapping[str, Held], bounds: Bounds) -> list[str]:
    """One line for each of ``before`` that holds more now, or is not there."""
    rows = []
    for name, old in before.items():
        new = now.get(name)
        if new is None:
            rows.append(f"{name}: is not there")
        elif bounds.broken(old, new):
            rows.append(f"{name}: {old} -> {new}")
    return rows


def total(held: Iterable[Held]) -> Held:
    return sum(held, Held(descriptors=0, memory=0))
