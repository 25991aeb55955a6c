"""The route table that doors, clients and actors hold and keep up to date from deltas."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Callable, Coroutine, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar

from micro_ray.context import DEFAULT_NAMESPACE
from micro_ray.router import Delta, Entry, Filter, Route
from micro_ray.settings import PLATFORM

__all__ = ["Table", "accepts", "home"]

_ANY = Filter()
#: Names that are compared, and characters of a name, to say what is near.
NEAR, NEAR_NAME = 2_000, 80

Name = tuple[str, str]


def home(namespace: str, service: str) -> str:
    """The namespace in which a service is found from another one: the platform's own services are
    of ``micro``, and are there for all."""
    return DEFAULT_NAMESPACE if service.lower() in PLATFORM else namespace


V = TypeVar("V", Route, Entry)


class _Shelf(Generic[V]):
    """Values by their key, and by namespace and service in lower case. A change costs what the
    services it touches have, not what the table has."""

    def __init__(self, order: Callable[[V], Any]) -> None:
        self.values: dict[tuple[str, ...], V] = {}
        self.named: dict[Name, tuple[V, ...]] = {}
        self._order: Callable[[V], Any] = order
        self._members: dict[Name, dict[tuple[str, ...], V]] = {}
        self._touched: set[Name] = set()

    def put(self, key: tuple[str, ...], value: V) -> None:
        self.drop(key)
        name = (value.namespace, value.service.lower())
        self.values[key] = value
        self._members.setdefault(name, {})[key] = value
        self._touched.add(name)

    def drop(self, key: tuple[str, ...]) -> None:
        old = self.values.pop(key, None)
        if old is not None:
            name = (old.namespace, old.service.lower())
            del self._members[name][key]
            self._touched.add(name)

    def clear(self) -> None:
        self.values.clear()
        self._members.clear()
        self._touched.update(self.named)

    def settle(self) -> None:
        """Make ``named`` anew where something has changed. What was handed out stays as it was."""
        for name in self._touched:
            members = self._members.get(name)
            if members:
                self.named[name] = tuple(sorted(members.values(), key=self._order))
            else:
                self._members.pop(name, None)
                self.named.pop(name, None)
        self._touched.clear()


class Table:
    """Routes and entries, found by namespace and service without regard to case.

    ``revision`` and ``epoch`` are those of the last delta; ``version`` grows with every change and
    is what caches compare. ``stale`` says that the source of the table cannot be reached now.
    ``size`` is the number of routes.
    """

    def __init__(self) -> None:
        self.epoch = ""
        self.revision = 0
        self.version = 0
        self.stale = False
        self.at = 0.0
        self._routes: _Shelf[Route] = _Shelf(lambda route: (route.metric, route.id))
        self._entries: _Shelf[Entry] = _Shelf(lambda entry: entry.version)
        self._changed = asyncio.Event()

    @property
    def size(self) -> int:
        return len(self._routes.values)

    def apply(self, delta: Delta) -> bool:
        """Take a delta over. False, and nothing changed, when it does not follow this table's
        revision (another epoch, or a gap): the holder must ask for a full one."""
        routes, entries = self._routes, self._entries
        if delta.full:
            routes.clear()
            entries.clear()
        elif delta.epoch != self.epoch or delta.revision != self.revision + 1:
            return False
        for gone in delta.gone:
            routes.drop(gone)
        for route in delta.routes:
            routes.put((route.namespace, route.id), route)
        for key in delta.gone_entries:
            entries.drop(key)
        for entry in delta.entries:
            entries.put((entry.namespace, entry.service, entry.version), entry)
        routes.settle()
        entries.settle()
        self.epoch, self.revision = delta.epoch, delta.revision
        self.stale, self.at = delta.stale, delta.at
        self.version += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        return True

    def mark_stale(self) -> None:
        """The source is out of reach; what is here goes on being used."""
        self.stale = True

    def changed(self) -> Coroutine[Any, Any, object]:
        """Wait for the next change from now on, also if it comes before this is awaited."""
        return self._changed.wait()

    def lookup(self, namespace: str, service: str, filter: Filter = _ANY) -> Sequence[Route]:
        """The routes of a service that a filter accepts, nearest metric first; empty when there
        are none."""
        routes = self._routes.named.get((home(namespace, service), service.lower()), ())
        if filter is _ANY or filter == _ANY:
            return routes
        return [route for route in routes if accepts(filter, route)]

    def routes(self, namespace: str = "*", service: str = "") -> list[Route]:
        """All routes, or those of one service, sorted by service and id."""
        name = service.lower()
        rows = [
            route
            for route in self._routes.values.values()
            if namespace in ("*", route.namespace) and name in ("", route.service.lower())
        ]
        return sorted(rows, key=lambda r: (r.namespace, r.service, r.version, r.id))

    def has(self, namespace: str, route: str) -> bool:
        """Whether a route of this id is in the table."""
        return (namespace, route) in self._routes.values

    def known(self, namespace: str, service: str) -> bool:
        """Whether callers may know a service, also one that has no node just now."""
        return (home(namespace, service), service.lower()) in self._entries.named

    def versions(self, namespace: str, service: str) -> list[str]:
        """The versions of a service that callers may know, sorted."""
        name = (home(namespace, service), service.lower())
        return [entry.version for entry in self._entries.named.get(name, ())]

    def entry(self, namespace: str, service: str, version: str = "") -> Entry | None:
        """The entry of a version, or of the one with most endpoints when none is named."""
        name = (home(namespace, service), service.lower())
        rows: Sequence[Entry] = self._entries.named.get(name, ())
        if version:
            rows = [row for row in rows if row.version == version]
        return max(rows, key=lambda row: (len(row.endpoints), row.version), default=None)

    def entries(self, namespace: str = "*") -> list[Entry]:
        """All entries of a namespace with those of the platform's services, sorted by service and
        version."""
        rows = [
            entry
            for entry in self._entries.values.values()
            if namespace == "*" or entry.namespace == home(namespace, entry.service)
        ]
        return sorted(rows, key=lambda e: (e.namespace, e.service, e.version))

    def services(self, namespace: str) -> list[str]:
        """Names as they were registered, sorted."""
        return sorted({e.service for e in self.entries(namespace)})

    def near(self, namespace: str, service: str) -> list[str]:
        """Names that a caller may have meant."""
        names = {name.lower(): name for name in islice(self.services(namespace), NEAR)}
        close = difflib.get_close_matches(service[:NEAR_NAME].lower(), names, n=3, cutoff=0.5)
        return [names[name] for name in close]

    def full(self) -> Delta:
        """The whole table as a delta."""
        return Delta(
            epoch=self.epoch,
            revision=self.revision,
            full=True,
            routes=tuple(self._routes.values.values()),
            entries=tuple(self._entries.values.values()),
            stale=self.stale,
            at=self.at,
        )


def accepts(filter: Filter, route: Route) -> bool:
    """Whether a filter lets a route through; blank and "*" accept anything."""
    return all(
        wanted in ("", "*", have)
        for wanted, have in (
            (filter.version, route.version),
            (filter.protocol, route.protocol),
            (filter.network, route.network),
            (filter.link, route.link),
            (filter.host, route.host),
            (filter.node, route.id),
        )
    ) and (filter.address in ("", "*") or filter.address in route.addresses)
