"""router: where a call may go, derived from the registry and from explicit rules, never stored as
truth.

A :class:`Table` is an immutable-by-convention snapshot of routes and endpoints that a door, the
SDK client or a platform actor keeps up to date from a stream of :class:`Delta` (the first one is
full). ``table.py`` holds the table and its deltas, ``choose.py`` decides among routes (filters,
weights, power of two choices), ``derive.py`` follows a registry and produces deltas, ``parts.py``
cuts large ones, ``keep.py`` keeps the last good table in a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from micro_ray.registry import Endpoint

__all__ = ["Delta", "Entry", "Filter", "Route"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One way to reach one node of a service. ``id`` is the node's id for derived routes, unique
    in its namespace. ``addresses`` in order of preference; ``metric`` lower is nearer (1 = local).
    """

    id: str
    namespace: str
    service: str
    version: str = "latest"
    addresses: tuple[str, ...] = ()
    host: str = ""
    protocol: str = "frames"
    network: str = "micro"
    link: str = "local"
    metric: int = 1
    weight: int = 100
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What callers need of a service besides its routes: the endpoints per version."""

    namespace: str
    service: str
    version: str
    endpoints: tuple[Endpoint, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A change of the table. ``full`` replaces everything. ``revision`` is the table's after it,
    within ``epoch`` (one life of one router). ``gone`` are (namespace, route id); ``gone_entries``
    are (namespace, service, version). ``stale`` is true while the registry cannot be reached.
    ``at`` is the wall clock time (seconds) of the change at its source, for measuring. ``more``
    says that this is a part: the delta goes on in the next one, and counts once it is whole."""

    epoch: str
    revision: int
    full: bool = False
    routes: tuple[Route, ...] = ()
    gone: tuple[tuple[str, str], ...] = ()
    entries: tuple[Entry, ...] = ()
    gone_entries: tuple[tuple[str, str, str], ...] = ()
    stale: bool = False
    at: float = 0.0
    more: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which routes a caller accepts; "" or "*" accepts any value of that field."""

    version: str = ""
    address: str = ""
    protocol: str = ""
    network: str = ""
    link: str = ""
    host: str = ""
    node: str = ""
