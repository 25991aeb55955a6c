"""runtime: what should run, and seeing to it that it does.

A :class:`Workload` is desired state, kept in the store; a :class:`Replica` is one running copy of
it. :func:`micro_ray.runtime.plan.plan` decides, purely, what to do; ``reconcile.py`` does it with a
:class:`Driver`: ``ray.py`` runs Python services as Ray actors, ``process.py`` any command as local
processes. External: Kubernetes (not yet).
"""

from __future__ import annotations

import abc
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = [
    "Driver",
    "LogLine",
    "Progress",
    "Replica",
    "Runtime",
    "State",
    "Status",
    "Workload",
]


class State(StrEnum):
    """Of a replica, and of a workload as a whole."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    UPDATING = "updating"
    STOPPING = "stopping"
    STOPPED = "stopped"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """``name`` is what the runtime knows it by; what it serves is what its code registers, and may
    be named otherwise (two workloads may serve one service: a new version beside the old one).

    ``source`` is what the user named, ``digest`` the SHA-256 of the packed folder ("" for a command
    without source). ``command`` empty means a Python service: ``main.py``. ``cpu`` and ``gpu`` are
    fractions of cores and devices, ``memory`` bytes: a replica starts where so much is free; 0 asks
    for nothing. ``generation`` grows with each update.

    A replica finds ``env`` in its environment, and where the platform is. A command runs in its
    source's folder, or in one of its own that goes with the workload.
    """

    name: str
    namespace: str = "micro"
    version: str = "latest"
    source: str = ""
    digest: str = ""
    command: tuple[str, ...] = ()
    driver: str = "ray"
    env: Mapping[str, str] = field(default_factory=dict)
    replicas: int = 1
    cpu: float = 0.0
    gpu: float = 0.0
    memory: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    generation: int = 1
    created: float = 0.0
    updated: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One copy of a workload. ``id`` is unique for ever and is the node id in the registry.
    ``host`` is the name of its machine. ``error`` says why it ended: the user's own traceback where
    there is one."""

    id: str
    namespace: str
    workload: str
    generation: int
    state: State
    host: str = ""
    pid: int = 0
    started: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A workload as it is. ``ready`` counts running replicas of the newest generation;
    ``restarts`` those that ended by themselves; ``error`` says why it last failed, until it has run
    as desired for a while; ``retry_in`` seconds until a crash loop's next attempt."""

    workload: Workload
    state: State
    ready: int
    replicas: tuple[Replica, ...] = ()
    restarts: int = 0
    error: str = ""
    retry_in: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """``at`` in wall-clock seconds; ``stream`` is "out" or "err"."""

    at: float
    replica: str
    stream: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A step of a workload, for people who wait. ``state`` is the workload's."""

    state: State
    text: str


class Runtime(abc.ABC):
    """The interface. All verbs raise BadRequest for bad names and values, naming the field;
    TooLarge over a limit, naming it; Unavailable while the desired state cannot be read, or when a
    change was not made; BadGateway when it is not known yet whether it was."""

    @abc.abstractmethod
    async def create(self, workload: Workload) -> Status:
        """Let a workload run; returns at once, :meth:`progress` tells how it goes. One that is
        being deleted is waited for. Raises Conflict when one of this name exists, NotFound when its
        source was not uploaded."""

    @abc.abstractmethod
    async def update(self, name: str, namespace: str, changes: Mapping[str, Any]) -> Status:
        """Change source, command, env, replicas, resources, metadata; without a change, restart.
        All but a mere change of ``replicas`` roll: a new replica must be running, and healthy where
        it says so, before an old one goes. A new generation that does not come up, or falls twice
        before it has run for a while, leaves the old one serving, or brings it back; the error says
        why. Raises NotFound, Conflict while it is being deleted."""

    @abc.abstractmethod
    async def delete(self, name: str, namespace: str = "micro") -> None:
        """Stop a workload and forget it; returns when its replicas are gone. Its logs can be read
        for another week. Raises NotFound."""

    @abc.abstractmethod
    async def read(self, name: str = "", namespace: str = "micro") -> list[Status]:
        """All workloads, or one. Raises NotFound for a name that is not there."""

    @abc.abstractmethod
    def logs(
        self, name: str, namespace: str = "micro", *, tail: int = 15, follow: bool = False
    ) -> AsyncGenerator[LogLine, None]:
        """The last lines (0 to 10,000) of all its replicas, also of those that have ended, in order
        of time; then what comes, with ``follow``, for ever. Raises NotFound."""

    @abc.abstractmethod
    def progress(self, name: str, namespace: str = "micro") -> AsyncGenerator[Progress, None]:
        """The steps of a workload's newest generation until it runs as desired, has failed or is
        gone; the last one says which: its text is the state, or the error. Raises NotFound."""

    @abc.abstractmethod
    async def upload(self, archive: bytes | AsyncIterable[bytes], namespace: str = "micro") -> str:
        """Keep a packed source (``source.pack``), whole or in pieces, and give its digest. It is
        kept while a workload names it, and for an hour. Raises BadRequest for what is no gzipped
        tar, or has links, devices, names that lead out or the same name twice; TooLarge over the
        limits."""


class Driver(abc.ABC):
    """Runs replicas of one kind."""

    @abc.abstractmethod
    async def start(self, replica: Replica, workload: Workload) -> Replica:
        """Start a copy and return when it serves (or, for commands, when it is registered or has
        lived for a moment). Raises what went wrong, also when it is cancelled; then nothing is left
        of it."""

    @abc.abstractmethod
    async def ended(self, replica: Replica) -> str:
        """Wait until a started replica ends, for whatever reason; says why."""

    @abc.abstractmethod
    async def stop(self, replica: Replica, grace: float) -> None:
        """Let it finish what it serves, at most ``grace`` seconds, then end it. Idempotent."""

    @abc.abstractmethod
    async def adopt(self) -> list[Replica]:
        """Replicas of an earlier life of the runtime that still live."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of all replicas without ending them."""
