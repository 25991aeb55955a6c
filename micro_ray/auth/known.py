"""What guards are told, as it is kept by who tells it: everything at a revision, what of it a
follower gets, and how it fits into messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from micro_ray.auth import DEFAULT, Key, Revocation, Rule, Update
from micro_ray.parts import cut, joined

__all__ = ["Known", "join", "narrowed", "split", "wide"]

#: Bytes of a part of an update, as they are encoded.
PART = 2**19
#: Updates of no more rules, names and revocations than these are passed on unmeasured.
FEW = 100
#: Revocations that may be kept before those whose time is over are looked for.
LITTLE = 100
#: What makes an update large.
NAMES = ("rules", "gone", "revoked")


class Known:
    """``clock`` is wall-clock seconds. A revocation is kept until its time is over, whatever a
    later update with everything lacks: its source may have come back from an earlier state."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.revision = -1
        self.mark = ""
        self.keys: tuple[Key, ...] = ()
        self.rules: dict[tuple[str, str], Rule] = {}
        self.revoked: dict[tuple[str, str], Revocation] = {}
        self._prune_at = LITTLE

    def apply(self, update: Update) -> None:
        """Learn what an update says; that it is stale is for others to know."""
        if update.full:
            self.rules = {}
        if update.keys is not None:
            self.keys = update.keys
        for space, rule in update.rules:
            self.rules[space, rule.id] = rule
        for place in update.gone:
            self.rules.pop(place, None)
        for revoked in update.revoked:
            self._revoke(revoked)
        if len(self.revoked) > self._prune_at:
            self._prune()
        self.revision = update.revision
        self.mark = update.mark

    def _revoke(self, revoked: Revocation) -> None:
        place = revoked.token, revoked.account
        had = self.revoked.get(place)
        if had is not None:
            revoked = replace(
                revoked,
                before=max(had.before, revoked.before),
                until=max(had.until, revoked.until),
            )
        self.revoked[place] = revoked

    def _prune(self) -> None:
        now = self._clock()
        self.revoked = {at: one for at, one in self.revoked.items() if one.until >= now}
        self._prune_at = max(LITTLE, 2 * len(self.revoked))

    def everything(self, namespace: str | None = None, *, stale: bool = False) -> Update:
        """All of it, with the rules of one namespace (None: of all)."""
        self._prune()
        return Update(
            revision=self.revision,
            full=True,
            stale=stale,
            keys=self.keys,
            rules=tuple(
                (space, rule)
                for (space, _), rule in self.rules.items()
                if namespace is None or space == namespace
            ),
            revoked=tuple(self.revoked.values()),
            mark=self.mark,
        )

    def change(self, full: Update) -> Update:
        """What an update with everything says that is not known: after it nothing is missing."""
        rules = {(space, rule.id): rule for space, rule in full.rules}
        return Update(
            revision=full.revision,
            keys=None if full.keys == self.keys else full.keys,
            rules=tuple(
                (place[0], rule) for place, rule in rules.items() if self.rules.get(place) != rule
            ),
            gone=tuple(place for place in self.rules if place not in rules),
            revoked=tuple(
                one for one in full.revoked if self.revoked.get((one.token, one.account)) != one
            ),
            mark=full.mark,
            resumed=True,
        )


def narrowed(update: Update, namespace: str | None) -> Update:
    """What of an update is for a follower with the rules of one namespace (None: all of it). It is
    told of each, so that it knows how far it is."""
    if namespace is None or not (update.rules or update.gone):
        return update
    return replace(
        update,
        rules=tuple(pair for pair in update.rules if pair[0] == namespace),
        gone=tuple(pair for pair in update.gone if pair[0] == namespace),
    )


def wide(namespace: str | None) -> str | None:
    """Whose rules a follower gets that asks for a namespace's: None for all."""
    return None if namespace in (None, DEFAULT) else namespace


def split(update: Update) -> Iterator[Update]:
    """The update, in parts where a message may not hold it; all but the last say ``more``."""
    if sum(len(getattr(update, name)) for name in NAMES) <= FEW:
        yield update
        return
    for number, part in enumerate(cut(update, NAMES, PART)):
        yield replace(part, keys=None) if number else part


def join(parts: Sequence[Update]) -> Update:
    """The update whose parts these are, in order."""
    whole = joined(parts, NAMES)
    return whole if len(parts) == 1 else replace(whole, keys=parts[0].keys)
