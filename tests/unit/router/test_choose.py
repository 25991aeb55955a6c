"""Choosing: by weight, and by calls in flight between two."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from micro_ray.router import Route
from micro_ray.router.choose import choose, weigh

DRAWS = 20_000


def routes(weights: Sequence[int]) -> list[Route]:
    return [Route(id=str(i), namespace="m", service="s", weight=w) for i, w in enumerate(weights)]


def shares(weights: Sequence[int], loads: Sequence[float] | None = None) -> list[float]:
    """How often each is chosen when all are as busy as ``loads`` says (default: idle)."""
    cumulative, dice = weigh(routes(weights)), random.Random(11)
    busy = loads or [0] * len(weights)
    counts = Counter(choose(cumulative, busy.__getitem__, dice.random) for _ in range(DRAWS))
    return [counts[i] / DRAWS for i in range(len(weights))]


@pytest.mark.parametrize(
    "weights",
    [
        [100], [1, 1], [3, 1], [1, 99], [5, 5, 5, 5], [0, 1, 1], [1, 2, 0],
        # The sums are as those of even weights, the weights are not.
        [2, 1, 3], [100, 50, 150], [100, 0, 200], [3, 1, 2, 6],
        [1_000_000, 1], list(range(1, 20)),
    ],
)  # fmt: skip
def test_idle_routes_are_chosen_by_weight(weights: list[int]) -> None:
    total = sum(weights)
    for share, weight in zip(shares(weights), weights, strict=True):
        wanted = weight / total
        assert share == pytest.approx(wanted, abs=4 * (wanted * (1 - wanted) / DRAWS) ** 0.5)
        if not weight:
            assert share == 0


def test_weight_0_is_for_when_all_have_it() -> None:
    assert shares([0, 0, 0, 0]) == pytest.approx([0.25] * 4, abs=0.02)
    assert shares([0, 7, 0], [0, 1000, 0]) == [0, 1, 0]


def test_of_two_the_less_busy_one() -> None:
    assert shares([1, 1], [5, 0]) == [0, 1]
    assert shares([1, 1], [0, 1]) == [1, 0]
    assert shares([0, 1, 1], [0, 9, 0]) == [0, 0, 1]


def test_of_many_the_busiest_is_never_chosen() -> None:
    """It loses against whichever it is drawn with; the idlest wins whenever it is drawn."""
    share = shares([1] * 5, [4, 3, 2, 1, 0])
    assert share[0] == 0
    assert share == sorted(share)
    assert share[4] == pytest.approx(2 / 5, abs=0.02)  # of 10 pairs it is in 4


def test_busy_is_by_weight() -> None:
    assert shares([10, 1], [9, 1]) == [1, 0]  # 0.9 against 1
    assert shares([10, 1], [11, 1]) == [0, 1]
    assert shares([10, 1], [10, 1]) == pytest.approx([10 / 11, 1 / 11], abs=0.02)


def test_a_queue_of_two_choices_stays_short() -> None:
    """1,000 calls that never end on 10 nodes: none has more than a call over the average."""
    load = [0] * 10
    cumulative, dice = weigh(routes([1] * 10)), random.Random(3)
    for _ in range(1_000):
        load[choose(cumulative, load.__getitem__, dice.random)] += 1
    assert max(load) <= 103


@pytest.mark.parametrize("number", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("weights", [[1], [1, 0], [0, 1], [1, 1, 0], [1, 10**6, 0], [3, 3, 3]])
def test_at_the_ends_of_the_dice(number: float, weights: list[int]) -> None:
    cumulative = weigh(routes(weights))
    chosen = choose(cumulative, lambda index: 0, lambda: number)
    assert weights[chosen] > 0


def test_each_pair_is_of_two_different_routes() -> None:
    asked: list[int] = []
    dice = random.Random(5)
    cumulative = weigh(routes([1, 2, 3]))
    for _ in range(1_000):
        asked.clear()

        def load(index: int) -> float:
            asked.append(index)
            return 0

        choose(cumulative, load, dice.random)
        assert len(set(asked)) == 2
