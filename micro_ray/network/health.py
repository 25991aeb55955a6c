"""What a caller remembers of each node, and the budget of retries. Pure: time is passed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from micro_ray.network import Peer
from micro_ray.router import Route

__all__ = ["BREAKER", "OUT", "Budget", "Node", "NodeStatus"]

#: Seconds a node is left out after a failure to connect or a run of failed calls: first, at most.
OUT = (1.0, 30.0)
#: Failed calls in a row (refused, broken, without an answer) that open the breaker.
BREAKER = 5
#: Weight of the newest call in the moving average of latency.
SMOOTH = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """A node as this caller sees it. ``address`` is what it tries first. ``calls`` have been
    answered or have failed, ``errors`` of them failed on the way; ``latency`` is a moving average
    in seconds; ``out`` while it is left out."""

    id: str
    service: str
    address: str
    connected: bool
    in_flight: int
    calls: int
    errors: int
    latency: float
    out: bool


@dataclass(slots=True, eq=False)
class Node:
    """A node as this caller knows it."""

    route: Route
    peer: Peer | None = None
    #: Calls that wait for its connection.
    waiting: int = 0
    out_until: float = 0.0
    pause: float = OUT[0]
    in_a_row: int = 0
    calls: int = 0
    errors: int = 0
    latency: float = 0.0
    #: The connection that broke last, and whether what broke with it may be tried elsewhere.
    broken: Peer | None = None
    retry: bool = True

    @property
    def in_flight(self) -> int:
        """Calls under way; one that waits for the connection counts, or a node that does not
        answer would look idle and draw every call."""
        peer = self.peer
        return self.waiting + peer.in_flight if peer is not None else self.waiting

    def good(self, seconds: float) -> None:
        """A call was answered (an error of the service's own is an answer)."""
        self.calls += 1
        self.in_a_row, self.pause = 0, OUT[0]
        self.latency += (seconds - self.latency) * SMOOTH if self.latency else seconds

    def bad(self, now: float) -> bool:
        """A call failed on the way. True when the node should be left out now."""
        self.calls += 1
        self.errors += 1
        self.in_a_row += 1
        return self.in_a_row >= BREAKER and self.out_until <= now

    def broke(self, peer: Peer, now: float, budget: Budget) -> bool:
        """A call failed with its connection. All that failed with the same one count as one
        failure and cost one retry. True when the node should be left out now."""
        if peer is self.broken:
            self.calls += 1
            self.errors += 1
            return False
        self.broken, self.retry = peer, budget.spend()
        return self.bad(now)

    def eject(self, now: float) -> None:
        """Leave the node out for a while, twice as long each time until a call is good again."""
        self.out_until = now + self.pause
        self.pause = min(self.pause * 2, OUT[1])

    def status(self, now: float, addresses: Sequence[str]) -> NodeStatus:
        route = self.route
        return NodeStatus(
            id=route.id,
            service=route.service,
            address=addresses[0] if addresses else "",
            connected=self.peer is not None and not self.peer.closed,
            in_flight=self.in_flight,
            calls=self.calls,
            errors=self.errors,
            latency=self.latency,
            out=self.out_until > now,
        )


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
        """A call was made."""
        if self._tokens < self.MOST:
            self._tokens += self._ratio

    def spend(self) -> bool:
        """Take one retry; False when there is none left."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
