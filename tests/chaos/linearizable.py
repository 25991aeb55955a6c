"""A checker of linearizability: whether a history of concurrent calls has an order, in keeping with
when each call began and ended, in which every answer is the one a single register would have given.

After Wing and Gong, with Lowe's lazy linearization: calls are placed only when one of them returns,
and the set of all states that may hold then is carried on. Each key is checked by itself, which is
enough (linearizability is local). Every value is written once, so that a read tells whose write it
saw.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Call", "Kind", "Outcome", "violations"]


class Kind(StrEnum):
    READ = "read"
    WRITE = "write"
    SET = "compare-and-set"
    DELETE = "delete"


class Outcome(StrEnum):
    DONE = "done"
    REFUSED = "refused"  # another value than expected was there
    UNKNOWN = "unknown"  # may be done once, at any time from the call on, or never


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """``value`` is written or was read (None: nothing there), ``expected`` compared with; the
    ``version`` of a value, 0 when it was not told. ``began`` and ``ended`` are of one clock."""

    key: str
    kind: Kind
    began: int
    ended: int
    outcome: Outcome = Outcome.DONE
    value: str | None = None
    expected: str | None = None
    version: int = 0


#: What is there, and the newest version so far.
_State = tuple[str | None, int]
#: A state, and which of the calls under way are in it already.
_Config = tuple[_State, frozenset[int]]

#: States at one moment beyond which a history is not checked further.
_MOST = 200_000


def violations(history: Iterable[Call]) -> list[str]:
    """One line per key whose calls have no order, and per version given twice; empty for a history
    that is linearizable. Raises RuntimeError when there are too many orders to look at."""
    by_key: dict[str, list[Call]] = defaultdict(list)
    for call in history:
        by_key[call.key].append(call)
    found = []
    for key, calls in sorted(by_key.items()):
        versions: dict[str, int] = {}
        for call in calls:
            if call.value is None or not call.version:
                continue
            if versions.setdefault(call.value, call.version) != call.version:
                found.append(f"{key}: value {call.value} has two versions")
        if (wrong := _unplaced(calls, versions)) is not None:
            found.append(f"{key}: no order explains {wrong}")
    return found


def _unplaced(calls: Sequence[Call], versions: Mapping[str, int]) -> Call | None:
    """The first call whose answer no order explains."""
    events: list[tuple[int, int, int]] = []
    for number, call in enumerate(calls):
        events.append((call.began, 0, number))
        if call.outcome is not Outcome.UNKNOWN:
            events.append((call.ended, 1, number))
    configs: set[_Config] = {((None, 0), frozenset())}
    under_way: set[int] = set()
    for _, ends, number in sorted(events):
        if not ends:
            under_way.add(number)
            continue
        configs = _with(configs, number, under_way, calls, versions)
        if not configs:
            return calls[number]
        under_way.discard(number)
    return None


def _with(
    configs: set[_Config],
    number: int,
    under_way: set[int],
    calls: Sequence[Call],
    versions: Mapping[str, int],
) -> set[_Config]:
    """All that may hold once a call is in: others under way may have come before it."""
    done: set[_Config] = set()
    seen = set(configs)
    open_ = list(configs)
    while open_:
        state, placed = open_.pop()
        if number in placed:
            done.add((state, placed - {number}))
            continue
        for other in under_way - placed:
            after = _step(state, calls[other], versions)
            if after is None:
                continue
            config = (after, placed | {other})
            if config not in seen:
                seen.add(config)
                open_.append(config)
        if len(seen) > _MOST:
            raise RuntimeError(f"over {_MOST} orders at {calls[number]}")
    return done


def _step(state: _State, call: Call, versions: Mapping[str, int]) -> _State | None:
    """What holds after a call was executed; None when it would have answered otherwise."""
    value, newest = state
    if call.kind is Kind.READ:
        return state if call.value == value else None
    if call.kind is Kind.DELETE:
        return (None, newest)
    if call.kind is Kind.SET:
        if call.outcome is Outcome.REFUSED:
            return state if value != call.expected else None
        if value != call.expected:
            return None
    assert call.value is not None
    version = versions.get(call.value, 0)
    if version and version <= newest:
        return None
    return (call.value, max(version, newest))
