"""A validator of watches: what a watcher saw, held against what was written and what the writers
were told. It says what is out of order, twice, missing, or was never written.

Each key has one writer, who makes one write after the other and leaves a key for good once he does
not know what became of a write to it. So there is one right order of each key's changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["ANY", "Session", "Sight", "Write", "disagreements", "faults", "registry_faults"]

#: A value that a watch does not tell.
ANY = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """``items`` are keys and their values (None: removed), ``revisions`` what the writer was told,
    if he was. One that is not ``known`` may be done once, at any time from then on, or never."""

    items: Mapping[str, str | None]
    revisions: Mapping[str, int] = field(default_factory=dict)
    known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """One step that a watcher was given."""

    revision: int
    items: Mapping[str, str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A snapshot of a registry, and the steps that a watcher was given from there on."""

    epoch: str
    revision: int
    state: Mapping[str, str]
    sights: Sequence[Sight] = ()

    @property
    def end(self) -> dict[str, str]:
        """What the watcher has at the end."""
        state: dict[str, str] = dict(self.state)
        for sight in self.sights:
            for key, value in sight.items.items():
                if value is None:
                    state.pop(key, None)
                else:
                    state[key] = value
        return state


def faults(
    writes: Sequence[Write], sights: Sequence[Sight], *, after: int = 0, dense: bool = True
) -> list[str]:
    """What is wrong with a watch of everything from revision ``after`` on, over which all writes
    were made and which has come to its end. ``dense``: revisions have no holes."""
    found = _order(sights, after, dense)
    seen = {sight.revision: sight for sight in sights}
    for write in writes:
        for key, revision in write.revisions.items():
            have = seen.get(revision)
            if have is None or key not in have.items:
                found.append(f"missing: {key} of revision {revision}")
            elif not _same(write.items[key], have.items[key]):
                found.append(f"revision {revision}: {key} is {have.items[key]}, not as written")
    ops, given = _by_key(writes), _given(sights)
    for key in sorted(ops.keys() | given.keys()):
        track = _Track(key, ops.get(key, []))
        found += track.follow(given.get(key, []))
        found += track.left()
    return found + _halves(writes, given)


def registry_faults(
    writes: Sequence[Write],
    held: Mapping[str, str],
    sessions: Sequence[Session],
    *,
    dense: bool = True,
    expires: bool = False,
) -> list[str]:
    """What is wrong with one watcher's log of a registry. ``held`` are nodes that register the same
    again when they must, ``expires`` says that a node whose writer left it may go by itself."""
    found: list[str] = []
    ops = _by_key(writes)
    tracks = {key: _Track(key, rows, expires=expires) for key, rows in ops.items()}
    epoch = ""
    for session in sessions:
        found += _order(session.sights, session.revision, dense)
        found += _folded(session)
        given = _given(session.sights)
        for key in sorted(given.keys() | session.state.keys()):
            values = [value for _, value in given.get(key, [])] + [session.state.get(key)]
            if key in held:
                strange = [v for v in values if v not in (None, held[key])]
                found += [f"never written: {key} {value}" for value in strange]
            elif key not in tracks:
                found.append(f"never written: {key}")
        forgotten = session.epoch != epoch
        epoch = session.epoch
        for key, track in tracks.items():
            found += track.begin(session.state.get(key), forgotten=forgotten)
            found += track.follow(given.get(key, []))
    return found + [row for track in tracks.values() for row in track.left()]


def disagreements(logs: Sequence[Sequence[Session]]) -> list[str]:
    """Where watchers that were there for the same revisions of a registry saw different things."""
    found = []
    sessions = [session for log in logs for session in log if session.sights]
    for number, one in enumerate(sessions):
        for other in sessions[number + 1 :]:
            if one.epoch != other.epoch:
                continue
            first = max(one.revision, other.revision)
            last = min(one.sights[-1].revision, other.sights[-1].revision)
            mine, theirs = (
                {s.revision: dict(s.items) for s in session.sights if first < s.revision <= last}
                for session in (one, other)
            )
            found += [
                f"revision {revision} of {one.epoch}: {mine.get(revision)} for one,"
                f" {theirs.get(revision)} for another"
                for revision in sorted(mine.keys() | theirs.keys())
                if mine.get(revision) != theirs.get(revision)
            ]
    return found


# -- parts ---------------------------------------------------------------------------------------


def _order(sights: Sequence[Sight], after: int, dense: bool) -> list[str]:
    found, had = [], {after}
    numbers = [after, *(sight.revision for sight in sights)]
    for before, now in pairwise(numbers):
        if now in had:
            found.append(f"twice: revision {now}")
        elif now < before:
            found.append(f"out of order: revision {now} after {before}")
        elif dense and now > before + 1:
            found.append(f"missing: revisions {before + 1} to {now - 1}")
        had.add(now)
    return found


def _folded(session: Session) -> list[str]:
    """Steps that change nothing of what the watcher has: of no registration, or the same again."""
    found, state = [], dict(session.state)
    for sight in session.sights:
        for key, value in sight.items.items():
            if value == state.get(key):
                found.append(f"twice: {key} {value} at revision {sight.revision}")
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
    return found


