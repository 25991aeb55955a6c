"""Choosing among routes, without state: power of two choices by calls in flight, by weight.

Two routes are drawn with a probability proportional to their weight; the one with fewer calls in
flight per weight wins (Mitzenmacher, "The power of two choices in randomized load balancing",
IEEE TPDS 2001).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

from micro_ray.router import Route

__all__ = ["choose", "weigh"]

Random = Callable[[], float]


def weigh(routes: Sequence[Route]) -> list[int]:
    """Cumulative weights; routes of weight 0 are chosen only when all are 0."""
    weights = [route.weight for route in routes]
    return list(accumulate(weights)) if any(weights) else list(accumulate(1 for _ in routes))


def choose(
    routes: Sequence[Route],
    in_flight: Callable[[Route], float],
    random: Random,
    cumulative: Sequence[int] | None = None,
) -> Route:
    """One of ``routes`` (at least one). ``random`` gives numbers in [0, 1)."""
    count = len(routes)
    if count == 1:
        return routes[0]
    if cumulative is None:
        cumulative = weigh(routes)
    first = _draw(cumulative, random)
    second = _draw(cumulative, random)
    if first == second:
        return routes[first]
    a, b = routes[first], routes[second]
    left = in_flight(a) * (b.weight or 1)
    right = in_flight(b) * (a.weight or 1)
    return b if right < left else a


def _draw(cumulative: Sequence[int], random: Random) -> int:
    total = cumulative[-1]
    if total == cumulative[0] * len(cumulative):  # all alike, the common case
        return int(random() * len(cumulative))
    point = random() * total
    low, high = 0, len(cumulative) - 1
    while low < high:
        middle = (low + high) // 2
        if cumulative[middle] > point:
            high = middle
        else:
            low = middle + 1
    return low
