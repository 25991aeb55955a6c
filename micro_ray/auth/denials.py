"""What doors and services have refused, on its way to the record of what was done.

Each guard gathers what it refuses (:class:`Denials`) and tells it to auth every second; what is the
same is one entry with its ``count``. Auth enters so many a second of each kind, and how many were
left out with the next (:class:`Entering`), so that nobody fills the record, or the topic it is
published to, with what he may not do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from micro_ray.auth import DEFAULT, SERVICE, Audit, Identity, Kind, Resource
from micro_ray.auth.refusals import Room
from micro_ray.errors import Forbidden

__all__ = ["Denials", "Entering"]

#: What is denied.
CALL = "call"
#: Denials that wait to be entered, of all kinds; further ones are counted.
WAITING = 1000
#: Entries a second that a member of auth takes for each namespace: of calls of its accounts, of
#: accounts of others, and of nobody.
MOST = 20
#: Characters of what who is not the platform says in an entry, and seconds that it may be old.
LONGEST, OLDEST = 253, 3600.0


class _Same(NamedTuple):
    """What makes denials the same."""

    by: str
    namespace: str
    subject: str
    why: str


class Denials:
    """What was refused and waits to be entered among what was done: bounded, the newest count."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.dropped = 0
        self._clock = clock
        #: When each was refused first, and how often; the oldest first.
        self._waiting: dict[_Same, tuple[float, int]] = {}
        self._left_out = 0

    def add(self, identity: Identity | None, resource: Resource, namespace: str, why: str) -> None:
        """Enter that somebody may not."""
        by = "" if identity is None else f"{identity.namespace}/{identity.id}"
        same = _Same(by, namespace, f"{resource.name}:{resource.endpoint}", why)
        since, count = self._waiting.get(same, (self._clock(), 0))
        if not count and len(self._waiting) >= WAITING:
            self._drop(self._waiting.pop(next(iter(self._waiting)))[1])
        self._waiting[same] = since, count + 1

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._left_out += count

    def take(self, most: int) -> list[Audit]:
        """The oldest. The first says how many there was no room for."""
        taken = []
        for same in list(self._waiting)[:most]:
            since, count = self._waiting.pop(same)
            detail: dict[str, Any] = {"why": same.why}
            if count > 1:
                detail["count"] = count
            if self._left_out:
                detail["left_out"], self._left_out = self._left_out, 0
            taken.append(
                Audit(
                    id="",
                    time=since,
                    action=CALL,
                    by=same.by,
                    namespace=same.namespace,
                    subject=same.subject,
                    allowed=False,
                    detail=detail,
                )
            )
        return taken

    def put_back(self, entries: Sequence[Audit]) -> None:
        """Have those wait again that could not be entered; for which there is no more room are
        counted."""
        back: dict[_Same, tuple[float, int]] = {}
        for entry in entries:
            same = _Same(entry.by, entry.namespace, entry.subject, entry.detail["why"])
            _, since = self._waiting.pop(same, (0.0, 0))
            back[same] = entry.time, entry.detail.get("count", 1) + since
            self._left_out += entry.detail.get("left_out", 0)
        room = max(0, WAITING - len(self._waiting))
        for same in list(back)[: max(0, len(back) - room)]:
            self._drop(back.pop(same)[1])
        self._waiting = back | self._waiting

    def __len__(self) -> int:
        return len(self._waiting)


class Entering:
    """What of the denials that are told is entered."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._room = Room(MOST, clock)

    def said(self, teller: Identity, entries: Sequence[Audit]) -> list[Audit]:
        """As ``teller`` may say them. The platform's processes say what they like; a service of a
        namespace that it has refused something there, and the entry has its name. Raises
        Forbidden."""
        if teller.everywhere:
            return list(entries)
        if not (teller.kind is Kind.SERVICE and SERVICE in teller.grants[1]):
            raise Forbidden("auth", f"{teller.id} does not act for the platform ({DEFAULT})")
        return [self._of_service(teller, entry) for entry in entries]

    def _of_service(self, teller: Identity, entry: Audit) -> Audit:
        now = self._clock()
        detail: dict[str, Any] = {"why": str(entry.detail.get("why", ""))[:LONGEST]}
        for name in ("count", "left_out"):
            number = _number(entry, name)
            if number:
                detail[name] = number
        if entry.namespace != teller.namespace:  # one that was asked for there
            detail["namespace"] = entry.namespace[:LONGEST]
        return Audit(
            id="",
            time=entry.time if now - OLDEST <= entry.time <= now else now,
            action=CALL,
            by=entry.by[:LONGEST],
            namespace=teller.namespace,
            subject=entry.subject[:LONGEST],
            allowed=False,
            detail=detail | {"told_by": teller.id},
        )

    def few(self, entries: Sequence[Audit]) -> list[Audit]:
        """Those for which there is room; each says how many like it were left out before."""
        kept = []
        for entry in entries:
            if entry.allowed or entry.action != CALL:
                kept.append(entry)
                continue
            space = entry.by.partition("/")[0]
            whose = "own" if space == entry.namespace else "other" if space else "nobody"
            number = (_number(entry, "count") or 1) + _number(entry, "left_out")
            left = self._room.take(f"{entry.namespace} {whose}", number)
            if left is None:
                continue
            if left:
                more = left + _number(entry, "left_out")
                entry = replace(entry, detail={**entry.detail, "left_out": more})
            kept.append(entry)
        return kept


def _number(entry: Audit, name: str) -> int:
    """What an entry says of how many; 0 for nothing, or what cannot be."""
    said = entry.detail.get(name)
    if isinstance(said, bool) or not isinstance(said, int):
        return 0
    return said if 0 < said < 2**53 else 0
