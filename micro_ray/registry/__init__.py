"""registry: who is alive.

A :class:`Registry` keeps which nodes serve which service, under which version, with which
endpoints. Registrations are leases: they end by :meth:`Registry.deregister` or when their TTL
passes without a renewal. Every change has a revision; :meth:`Registry.watch` gives a snapshot's
changes in order.

Backends: ``memory.py`` (embedded), ``etcd.py``.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = [
    "DEFAULT_TTL",
    "MAX_NAME",
    "MAX_TTL",
    "MIN_TTL",
    "Action",
    "Change",
    "Endpoint",
    "Instance",
    "Node",
    "Registry",
    "Service",
    "Snapshot",
]

#: Longest name of a service, version, endpoint or node id, in characters.
MAX_NAME = 253
#: Seconds a registration lives without renewal unless it says otherwise (it is renewed three times
#: meanwhile), and the bounds of what it may say.
DEFAULT_TTL, MIN_TTL, MAX_TTL = 30.0, 1.0, 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One callable of a service. ``name`` is ``Handler.Method``; ``request`` and ``response`` are
    JSON Schemas; ``stream`` is "", "client", "server" or "bidi". ``metadata`` may bind a
    ``method`` and a ``path`` template for the HTTP door, and carries ``description``."""

    name: str
    request: Mapping[str, Any] = field(default_factory=dict)
    response: Mapping[str, Any] = field(default_factory=dict)
    stream: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One process that serves. ``id`` is unique per process start. ``addresses`` are wire
    addresses in order of preference, ``unix:/path`` (reachable on ``host`` only) and
    ``tcp:host:port``. ``host`` names the machine. ``weight`` is relative (default 100)."""

    id: str
    addresses: tuple[str, ...]
    host: str = ""
    weight: int = 100
    protocol: str = "frames"
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """What one node registers: the service as it serves it, and itself."""

    service: str
    version: str = "latest"
    node: Node
    endpoints: tuple[Endpoint, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    namespace: str = "micro"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service of one version: what is the same of all its nodes, and the nodes."""

    name: str
    version: str
    namespace: str
    endpoints: tuple[Endpoint, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()


class Action(StrEnum):
    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One step of the registry's history. ``revision`` is where a watch goes on after it: it grows
    from change to change, and stays the same only between several that were made at once (a hand
    that empties etcd), of which the last raises it. A DELETE carries the instance as it was."""

    revision: int
    action: Action
    instance: Instance


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All instances at a revision. ``epoch`` changes when the history starts anew (a memory
    registry that restarted): revisions of different epochs do not compare."""

    epoch: str
    revision: int
    instances: tuple[Instance, ...]


class Registry(abc.ABC):
    """The interface. All verbs are safe to call from many tasks. Names of services are found
    without regard to case. Every verb raises Unavailable when the registry is closed or out of
    reach."""

    @abc.abstractmethod
    async def register(
        self, instance: Instance, *, ttl: float = DEFAULT_TTL, holder: str = ""
    ) -> None:
        """Put or renew a node's registration for ``ttl`` seconds. It ends within a second after
        that. ``holder`` names who registers, for :meth:`deregister`.

        A node is known by its namespace and id: registering it with anything else changed replaces
        what was there. An identical registration only renews (no change is seen by watchers).
        Raises BadRequest for invalid names, addresses, weights or a ttl outside 1..3600 s, TooLarge
        for more endpoints, metadata or bytes than are allowed, TooManyRequests when the registry
        is full. What is refused changes nothing.
        """

    @abc.abstractmethod
    async def renew(self, namespace: str, node_ids: Sequence[str]) -> list[str]:
        """Renew the leases of these nodes with their own TTL; gives the ids that are unknown
        (they must register again)."""

    @abc.abstractmethod
    async def deregister(self, namespace: str, node_id: str, *, holder: str = "") -> None:
        """Remove a node. Not an error when it is not there. With a holder it is removed only when
        this was the last who registered it."""

    @abc.abstractmethod
    async def get(self, namespace: str, service: str) -> list[Service]:
        """All versions of a service, newest registration first, as are the nodes of each; endpoints
        and metadata are those of the newest. Raises NotFound (saying what name is near) when no
        node serves it."""

    @abc.abstractmethod
    async def list(self, namespace: str) -> list[Service]:
        """Every service of the namespace ("*": of all), sorted by namespace, name, version."""

    @abc.abstractmethod
    async def snapshot(self) -> Snapshot:
        """Everything, in the order of registration, with the revision to watch from."""

    @abc.abstractmethod
    def watch(self, *, epoch: str, revision: int) -> AsyncIterator[Change]:
        """Changes after ``revision``, in order, without a gap or a repeat.

        Raises Conflict when the epoch is not this registry's, when the revision is older than its
        history or has not been reached: take a new snapshot. A watcher that falls behind the kept
        history gets the same Conflict. A watch from afar raises Unavailable or BadGateway when the
        line breaks.
        """

    @abc.abstractmethod
    async def close(self) -> None:
        """Release what is held. Watchers end."""
