"""What a caller is shown of leaves: values as they are, secrets masked or opened."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from micro_ray.config import MASK, Change, Kind
from micro_ray.config.document import Edit, Leaf, below
from micro_ray.sealing import Keys

__all__ = ["Shown", "shown_changes"]

log = logging.getLogger(__name__)


class Shown:
    """``shown(path, leaf)`` is what a caller gets. With ``keys`` secrets are opened, and each
    opening is logged: who, where and by which verb, never the value."""

    def __init__(self, keys: Keys | None, *, verb: str, by: str, namespace: str) -> None:
        self._keys = keys
        self._verb = verb
        self._by = by or "unknown"
        self._namespace = namespace

    def __call__(self, path: str, leaf: Leaf) -> Any:
        if not leaf.sealed:
            return leaf.value
        if self._keys is None:
            return MASK
        value = msgspec.json.decode(self._keys.open(self._namespace, path, leaf.value))
        log.info(
            "config secret read namespace=%s path=%s by=%r verb=%s",
            self._namespace,
            path,
            self._by,
            self._verb,
        )
        return value


def shown_changes(edits: Sequence[Edit], path: str, shown: Shown) -> tuple[Change, ...]:
    """The edits at and below a path that a caller can see, by path."""
    inside = [edit for edit in edits if below(edit[0], path)]
    holders = {above for name, _, _ in inside for above in _above(name)}
    found: list[Change] = []
    for name, old, new in inside:
        if name in holders and _empty(old) and _empty(new):
            continue  # an object that got its first member, or lost its last: the member tells it
        before = None if old is None else shown(name, old)
        after = None if new is None else shown(name, new)
        if old is not None and new is not None and _alike(old, new, before, after):
            continue
        kind = Kind.ADDED if old is None else Kind.REMOVED if new is None else Kind.CHANGED
        secret = any(leaf is not None and leaf.sealed for leaf in (old, new))
        found.append(Change(path=name, kind=kind, old=before, new=after, secret=secret))
    return tuple(found)


def _above(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _empty(leaf: Leaf | None) -> bool:
    return leaf is None or (not leaf.sealed and leaf.value == {})


def _alike(old: Leaf, new: Leaf, before: Any, after: Any) -> bool:
    """Whether there is nothing between the two to be told. Of two masked secrets only the sealed
    texts can be compared: what was written again counts as changed."""
    if old.version == new.version:
        return True
    if old.sealed != new.sealed:
        return False
    if old.sealed and before == MASK and after == MASK:
        return bool(old.value == new.value)
    return msgspec.json.encode(before, order="sorted") == msgspec.json.encode(after, order="sorted")
