"""The limiter: one ledger of what all doors may still admit, lent to them in small parts.

A door says what it wants of a limit and gets **tokens** of the rate's bucket and **slots** of the
concurrency, as there are; it brings back what it does not use. Both sides speak of differences
only (so many more, so many back), so that messages which cross do no harm. What a door holds of
slots comes back when its line ends; its tokens are gone, which is a fraction of a second's at most.

The limits themselves come with what the doors ask, each with the version of the config it was read
from; the newest counts. So a ledger needs nothing but its doors: a new one is whole when they have
come back to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from micro_ray.limits import Kind, Limit, Use
from micro_ray.limits.bucket import Bucket

__all__ = ["Ask", "Grant", "Ledger", "Place"]

#: Seconds for which what a door wanted counts as its demand.
RECENT = 0.1
#: Seconds after which a limit that nobody asked for is forgotten, once its bucket is full.
FORGET = 10.0
#: Limits that are known at once; beyond them those longest unused are forgotten.
MAX_KNOWN = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which limit it is."""

    namespace: str
    kind: Kind
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a door says of one limit: ``want`` more tokens, ``back`` of those it had; ``slots``
    more that it wants (in place of what it said before), ``freed`` of those it had. ``holds`` are
    the slots in use at the first word on a line, 0 later; the door gives it a ``number``."""

    place: Place
    limit: Limit
    version: int = 0
    want: int = 0
    back: int = 0
    slots: int = 0
    freed: int = 0
    holds: int = 0
    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a door gets: more ``tokens`` and ``slots``. ``wait`` is seconds until there is another
    token when it got fewer than it wanted, else 0; ``plenty``: over half of the bucket is left.
    ``full``: there are not the slots it wants; ``called``: others were asked to bring back theirs,
    so some may follow. ``keep``: bring back at once slots that are not in use and beyond so many,
    as others want them (-1: nobody does). ``answers`` the ask of this number, or none (0)."""

    place: Place
    tokens: int = 0
    wait: float = 0.0
    plenty: bool = False
    slots: int = 0
    full: bool = False
    called: bool = False
    keep: int = -1
    answers: int = 0


@dataclass(slots=True)
class _Account:
    """One limit. ``held``: slots by door; ``hungry``: slots that a door still wants; ``wanted``:
    what each door wanted last, and when; ``heard``: when each spoke last; ``called``: doors
    that were asked to bring slots back."""

    limit: Limit
    version: int
    bucket: Bucket | None
    seen: float
    held: dict[int, int] = field(default_factory=dict)
    hungry: dict[int, int] = field(default_factory=dict)
    called: set[int] = field(default_factory=set)
    wanted: dict[int, tuple[int, float]] = field(default_factory=dict)
    heard: dict[int, float] = field(default_factory=dict)
    admitted: int = 0

    @property
    def part(self) -> int:
        """Slots that each door may keep while others want some."""
        return self.limit.concurrency // max(1, len(self.held.keys() | self.hungry.keys()))

    def plenty(self, now: float) -> bool:
        """Whether most of what there may be is there."""
        return self.bucket is None or self.bucket.level(now) > self.bucket.depth / 2


def _bucket(limit: Limit, now: float) -> Bucket | None:
    return Bucket(limit.rate, limit.depth, now) if limit.rate else None


