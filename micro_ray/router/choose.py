"""Choosing among routes, without state: power of two choices by calls in flight, by weight.

Two routes are drawn with a probability proportional to their weight; the one with fewer calls in
flight per weight wins (Mitzenmacher, "The power of two choices in randomized load balancing",
IEEE TPDS 2001). They are two different ones: with two nodes a busy one is then never taken while
the other is idle.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

from micro_ray.router import Route

__all__ = ["choose", "weigh"]

Random = Callable[[], float]


def weigh(routes: Sequence[Route]) -> list[int]:
    """Cumulative weights; routes of weight 0 are chosen only when all are 0."""
    weights = [route.weight for route in routes]
    return list(accumulate(weights)) if any(weights) else list(accumulate(1 for _ in routes))


def choose(cumulative: Sequence[int], load: Callable[[int], float], random: Random) -> int:
    """The index of one of some routes (at least one). ``cumulative`` is what :func:`weigh` made of
    them, ``load`` gives the calls in flight of the route at an index, ``random`` numbers in
    [0, 1)."""
    last = len(cumulative) - 1
    if not last:
        return 0
    total = cumulative[-1]
    first = bisect_right(cumulative, random() * total, 0, last)
    before = cumulative[first - 1] if first else 0
    weight = cumulative[first] - before
    rest = total - weight
    if not rest:
        return first  # all others have weight 0
    point = random() * rest
    second = bisect_right(cumulative, point if point < before else point + weight, 0, last)
    other = cumulative[second] - (cumulative[second - 1] if second else 0)
    return second if load(second) * weight < load(first) * other else first
