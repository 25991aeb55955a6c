"""The plan, row by row: what is desired, what is there, and the steps that follow."""

from __future__ import annotations

from collections import Counter

import pytest

from micro_ray.runtime import Replica, State, Workload
from micro_ray.runtime.plan import Start, Stop, plan

RUNNING, STARTING, PENDING = State.RUNNING, State.STARTING, State.PENDING
STOPPING, ENDED = State.STOPPING, State.ERROR


def wants(replicas: int, generation: int = 1) -> Workload:
    return Workload(name="w", command=("x",), replicas=replicas, generation=generation)


def some(count: int, generation: int, state: State = RUNNING) -> list[Replica]:
    """Copies with names like ``2running0``; a higher number started later."""
    return [
        Replica(
            id=f"{generation}{state}{number}",
            namespace="micro",
            workload="w",
            generation=generation,
            state=state,
            started=100.0 * generation + number if state is RUNNING else 0.0,
        )
        for number in range(count)
    ]


def shape(steps: list[Start | Stop]) -> tuple[Counter[int], set[str]]:
    """Starts by generation, and the ids to be stopped."""
    starts = Counter(step.generation for step in steps if isinstance(step, Start))
    stops = [step.replica for step in steps if isinstance(step, Stop)]
    assert len(stops) == len(set(stops)), "one replica is stopped twice"
    return starts, set(stops)


#: (name, desired, what is there, starts by generation, stops)
ROWS = [
    ("nothing there: all at once", wants(3), [], {1: 3}, set()),
    ("some missing", wants(3), some(1, 1), {1: 2}, set()),
    ("those that come count", wants(3), some(1, 1) + some(1, 1, STARTING), {1: 1}, set()),
    ("those that wait count", wants(2), some(2, 1, PENDING), {}, set()),
    ("as desired", wants(2), some(2, 1), {}, set()),
    ("those that are being stopped do not count", wants(1), some(1, 1, STOPPING), {1: 1}, set()),
    ("those that have ended do not count", wants(1), some(3, 1, ENDED), {1: 1}, set()),
    ("not desired", None, some(1, 1) + some(1, 2, STARTING), {}, {"1running0", "2starting0"}),
    ("not desired, being stopped already", None, some(2, 1, STOPPING), {}, set()),
    ("scaled to nothing", wants(0), some(2, 1), {}, {"1running0", "1running1"}),
    ("scaled down: the youngest go", wants(1), some(3, 1), {}, {"1running1", "1running2"}),
    (
        "scaled down: first those that do not run yet",
        wants(2),
        some(2, 1) + some(1, 1, STARTING),
        {},
        {"1starting0"},
    ),
    ("a roll begins with one more", wants(3, 2), some(3, 1), {2: 1}, set()),
    ("a roll waits for the one that comes", wants(3, 2), some(3, 1) + some(1, 2, STARTING), {},
     set()),
    (
        "a running new one lets the oldest go, and the next begins",
        wants(3, 2),
        some(3, 1) + some(1, 2),
        {2: 1},
        {"1running0"},
    ),
    ("the last old one goes", wants(2, 2), some(1, 1) + some(2, 2), {}, {"1running0"}),
    (
        "an old one that died is no reason to hurry",
        wants(3, 2),
        some(2, 1) + some(1, 2, STARTING),
        {2: 1},
        set(),
    ),
    ("no old one runs: all new at once", wants(3, 2), some(2, 1, STOPPING), {2: 3}, set()),
    (
        "old ones that do not run yet are of no use",
        wants(2, 2),
        some(2, 1, STARTING),
        {2: 2},
        {"1starting0", "1starting1"},
    ),
    (
        "rolled and scaled down: only as many old ones as are desired",
        wants(2, 2),
        some(5, 1),
        {2: 1},
        {"1running0", "1running1", "1running2"},
    ),
    (
        "rolled and scaled up: the old one serves until all are there",
        wants(4, 2),
        some(1, 1) + some(1, 2),
        {2: 3},
        set(),
    ),
    ("rolled twice: both old generations serve", wants(2, 3), some(1, 1) + some(1, 2), {3: 1},
     set()),
    ("a roll scaled to nothing", wants(0, 2), some(1, 1) + some(1, 2, STARTING), {},
     {"1running0", "2starting0"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("desired", "there", "starts", "stops"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_rows(
    desired: Workload | None, there: list[Replica], starts: dict[int, int], stops: set[str]
) -> None:
    assert shape(plan(desired, there)) == (Counter(starts), stops)


#: The same, when generation 2 has not come up and 1 is the one to have.
BACK = [
    ("the old ones stay", some(3, 1), {}, set()),
    ("what comes of the failed one goes", some(3, 1) + some(1, 2, STARTING), {}, {"2starting0"}),
    ("an old one that died is made anew", some(2, 1), {1: 1}, set()),
    ("all old ones that died are", [], {1: 3}, set()),
    (
        "copies of the failed one serve until the old ones are back",
        some(2, 1) + some(1, 2),
        {1: 1},
        set(),
    ),
    ("then they go", some(3, 1) + some(1, 2), {}, {"2running0"}),
    ("one old one comes at a time while they serve", some(3, 2), {1: 1}, set()),
]


@pytest.mark.parametrize(
    ("there", "starts", "stops"), [row[1:] for row in BACK], ids=[row[0] for row in BACK]
)
def test_going_back(there: list[Replica], starts: dict[int, int], stops: set[str]) -> None:
    steps = plan(wants(3, 2), there, generation=1)
    assert shape(steps) == (Counter(starts), stops)


@pytest.mark.parametrize(
    ("desired", "there", "starts", "stops"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_backing_off_starts_nothing_and_stops_the_same(
    desired: Workload | None, there: list[Replica], starts: dict[int, int], stops: set[str]
) -> None:
    assert shape(plan(desired, there, may_start=False)) == (Counter(), stops)


def test_every_stop_says_why() -> None:
    whys = {
        step.why
        for _, desired, there, _, _ in ROWS
        for step in plan(desired, there)
        if isinstance(step, Stop)
    }
    assert whys == {"not desired", "scaled down", "replaced", "superseded before it ran"}


def test_planning_changes_nothing() -> None:
    there = some(3, 1) + some(2, 2)
    before = list(there)
    assert plan(wants(2, 2), there) == plan(wants(2, 2), there)
    assert there == before