def _by_key(writes: Iterable[Write]) -> dict[str, list[tuple[str | None, bool]]]:
    ops: dict[str, list[tuple[str | None, bool]]] = defaultdict(list)
    for write in writes:
        for key, value in write.items.items():
            ops[key].append((value, write.known))
    return ops


def _given(sights: Iterable[Sight]) -> dict[str, list[tuple[int, str | None]]]:
    given: dict[str, list[tuple[int, str | None]]] = defaultdict(list)
    for sight in sights:
        for key, value in sight.items.items():
            given[key].append((sight.revision, value))
    return given


def _halves(
    writes: Sequence[Write], given: Mapping[str, Sequence[tuple[int, str | None]]]
) -> list[str]:
    """Writes of several keys, of unknown end, of which a part was done. They are the last ones to
    their keys, so what there is beyond the known ones is theirs."""
    effects: dict[str, int] = defaultdict(int)
    state: dict[str, str | None] = {}
    for write in writes:
        for key, value in write.items.items():
            if write.known and state.get(key) != value:
                state[key] = value
                effects[key] += 1
    return [
        f"half of {sorted(write.items)} was seen"
        for write in writes
        if not write.known
        and None not in write.items.values()
        and len({len(given.get(key, ())) > effects[key] for key in write.items}) > 1
    ]


def _same(written: str | None, seen: str | None) -> bool:
    return written == seen or (written == ANY and seen is not None)


#: How many writes are behind, what is there now, and which unknown ones may still come.
_State = tuple[int, str | None, frozenset[int]]


class _Track:
    """Follows one key's writes along what was seen of them, on all ways that there are."""

    def __init__(
        self, key: str, ops: Sequence[tuple[str | None, bool]], *, expires: bool = False
    ) -> None:
        self._key = key
        self._ops = ops
        self._expires = expires
        self._states: set[_State] = {(0, None, frozenset())}
        self._broken = False

    def begin(self, value: str | None, *, forgotten: bool) -> list[str]:
        """A snapshot: any number of changes may have come to pass unseen. ``forgotten``: it may be
        of a new life that knows nothing of what was written before."""
        first = min(state[0] for state in self._states)
        last = len(self._ops)
        places: set[tuple[int, int]] = set()  # how far, and which write this value is of
        if value is None and forgotten:
            places = {(i, -1) for i in range(first, last + 1)}
        elif value is None and first == 0:
            places = {(0, -1)}
        for n, (written, known) in enumerate(self._ops):
            if _same(written, value):
                places |= {(i, n) for i in range(n + 1, (n + 1 if known else last) + 1)}
            elif value is None and not known and self._expires:
                places |= {(i, -1) for i in range(n + 1, last + 1)}
        self._states = {
            (i, value, frozenset(k for k in range(i) if not self._ops[k][1] and k != n))
            for i, n in places
            if i >= first
        }
        if self._states or self._broken:
            return []
        self._broken = True
        known = any(_same(written, value) for written, _ in self._ops)
        return [
            f"{'out of order' if known else 'never written'}: {self._key} {value} in a snapshot"
        ]

    def follow(self, given: Sequence[tuple[int, str | None]]) -> list[str]:
        """The first of these that no way explains."""
        for revision, value in given:
            if self._broken:
                return []
            after = {to for state in self._closed() for to in self._steps(state, value)}
            if not after:
                self._broken = True
                known = any(_same(written, value) for written, _ in self._ops)
                what = "missing before or out of order" if known else "never written"
                return [f"{what}: {self._key} {value} at revision {revision}"]
            self._states = after
        return []

    def left(self) -> list[str]:
        """The first write that was done for sure and that nothing is seen of."""
        furthest = max((state[0] for state in self._closed()), default=0)
        if self._broken or furthest == len(self._ops):
            return []
        return [f"missing: {self._key} {self._ops[furthest][0]}, write {furthest} of the key"]

    def _closed(self) -> set[_State]:
        """The states, and those after writes of which nothing need be seen."""
        closed, open_ = set(self._states), list(self._states)
        while open_:
            i, now, pending = open_.pop()
            if i == len(self._ops):
                continue
            value, known = self._ops[i]
            if known and value != now:
                continue
            state = (i + 1, now, pending if known else pending | {i})
            if state not in closed:
                closed.add(state)
                open_.append(state)
        return closed

    def _steps(self, state: _State, seen: str | None) -> list[_State]:
        """Where a change that was seen leads."""
        i, now, pending = state
        steps: list[_State] = []
        if i < len(self._ops):
            value, known = self._ops[i]
            if known and value != now and _same(value, seen):
                steps.append((i + 1, seen, pending))
        for n in pending:
            if self._ops[n][0] != now and _same(self._ops[n][0], seen):
                steps.append((i, seen, pending - {n}))
        left_alone = any(not known for _, known in self._ops[:i])
        if self._expires and left_alone and seen is None and now is not None:
            steps.append((i, None, pending))
        return steps