class Ledger:
    """Pure: no clock and no line of its own. Doors are numbers; each verb gives the grants that are
    to be told, by door."""

    def __init__(self) -> None:
        self._accounts: dict[Place, _Account] = {}
        self._doors: set[int] = set()
        self._next = 0

    @property
    def doors(self) -> int:
        """How many are attached."""
        return len(self._doors)

    def attach(self) -> int:
        """A new door; its number."""
        self._next += 1
        self._doors.add(self._next)
        return self._next

    def detach(self, door: int, now: float) -> dict[int, list[Grant]]:
        """A door's line has ended: its slots are free."""
        self._doors.discard(door)
        told: dict[int, list[Grant]] = {}
        for place, account in self._accounts.items():
            account.hungry.pop(door, None)
            account.called.discard(door)
            account.wanted.pop(door, None)
            account.heard.pop(door, None)
            if account.held.pop(door, 0):
                self._feed(place, account, told)
        return told

    def ask(self, door: int, asks: Iterable[Ask], now: float) -> dict[int, list[Grant]]:
        """What one door says; each ask is answered by a grant to that door, perhaps an empty one,
        and may bring grants to others."""
        told: dict[int, list[Grant]] = {door: []}
        for ask in asks:
            account = self._account(ask, now)
            account.heard[door] = now
            tokens, wait = self._tokens(account, door, ask, now)
            slots, full, called = self._slots(account, door, ask, told)
            told[door].append(
                Grant(
                    place=ask.place,
                    tokens=tokens,
                    wait=wait,
                    plenty=account.plenty(now),
                    slots=slots,
                    full=full,
                    called=called,
                    keep=account.part if door in account.called else -1,
                    answers=ask.number,
                )
            )
            if ask.freed:
                self._feed(ask.place, account, told)
        return told

    def _account(self, ask: Ask, now: float) -> _Account:
        account = self._accounts.get(ask.place)
        if account is None:
            account = _Account(ask.limit, ask.version, _bucket(ask.limit, now), now)
            self._accounts[ask.place] = account
        elif ask.version >= account.version and ask.limit != account.limit:
            limit = account.limit = ask.limit
            if account.bucket is None or not limit.rate:
                account.bucket = _bucket(limit, now)
            else:
                account.bucket.change(limit.rate, limit.depth, now)
        account.version = max(account.version, ask.version)
        account.seen = now
        return account

    def _tokens(self, account: _Account, door: int, ask: Ask, now: float) -> tuple[int, float]:
        bucket = account.bucket
        if bucket is None:
            return ask.want, 0.0
        if ask.back > 0:
            bucket.give(ask.back, now)
            account.admitted -= ask.back
        if ask.want <= 0:
            account.wanted.pop(door, None)
            return 0, 0.0
        account.wanted[door] = (ask.want, now)
        total = sum(want for want, at in account.wanted.values() if at > now - RECENT)
        # Of what there is each gets its part, so that who asks more often does not get it all.
        part = math.ceil(bucket.level(now) * ask.want / total)
        taken = bucket.take(min(ask.want, part), now)
        account.admitted += taken
        return taken, bucket.wait(now) if taken < ask.want else 0.0

    def _slots(
        self, account: _Account, door: int, ask: Ask, told: dict[int, list[Grant]]
    ) -> tuple[int, bool, bool]:
        """Slots given, whether there are too few, and whether others were called upon."""
        limit, held = account.limit.concurrency, account.held
        mine = held.get(door, 0) - ask.freed + ask.holds
        held[door] = max(0, mine)
        if not held[door]:
            del held[door]
        if not limit:
            return ask.slots, False, False
        given = min(ask.slots, max(0, limit - sum(held.values())))
        if given:
            held[door] = held.get(door, 0) + given
        short = ask.slots - given
        if short <= 0:
            account.hungry.pop(door, None)
            self._settle(ask.place, account, told)
            return given, False, False
        account.hungry[door] = short
        asked = False
        for other in held:
            if other != door and other not in account.called:
                account.called.add(other)
                told.setdefault(other, []).append(Grant(place=ask.place, keep=account.part))
                asked = True
        return given, True, asked

    def _feed(self, place: Place, account: _Account, told: dict[int, list[Grant]]) -> None:
        """Give free slots to those who want some, one each in turn."""
        limit = account.limit.concurrency
        free = limit - sum(account.held.values())
        got: dict[int, int] = {}
        while free > 0 and account.hungry:
            for door in list(account.hungry)[:free]:
                got[door] = got.get(door, 0) + 1
                account.held[door] = account.held.get(door, 0) + 1
                free -= 1
                left = account.hungry.pop(door) - 1
                if left:
                    account.hungry[door] = left  # at the end: the others are first now
        for door, slots in got.items():
            keep = account.part if door in account.called else -1
            grant = Grant(place=place, slots=slots, keep=keep)
            told.setdefault(door, []).append(grant)
        self._settle(place, account, told)

    def _settle(self, place: Place, account: _Account, told: dict[int, list[Grant]]) -> None:
        """When nobody wants any more, let all keep what they do not use."""
        if account.hungry or not account.called:
            return
        for door in account.called:
            told.setdefault(door, []).append(Grant(place=place))
        account.called.clear()

    def sweep(self, now: float) -> None:
        """Forget what has not been used for long: a bucket that is full is as good as a new one."""
        gone = [
            place
            for place, account in self._accounts.items()
            if not account.held and account.seen < now - FORGET and _whole(account, now)
        ]
        beyond = len(self._accounts) - len(gone) - MAX_KNOWN
        if beyond > 0:
            oldest = sorted(self._accounts, key=lambda place: self._accounts[place].seen)
            gone += [place for place in oldest if not self._accounts[place].held][:beyond]
        for place in gone:
            self._accounts.pop(place, None)

    def usage(self, namespace: str, now: float) -> list[Use]:
        """The limits of a namespace that are known."""
        found = [
            Use(
                kind=place.kind,
                name=place.name,
                limit=account.limit,
                left=account.bucket.level(now) if account.bucket else 0.0,
                lent=sum(account.held.values()),
                admitted=account.admitted,
                doors=sum(at > now - FORGET for at in account.heard.values()),
            )
            for place, account in self._accounts.items()
            if place.namespace == namespace
        ]
        return sorted(found, key=lambda use: (list(Kind).index(use.kind), use.name))


def _whole(account: _Account, now: float) -> bool:
    bucket = account.bucket
    return bucket is None or bucket.level(now) >= bucket.depth
