"""What a caller remembers of each node, and the budget of retries. Pure: time is passed in."""

from __future__ import annotations

from dataclasses import dataclass

from micro_ray.network import Peer
from micro_ray.router import Route

__all__ = ["Budget", "Node"]

#: Seconds a node is left out after a failure to connect or a run of failed calls: first, at most.
OUT = (1.0, 30.0)
#: Failed calls in a row (the connection broke, the node refused) that open the breaker.
BREAKER = 5
#: Weight of the newest call in the moving average of latency.
SMOOTH = 0.1


@dataclass(slots=True)
class Node:
    """A node as this caller knows it."""

    route: Route
    peer: Peer | None = None
    out_until: float = 0.0
    pause: float = OUT[0]
    in_a_row: int = 0
    calls: int = 0
    errors: int = 0
    latency: float = 0.0

    @property
    def in_flight(self) -> int:
        return self.peer.in_flight if self.peer is not None else 0

    def good(self, seconds: float) -> None:
        """A call was answered (an error of the service's own is an answer)."""
        self.calls += 1
        if self.in_a_row:
            self.in_a_row, self.pause = 0, OUT[0]
        self.latency += (seconds - self.latency) * SMOOTH if self.latency else seconds

    def bad(self, now: float) -> None:
        """A call failed on the way."""
        self.calls += 1
        self.errors += 1
        self.in_a_row += 1
        if self.in_a_row >= BREAKER:
            self.eject(now)

    def eject(self, now: float) -> None:
        """Leave the node out for a while, twice as long each time."""
        self.out_until = now + self.pause
        self.pause = min(self.pause * 2, OUT[1])


class Budget:
    """How many retries are allowed: ``ratio`` of the calls, and a reserve to begin with. Without
    one, retries multiply the load on what is failing already."""

    __slots__ = ("_ratio", "_tokens")

    RESERVE = 10.0
    MOST = 100.0

    def __init__(self, ratio: float) -> None:
        self._ratio = ratio
        self._tokens = self.RESERVE

    def earn(self) -> None:
        if self._tokens < self.MOST:
            self._tokens += self._ratio

    def spend(self) -> bool:
        """Take one retry; False when there is none left."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
