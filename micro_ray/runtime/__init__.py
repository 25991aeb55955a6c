"""runtime: what should run, and seeing to it that it does.

A :class:`Workload` is desired state, kept in the store; a :class:`Replica` is one running copy of
it. :func:`micro_ray.runtime.plan.plan` decides, purely, what to do; ``reconcile.py`` does it with a
:class:`Driver`: ``ray.py`` runs Python services as Ray actors, ``process.py`` any command as local
processes. External: Kubernetes (not yet).
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Mapping
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

MAX_ENV = 200
MAX_ENV_BYTES = 64 * 1024


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
    """``source`` is what the user named, ``digest`` the SHA-256 of the packed folder ("" for a
    command without source). ``command`` empty means a Python service: ``main.py``. ``cpu`` and
    ``gpu`` are fractions of cores and devices, ``memory`` bytes; 0 asks for nothing. ``generation``
    grows with each update."""

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
    ``error`` says why it ended: the user's own traceback where there is one."""

    id: str
    namespace: str
    workload: str
    generation: int
    state: State
    pid: int = 0
    started: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A workload as it is. ``ready`` counts running replicas of the newest generation; ``retry_in``
    seconds until a crash loop's next attempt."""

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
    """The interface. All verbs raise BadRequest for bad names and values, naming the field."""

    @abc.abstractmethod
    async def create(self, workload: Workload) -> Status:
        """Let a workload run. Raises Conflict when one of this name exists, NotFound when its
        source was not uploaded."""

    @abc.abstractmethod
    async def update(self, name: str, namespace: str, changes: Mapping[str, Any]) -> Status:
        """Change source, command, env, replicas, resources, metadata; all but a mere change of
        ``replicas`` roll: a new replica must be running before an old one goes, and a new
        generation that does not come up leaves the old one serving. Raises NotFound."""

    @abc.abstractmethod
    async def delete(self, name: str, namespace: str = "micro") -> None:
        """Stop a workload and forget it; returns when its replicas are gone. Raises NotFound."""

    @abc.abstractmethod
    async def read(self, name: str = "", namespace: str = "micro") -> list[Status]:
        """All workloads, or one. Raises NotFound for a name that is not there."""

    @abc.abstractmethod
    def logs(
        self, name: str, namespace: str = "micro", *, tail: int = 15, follow: bool = False
    ) -> AsyncIterator[LogLine]:
        """The last lines of all its replicas, in order of time; then what comes, with ``follow``.
        Raises NotFound."""

    @abc.abstractmethod
    def progress(self, name: str, namespace: str = "micro") -> AsyncIterator[Progress]:
        """The steps of a workload from now until it runs as desired or has failed."""


class Driver(abc.ABC):
    """Runs replicas of one kind."""

    @abc.abstractmethod
    async def start(self, replica: Replica, workload: Workload) -> Replica:
        """Start a copy and return when it serves (or, for commands, when it is registered or has
        lived for a moment). Raises what went wrong; then nothing is left of it."""

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
