"""What a group of transactions does to what is there: decided here, without a database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from micro_ray.errors import Conflict
from micro_ray.store import Action, Change, Check, Operation, Put, checks

__all__ = ["Found", "Job", "Place", "Plan", "Row", "plan"]

#: Database, table, key.
Place = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Found:
    """What the database has at a place; it has expired when ``expires`` is past."""

    version: int
    expires: float | None

    def live(self, now: float) -> bool:
        return self.expires is None or self.expires > now


@dataclass(frozen=True, slots=True)
class Row:
    """What a place shall have."""

    put: Put
    expires: float | None
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One transaction over a database, or, in ``expired``, places to remove if their time is
    over."""

    database: str = ""
    operations: Sequence[Operation] = ()
    expired: Sequence[Place] = ()

    @property
    def places(self) -> list[Place]:
        return [*self.expired, *((self.database, row.table, row.key) for row in self.operations)]

    @property
    def size(self) -> int:
        return sum(len(row.value) for row in self.operations if isinstance(row, Put))


@dataclass(slots=True, kw_only=True)
class Plan:
    """``rows`` by place (None: shall not be there) and ``changes`` in order; per job the versions
    it is answered with, or why it was refused."""

    revision: int
    rows: dict[Place, Row | None] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    answers: list[list[int] | Conflict] = field(default_factory=list)


def plan(jobs: Sequence[Job], found: Mapping[Place, Found], revision: int, now: float) -> Plan:
    """The jobs one after the other, each whole or not at all; ``revision`` is the newest given."""
    made = Plan(revision=revision)
    for job in jobs:
        staged = _Staged(made, found, now)
        try:
            made.answers.append([staged.apply(job.database, row) for row in job.operations])
        except Conflict as error:
            made.answers.append(error)
            continue
        for place in job.expired:
            staged.expire(place)
        made.rows.update(staged.rows)
        made.changes += staged.changes
        made.revision += len(staged.changes)
    return made


class _Staged:
    """What one job would do, after those before it."""

    def __init__(self, before: Plan, found: Mapping[Place, Found], now: float) -> None:
        self._before = before
        self._found = found
        self._now = now
        self.rows: dict[Place, Row | None] = {}
        self.changes: list[Change] = []

    def _there(self, place: Place) -> Found | None:
        """What is at a place by now, expired or not."""
        for rows in (self.rows, self._before.rows):
            if place in rows:
                row = rows[place]
                return None if row is None else Found(row.version, row.expires)
        return self._found.get(place)

    def apply(self, database: str, row: Operation) -> int:
        place = (database, row.table, row.key)
        there = self._there(place)
        version = there.version if there is not None and there.live(self._now) else 0
        if row.expected is not None and row.expected != version:
            raise checks.conflict("/".join(place), row.expected, version)
        if isinstance(row, Check):
            return 0
        if isinstance(row, Put):
            number = self._change(Action.PUT, place)
            expires = None if row.expiry is None else self._now + row.expiry
            self.rows[place] = Row(row, expires, number)
            return number
        if there is not None:
            self._change(Action.DELETE, place)
            self.rows[place] = None
        return 0

    def expire(self, place: Place) -> None:
        there = self._there(place)
        if there is not None and not there.live(self._now):
            self._change(Action.DELETE, place)
            self.rows[place] = None

    def _change(self, action: Action, place: Place) -> int:
        revision = self._before.revision + len(self.changes) + 1
        database, table, key = place
        self.changes.append(
            Change(revision=revision, action=action, database=database, table=table, key=key)
        )
        return revision
