"""The services of a route table as protobuf knows them, described when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from micro_ray.router import Entry
from micro_ray.router.table import Table
from micro_ray.serve.descriptors import Description, Method, describe, package_of, service_of

__all__ = ["Catalogue", "Catalogues", "Shown"]

#: Namespaces whose catalogues are kept.
NAMESPACES = 100
#: Descriptions that are kept; a further one takes the place of the oldest.
KEPT = 256

#: Of a service and an endpoint: whether the one who asks is told of it.
Shown = Callable[[str, str], bool]


class Catalogue:
    """Follows a table by itself. A description is made at the first question for it, and anew once
    the service has published other endpoints."""

    def __init__(self, table: Table, namespace: str) -> None:
        self._table = table
        self._namespace = namespace
        self._version = -1
        self._packages: dict[str, str] = {}
        self._services: dict[str, list[tuple[str, str]]] = {}
        self._kept: dict[tuple[str, tuple[str, ...]], Description] = {}

    def services(self, shown: Shown | None = None) -> list[str]:
        """The full name of every protobuf service, sorted, of which ``shown(service, endpoint)``
        accepts an endpoint."""
        self._refresh()
        return [
            name
            for name, endpoints in self._services.items()
            if shown is None or any(shown(*endpoint) for endpoint in endpoints)
        ]

    def method(self, service: str, endpoint: str) -> Method | None:
        """The messages of an endpoint; None where it cannot be described."""
        entry = self._table.entry(self._namespace, service)
        return self._of(entry).methods.get(endpoint) if entry is not None else None

    def package(self, name: str, shown: Shown | None = None) -> Description | None:
        """The service whose package has this name, described: those of its endpoints that
        ``shown(service, endpoint)`` accepts, None when it is none of them."""
        self._refresh()
        service = self._packages.get(name)
        entry = self._table.entry(self._namespace, service) if service is not None else None
        if entry is None or shown is None:
            return self._of(entry) if entry is not None else None
        accepted = tuple(e for e in entry.endpoints if shown(entry.service, e.name))
        if len(accepted) == len(entry.endpoints):
            return self._of(entry)
        return self._of(replace(entry, endpoints=accepted), part=True) if accepted else None

    def _of(self, entry: Entry, *, part: bool = False) -> Description:
        """The description of a service, or of a part of it."""
        key = (entry.service, tuple(e.name for e in entry.endpoints) if part else ())
        found = self._kept.get(key)
        if found is not None and (found.entry is entry or found.entry == entry):
            return found
        self._kept.pop(key, None)
        if len(self._kept) >= KEPT:
            del self._kept[next(iter(self._kept))]
        made = self._kept[key] = describe(entry)
        return made

    def _refresh(self) -> None:
        if self._version == self._table.version:
            return
        self._version = self._table.version
        packages: dict[str, str] = {}
        services: dict[str, list[tuple[str, str]]] = {}
        for name in self._table.services(self._namespace):
            entry = self._table.entry(self._namespace, name)
            if entry is None:
                continue
            packages.setdefault(package_of(entry.service), entry.service)
            for endpoint in entry.endpoints:
                called = service_of(entry.service, endpoint.name)
                if called:
                    services.setdefault(called, []).append((entry.service, endpoint.name))
        self._packages = packages
        self._services = dict(sorted(services.items()))


class Catalogues:
    """One for each namespace that is asked for."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._known: dict[str, Catalogue] = {}

    def of(self, namespace: str) -> Catalogue:
        known = self._known.get(namespace)
        if known is None:
            if len(self._known) >= NAMESPACES:
                self._known.clear()
            known = self._known[namespace] = Catalogue(self._table, namespace)
        return known
