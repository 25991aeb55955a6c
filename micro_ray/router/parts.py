"""A delta in messages: a full table may be larger than a message may be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from micro_ray.context import DEFAULT_NAMESPACE
from micro_ray.parts import cut, joined
from micro_ray.router import Delta, Entry, Route
from micro_ray.router.table import home

__all__ = ["join", "seen", "split"]

#: Bytes of a part, as they are encoded. One entry may have as many, and goes alone then.
PART = 2**20
#: Deltas of no more routes and entries than these are passed on unmeasured.
FEW_ROUTES, FEW_ENTRIES = 100, 4
#: What makes a delta large.
NAMES = ("gone", "routes", "gone_entries", "entries")


def split(delta: Delta) -> Iterator[Delta]:
    """The delta, in parts where it is large; all but the last say ``more``."""
    if (
        len(delta.routes) + len(delta.gone) + len(delta.gone_entries) <= FEW_ROUTES
        and len(delta.entries) <= FEW_ENTRIES
    ):
        yield delta
        return
    yield from cut(delta, NAMES, PART)


def seen(delta: Delta, namespace: str) -> Delta:
    """What a namespace may see of a delta: its own, and the platform's services."""

    def shown(item: Route | Entry) -> bool:
        return item.namespace == home(namespace, item.service)

    spaces = (namespace, DEFAULT_NAMESPACE)
    return replace(
        delta,
        routes=tuple(filter(shown, delta.routes)),
        gone=tuple(gone for gone in delta.gone if gone[0] in spaces),
        entries=tuple(filter(shown, delta.entries)),
        gone_entries=tuple(gone for gone in delta.gone_entries if gone[0] in spaces),
    )


def join(parts: Sequence[Delta]) -> Delta:
    """The delta whose parts these are, in order."""
    return joined(parts, NAMES)
