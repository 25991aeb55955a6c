"""What a group is: which event is with whom, settled, given up. Decided here, kept elsewhere.

An event of a group is in one of four states: not yet given (its number is ``next`` or above), held
(in ``held``: by whom until when, or to be given again when), dead (in ``dead``; its copy is kept
apart), or settled (in neither). A dead letter that was requeued is in both until it is settled.

All changes go through a journal, so that a change which loses a race is taken back and decided
anew. What a change comes to is a record; records applied in their order make the state again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from micro_ray.events import MAX_BACKOFF, MAX_DEAD, Event
from micro_ray.events.checks import Reading

__all__ = ["Copies", "Given", "Held", "Letter", "Record", "State"]

#: What was given out later than so many seconds from now was so before the clock went back.
_SKEW = 5.0


class Held(msgspec.Struct, frozen=True, array_like=True):
    """Without a ``holder`` it is to be given again at ``due``; with one it is held until then."""

    attempt: int
    lease: int
    holder: str
    since: float
    due: float

    def is_due(self, now: float) -> bool:
        return self.due <= now or self.since > now + _SKEW


class Letter(msgspec.Struct, frozen=True, array_like=True):
    attempts: int
    time: float
    requeued: bool = False


class Record(msgspec.Struct, omit_defaults=True):
    """A change: ``whole`` says that it is all there is, ``gone`` that the group is deleted. None
    in ``held`` and ``dead`` removes. ``id`` tells its writer whether it was taken."""

    id: str
    whole: bool = False
    gone: bool = False
    values: dict[str, Any] = {}
    held: dict[int, Held | None] = {}
    dead: dict[int, Letter | None] = {}


@dataclass(frozen=True, slots=True)
class Given:
    event: Event
    attempt: int
    lease: int


class Copies(Exception):
    """These events would be given up, and are not yet copied to where dead letters are kept."""

    def __init__(self, sequences: Iterable[int]) -> None:
        super().__init__()
        self.sequences = list(sequences)


#: What a group has beside its events.
_VALUES = (
    "topic", "name", "next", "begun", "leases", "seen",
    "ack_wait", "retry_limit", "backoff", "pending",
)  # fmt: skip
_RULES = ("ack_wait", "retry_limit", "backoff", "pending")


class State:
    def __init__(self) -> None:
        self.topic = self.name = ""
        self.next = self.begun = 1
        self.leases = 0
        self.ack_wait, self.retry_limit, self.backoff, self.pending = 30.0, 10, 1.0, 1_000
        #: When a group of a consumer without a name was last seen.
        self.seen: float | None = None
        self.held: dict[int, Held] = {}
        self.dead: dict[int, Letter] = {}
        self._journal: list[tuple[str, Any, Any]] = []

    # -- the journal -----------------------------------------------------------------------------

    def _hold(self, sequence: int, held: Held | None) -> None:
        self._journal.append(("held", sequence, self.held.get(sequence)))
        _put(self.held, sequence, held)

    def _letter(self, sequence: int, letter: Letter | None) -> None:
        self._journal.append(("dead", sequence, self.dead.get(sequence)))
        _put(self.dead, sequence, letter)

    def _set(self, name: str, value: Any) -> None:
        old = getattr(self, name)
        if old != value:
            self._journal.append(("", name, old))
            setattr(self, name, value)

    @property
    def mark(self) -> int:
        return len(self._journal)

    def undo(self, mark: int = 0) -> None:
        """Take back what was changed since a mark."""
        while len(self._journal) > mark:
            kind, key, old = self._journal.pop()
            if kind:
                _put(getattr(self, kind), key, old)
            else:
                setattr(self, key, old)

    def record(self, id: str) -> Record:
        """What has been changed."""
        record = Record(id=id, values={}, held={}, dead={})
        for kind, key, _ in self._journal:
            if kind == "held":
                record.held[key] = self.held.get(key)
            elif kind == "dead":
                record.dead[key] = self.dead.get(key)
            else:
                record.values[key] = getattr(self, key)
        return record

    def whole(self, id: str) -> Record:
        """All there is."""
        return Record(
            id=id,
            whole=True,
            values={name: getattr(self, name) for name in _VALUES},
            held={**self.held},
            dead={**self.dead},
        )

    def keep(self) -> None:
        """What was changed is taken."""
        self._journal.clear()

    def apply(self, record: Record) -> None:
        if record.whole:
            self.held, self.dead = {}, {}
        for name, value in record.values.items():
            if name in _VALUES:
                setattr(self, name, value)
        for sequence, held in record.held.items():
            _put(self.held, sequence, held)
        for sequence, letter in record.dead.items():
            _put(self.dead, sequence, letter)

    # -- rules -----------------------------------------------------------------------------------

    @classmethod
    def new(cls, topic: str, name: str, begin: int, seen: float | None) -> State:
        """A group that begins at a number; ``seen`` for one that is forgotten when it is not."""
        state = cls()
        state.topic, state.name, state.seen = topic, name, seen
        state.next = state.begun = begin
        return state

    def follows(self, how: Reading) -> bool:
        """Whether it has these rules."""
        return all(getattr(self, name) == getattr(how, name) for name in _RULES)

    def follow(self, how: Reading) -> None:
        """Have these rules from now on."""
        for name in _RULES:
            self._set(name, getattr(how, name))

    def beyond(self, last: int) -> bool:
        """Whether events were given that the topic never had: servers have lost their newest, and
        their numbers will be used again."""
        return self.next > max(self.begun, last + 1)

    def rewind(self, following: int, last: int) -> None:
        """Go back to the topic's last event, if ``following`` is still the next one."""
        if self.next == following and self.beyond(last):
            self._set("next", max(self.begun, last + 1))

    def see(self, now: float) -> None:
        self._set("seen", now)

    def _spent(self, attempt: int) -> bool:
        return 0 <= self.retry_limit < attempt

    def _pause(self, attempt: int) -> float:
        """Seconds before the attempt after this one."""
        return min(self.backoff * 2.0 ** min(attempt - 1, 30), max(MAX_BACKOFF, self.backoff))

    # -- looking ---------------------------------------------------------------------------------

    def overdue(self, now: float) -> list[int]:
        """What nobody has settled in time and has had all its attempts."""
        return [
            n for n, h in self.held.items()
            if h.holder and h.is_due(now) and self._spent(h.attempt)
        ]  # fmt: skip

    def alarm(self) -> float | None:
        """When something may be overdue, or the group forgotten unless it is seen."""
        times = [h.due for h in self.held.values() if h.holder and self._spent(h.attempt)]
        return min(times) if times else None

    def soonest(self) -> float | None:
        """When something is due again."""
        return min((held.due for held in self.held.values()), default=None)

    def wanted(self, holder: str, prefetch: int, now: float) -> tuple[list[int], int]:
        """Which events are due again for a consumer, and how many new ones it may have."""
        mine = sum(h.holder == holder and not h.is_due(now) for h in self.held.values())
        room = prefetch - mine
        if room <= 0:
            return [], 0
        due = sorted(
            n for n, h in self.held.items()
            if h.is_due(now) and not (h.holder and self._spent(h.attempt))
        )[:room]  # fmt: skip
        return due, max(0, min(room - len(due), self.pending - len(self.held)))

    # -- giving and settling ---------------------------------------------------------------------

    def give(
        self, holder: str, prefetch: int, now: float, events: Mapping[int, Event | None]
    ) -> list[Given]:
        """Give events to a consumer: first those that are due again, then new ones, up to the first
        that is not among ``events``. None there is one that the topic no longer keeps."""
        due, room = self.wanted(holder, prefetch, now)
        lease = self.leases + 1
        given: list[Given] = []
        for sequence in due:
            if sequence not in events:
                return self._gave(given, lease)
            event, attempt = events[sequence], self.held[sequence].attempt + 1
            if event is None:
                self.settle(sequence)
                continue
            self._hold(sequence, Held(attempt, lease, holder, now, now + self.ack_wait))
            given.append(Given(event, attempt, lease))
        following = self.next
        while room > 0 and following in events:
            event = events[following]
            if event is not None:
                self._hold(following, Held(1, lease, holder, now, now + self.ack_wait))
                given.append(Given(event, 1, lease))
                room -= 1
            following += 1
        self._set("next", following)
        return self._gave(given, lease)

    def _gave(self, given: list[Given], lease: int) -> list[Given]:
        if given:
            self._set("leases", lease)
        return given

    def skip(self, first: int) -> None:
        """Events before this number are no longer kept."""
        if first > self.next:
            self._set("next", first)

    def settle(self, sequence: int) -> None:
        if sequence in self.held:
            self._hold(sequence, None)
        if sequence in self.dead:
            self._letter(sequence, None)

    def _of(self, tokens: Iterable[tuple[int, int]]) -> list[tuple[int, Held]]:
        """What is still held under these tokens."""
        found = []
        for sequence, lease in tokens:
            held = self.held.get(sequence)
            if held is not None and held.holder and held.lease == lease:
                found.append((sequence, held))
        return found

    def acknowledge(self, tokens: Iterable[tuple[int, int]]) -> int:
        count = 0
        for token in tokens:  # one by one: a token may be named twice
            for sequence, _ in self._of([token]):
                self.settle(sequence)
                count += 1
        return count

    def retry(
        self,
        tokens: Iterable[tuple[int, int]],
        delay: float | None,
        now: float,
        copied: Collection[int],
    ) -> int:
        """Give events back to the group, or give them up. Raises Copies."""
        tokens = list(dict.fromkeys(tokens))
        found = self._of(tokens)
        for sequence, held in found:
            if self._spent(held.attempt):
                self._bury(sequence, held.attempt, now, copied)
            else:
                pause = self._pause(held.attempt) if delay is None else delay
                self._back(sequence, held.attempt, now, now + pause)
        self._uncopied(copied)
        return len(found)

    def work_on(self, tokens: Iterable[tuple[int, int]], now: float) -> int:
        found = self._of(dict.fromkeys(tokens))
        for sequence, held in found:
            self._hold(
                sequence,
                Held(held.attempt, held.lease, held.holder, now, now + self.ack_wait),
            )
        return len(found)

    def release(
        self, holder: str, unseen: Collection[int], now: float, copied: Collection[int]
    ) -> None:
        """Give all back that a consumer holds. Those that it never saw have not had this attempt.
        Raises Copies."""
        for sequence, held in [(n, h) for n, h in self.held.items() if h.holder == holder]:
            attempt = held.attempt - (sequence in unseen)
            if self._spent(attempt):
                self._bury(sequence, attempt, now, copied)
            else:
                self._back(sequence, attempt, now, now)
        self._uncopied(copied)

    def bury(self, now: float, copied: Mapping[int, bool]) -> None:
        """Give up what is overdue. Raises Copies."""
        for sequence in self.overdue(now):
            self._bury(sequence, self.held[sequence].attempt, now, copied)
        self._uncopied(copied)

    def _bury(self, sequence: int, attempt: int, now: float, copied: Collection[int]) -> None:
        """Make a dead letter, or try on when there are too many of them."""
        if sequence not in self.dead and len(self.dead) >= MAX_DEAD:
            self._back(sequence, attempt, now, now + MAX_BACKOFF)
            return
        self._hold(sequence, None)
        self._letter(sequence, Letter(attempt, now))

    def _uncopied(self, copied: Collection[int]) -> None:
        """Raises Copies for what was just given up without a copy; what the topic no longer keeps
        (False among ``copied``) is settled."""
        fresh = {
            key for kind, key, old in self._journal
            if kind == "dead" and old is None and key in self.dead
        }  # fmt: skip
        missing = sorted(fresh.difference(copied))
        if missing:
            raise Copies(missing)
        if isinstance(copied, Mapping):
            for sequence in fresh:
                if not copied[sequence]:
                    self._letter(sequence, None)

    def _back(self, sequence: int, attempt: int, now: float, due: float) -> None:
        self._hold(sequence, Held(attempt, 0, "", now, due))

    # -- dead letters ----------------------------------------------------------------------------

    def letters(self) -> list[tuple[int, Letter]]:
        """By number; those that were requeued are not among them."""
        return sorted((n, letter) for n, letter in self.dead.items() if not letter.requeued)

    def _chosen(self, sequences: Sequence[int]) -> list[tuple[int, Letter]]:
        wanted = set(sequences)
        return [row for row in self.letters() if not wanted or row[0] in wanted]

    def requeue(self, sequences: Sequence[int], now: float) -> int:
        chosen = self._chosen(sequences)
        for sequence, letter in chosen:
            self._letter(sequence, Letter(letter.attempts, letter.time, True))
            self._back(sequence, 0, now, now)
        return len(chosen)

    def discard(self, sequences: Sequence[int]) -> list[int]:
        chosen = [sequence for sequence, _ in self._chosen(sequences)]
        for sequence in chosen:
            self._letter(sequence, None)
        return chosen


def _put(table: dict[int, Any], key: int, value: Any) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value
