"""The route table that doors, clients and actors hold and keep up to date from deltas."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Sequence

from micro_ray.router import Delta, Entry, Filter, Route

__all__ = ["Table", "accepts"]

_ANY = Filter()


class Table:
    """Routes and entries, found by namespace and service without regard to case.

    ``revision`` and ``epoch`` are those of the last delta; ``version`` grows with every change and
    is what caches compare. ``stale`` says that the source of the table cannot be reached now.
    """

    def __init__(self) -> None:
        self.epoch = ""
        self.revision = 0
        self.version = 0
        self.stale = False
        self.at = 0.0
        self._routes: dict[str, Route] = {}
        self._entries: dict[tuple[str, str, str], Entry] = {}
        self._by_service: dict[tuple[str, str], list[Route]] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._entries_by_service: dict[tuple[str, str], list[Entry]] = {}
        self._changed = asyncio.Event()

    def apply(self, delta: Delta) -> bool:
        """Take a delta over. False when it does not follow this table's revision (another epoch,
        or a gap): the holder must ask for a full one."""
        if delta.full:
            self._routes.clear()
            self._entries.clear()
        elif delta.epoch != self.epoch or delta.revision != self.revision + 1:
            return False
        for gone in delta.gone:
            self._routes.pop(gone, None)
        for route in delta.routes:
            self._routes[route.id] = route
        for key in delta.gone_entries:
            self._entries.pop(key, None)
        for entry in delta.entries:
            self._entries[entry.namespace, entry.service, entry.version] = entry
        self.epoch, self.revision = delta.epoch, delta.revision
        self.stale, self.at = delta.stale, delta.at
        self._index(delta)
        return True

    def mark_stale(self) -> None:
        """The source is out of reach; what is here goes on being used."""
        self.stale = True

    def _index(self, delta: Delta) -> None:
        routes: dict[tuple[str, str], list[Route]] = {}
        entries: dict[tuple[str, str], list[Entry]] = {}
        names: dict[tuple[str, str], str] = {}
        for route in self._routes.values():
            routes.setdefault((route.namespace, route.service.lower()), []).append(route)
        for entry in self._entries.values():
            key = (entry.namespace, entry.service.lower())
            entries.setdefault(key, []).append(entry)
            names[key] = entry.service
        self._by_service, self._entries_by_service, self._names = routes, entries, names
        self.version += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def changed(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()

    def lookup(self, namespace: str, service: str, filter: Filter = _ANY) -> Sequence[Route]:
        """The routes of a service that a filter accepts, nearest metric first; empty when there
        are none."""
        routes = self._by_service.get((namespace, service.lower()), ())
        if filter is _ANY or filter == _ANY:
            return routes
        return [route for route in routes if accepts(filter, route)]

    def routes(self, namespace: str = "*") -> list[Route]:
        """All routes, sorted by service and id."""
        rows = [r for r in self._routes.values() if namespace in ("*", r.namespace)]
        return sorted(rows, key=lambda r: (r.namespace, r.service, r.version, r.id))

    def has(self, route: str) -> bool:
        """Whether a route of this id is in the table."""
        return route in self._routes

    def known(self, namespace: str, service: str) -> bool:
        return (namespace, service.lower()) in self._names

    def entry(self, namespace: str, service: str, version: str = "") -> Entry | None:
        """The entry of a version, or of the one with most endpoints when none is named."""
        rows = self._entries_by_service.get((namespace, service.lower()), ())
        if version:
            rows = [row for row in rows if row.version == version]
        return max(rows, key=lambda row: (len(row.endpoints), row.version), default=None)

    def entries(self, namespace: str = "*") -> list[Entry]:
        rows = [e for e in self._entries.values() if namespace in ("*", e.namespace)]
        return sorted(rows, key=lambda e: (e.namespace, e.service, e.version))

    def services(self, namespace: str) -> list[str]:
        """Names as they were registered, sorted."""
        return sorted({e.service for e in self.entries(namespace)})

    def near(self, namespace: str, service: str) -> list[str]:
        """Names that a caller may have meant."""
        names = {name.lower(): name for name in self.services(namespace)}
        close = difflib.get_close_matches(service.lower(), names, n=3, cutoff=0.5)
        return [names[name] for name in close]

    def full(self) -> Delta:
        """The whole table as a delta."""
        return Delta(
            epoch=self.epoch,
            revision=self.revision,
            full=True,
            routes=tuple(self._routes.values()),
            entries=tuple(self._entries.values()),
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
            (filter.node, route.id),
        )
    ) and (filter.address in ("", "*") or filter.address in route.addresses)
