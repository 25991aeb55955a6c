"""What is registered, as services: grouped by version, found by name, and what name is near."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable

from micro_ray.errors import NotFound
from micro_ray.registry import Instance, Service

__all__ = ["Ordered", "find", "services"]

#: Names that are compared to say what is near.
NEAR = 2_000

#: An instance with its place in the order of registration.
Ordered = tuple[int, Instance]


def find(entries: Iterable[Ordered], namespace: str, service: str) -> list[Service]:
    """All versions of a service of the namespace, newest first. Raises NotFound."""
    wanted = service.lower()
    own = [entry for entry in entries if entry[1].namespace == namespace]
    found = [entry for entry in own if entry[1].service.lower() == wanted]
    if not found:
        names = {instance.service.lower(): instance.service for _, instance in own}
        some = itertools.islice(names, NEAR)
        near = difflib.get_close_matches(wanted[:80], some, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(names[name] for name in near)}?" if near else ""
        raise NotFound("registry", f"no service {service[:80]!r} in {namespace}{hint}")
    return _grouped(sorted(found, key=lambda entry: -entry[0]))


def services(entries: Iterable[Ordered], namespace: str) -> list[Service]:
    """Every service of the namespace ("*": of all), sorted by namespace, name and version."""
    wanted = [entry for entry in entries if namespace in ("*", entry[1].namespace)]
    return sorted(_grouped(wanted), key=lambda s: (s.namespace, s.name, s.version))


def _grouped(entries: Iterable[Ordered]) -> list[Service]:
    """Instances grouped by version, in the order given; endpoints are the newest node's."""
    groups: dict[tuple[str, str, str], list[Ordered]] = {}
    for entry in entries:
        instance = entry[1]
        key = (instance.namespace, instance.service, instance.version)
        groups.setdefault(key, []).append(entry)
    grouped = []
    for (namespace, name, version), members in groups.items():
        newest = max(members, key=lambda entry: entry[0])[1]
        grouped.append(
            Service(
                name=name,
                version=version,
                namespace=namespace,
                endpoints=newest.endpoints,
                metadata=newest.metadata,
                nodes=tuple(instance.node for _, instance in members),
            )
        )
    return grouped
