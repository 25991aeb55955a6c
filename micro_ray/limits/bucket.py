"""A bucket of tokens: so many a second come in, so many are held at most."""

from __future__ import annotations

__all__ = ["Bucket"]

#: What the sums of floating point may be off by.
_EPSILON = 1e-9


class Bucket:
    """Times are given, in seconds of one clock that never goes back. In any span of ``t`` seconds
    at most ``rate * t + depth`` tokens are taken and not given back."""

    __slots__ = ("_at", "_level", "depth", "rate")

    def __init__(self, rate: float, depth: float, now: float, level: float | None = None) -> None:
        self.rate = rate
        self.depth = depth
        self._level = depth if level is None else min(level, depth)
        self._at = now

    def level(self, now: float) -> float:
        """Tokens that are there, with what there is of the next."""
        if now > self._at:
            self._level = min(self.depth, self._level + (now - self._at) * self.rate)
            self._at = now
        return self._level

    def take(self, most: int, now: float) -> int:
        """Take up to ``most`` whole tokens; how many it were."""
        taken = min(most, int(self.level(now) + _EPSILON))
        if taken > 0:
            self._level -= taken
            return taken
        return 0

    def give(self, count: int, now: float) -> None:
        """Take back tokens that were not used; what does not fit is gone."""
        self._level = min(self.depth, self.level(now) + count)

    def wait(self, now: float) -> float:
        """Seconds until there is a whole token; 0 when there is one."""
        return max(0.0, (1.0 - self.level(now)) / self.rate)

    def change(self, rate: float, depth: float, now: float) -> None:
        """Another rate from now on; what is held stays, as far as it fits."""
        self._level = min(self.level(now), depth)
        self.rate, self.depth = rate, depth
