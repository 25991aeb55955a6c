"""The caller: finds a service in the table, chooses a node, calls it, tries another where that is
safe."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from micro_ray.errors import BadGateway, BadRequest, Cancelled, MicroError, NotFound, Unavailable
from micro_ray.network import Broken, Call, Dialer, Peer, Refused, Silent, Stream
from micro_ray.network.health import Budget, Node, NodeStatus
from micro_ray.network.pool import Late, Pool, Unreachable
from micro_ray.router import Filter, Route
from micro_ray.router.choose import choose, weigh
from micro_ray.router.table import Table
from micro_ray.settings import Network as NetworkSettings

__all__ = ["Network", "NodeStatus"]

#: Seconds that a call waits for a node when the service is known but has none just now (its only
#: replica is being replaced), or when all have failed, if its deadline is not nearer.
WAIT = 2.0
#: Nodes that one call is tried on at most, the first included.
ATTEMPTS = 4
#: Seconds before nodes that failed a call are tried with it again, twice as long each time.
AGAIN = 0.05
#: A longer timeout in seconds is none.
MAX_TIMEOUT = 30 * 24 * 3600.0
#: Services whose nodes are remembered between changes of the table.
REMEMBERED = 10_000
#: What nodes speak that can be called from here.
PROTOCOL = "frames"

T = TypeVar("T")


class _Group:
    """Nodes among which one is chosen."""

    __slots__ = ("cumulative", "nodes")

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.cumulative = weigh([node.route for node in nodes])

    def choose(self, rand: Callable[[], float]) -> Node:
        return self.nodes[choose(self.cumulative, self._load, rand)]

    def _load(self, index: int) -> int:
        return self.nodes[index].in_flight


@dataclass(slots=True)
class _Trip:
    """One call on its way, over all its attempts."""

    head: Call
    namespace: str
    filter: Filter | None
    idempotent: bool
    begun: float
    #: Nodes that failed it, and how often all had and were tried again.
    tried: list[Node] = field(default_factory=list)
    rounds: int = 0
    last: MicroError | None = None
    #: Until when it waits for a node, once it does.
    limit: float = 0.0
    #: Where it is now.
    node: Node | None = None

    def left(self, now: float) -> float | None:
        """Seconds until the deadline. Raises Late when there are none."""
        timeout = self.head.timeout
        if timeout is None:
            return None
        left = timeout - (now - self.begun)
        if left <= 0:
            why = "" if self.last is None else f"; before, {self.last.detail}"
            head = self.head
            raise Late("network", f"{head.service} {head.endpoint}: the deadline passed{why}")
        return left


class Network:
    """Calls services by name. One per process; connections are made when first needed and closed
    by :meth:`close`. ``host`` is this machine: Unix sockets of other machines are not tried."""

    def __init__(
        self,
        table: Table,
        dialer: Dialer,
        *,
        host: str = "",
        settings: NetworkSettings | None = None,
        rand: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.table = table
        self._settings = settings or NetworkSettings()
        self._random = rand
        self._clock = clock
        self._budget = Budget(self._settings.retry_budget)
        self._pool = Pool(
            table,
            dialer,
            host=host,
            dial_timeout=self._settings.dial_timeout,
            budget=self._budget,
            clock=clock,
        )
        self._chosen: dict[tuple[str, str], tuple[int, list[_Group]]] = {}

    async def call(
        self,
        service: str,
        endpoint: str,
        body: bytes,
        *,
        namespace: str = "micro",
        timeout: float | None = None,
        content: str = "application/json",
        metadata: Mapping[str, str] | None = None,
        filter: Filter | None = None,
        idempotent: bool = False,
        hedge_after: float | None = None,
    ) -> bytes:
        """One message to a service, one back.

        ``timeout`` (seconds, default of the settings) covers all attempts. Another node is tried
        when the call was surely not executed, and an ``idempotent`` one also when it broke or the
        service answered that it is unavailable, within the retry budget. ``hedge_after`` seconds
        without an answer an idempotent call is made a second time on another node, and the first
        answer wins.

        Raises NotFound for an unknown service, version or node, Unavailable when no node took the
        call, BadGateway when a node died with it, Timeout, Cancelled when this caller is closed,
        and whatever the service raises.
        """

        async def attempt(peer: Peer, head: Call) -> bytes:
            return await peer.call(head, body)

        head = Call(
            service=service,
            endpoint=endpoint,
            timeout=_seconds(self._settings.timeout if timeout is None else timeout),
            content=content,
            metadata=metadata or {},
        )
        trip = _Trip(head, namespace, filter, idempotent, self._clock())
        self._budget.earn()
        if hedge_after is not None and idempotent:
            return await self._hedged(trip, attempt, hedge_after)
        return await self._travel(trip, attempt)

    async def open(
        self,
        service: str,
        endpoint: str,
        *,
        namespace: str = "micro",
        timeout: float | None = None,
        content: str = "application/json",
        metadata: Mapping[str, str] | None = None,
        filter: Filter | None = None,
    ) -> Stream:
        """A streaming call of any kind; without a deadline unless one is given. Raises as
        :meth:`call`; once open, errors come from the stream."""

        async def attempt(peer: Peer, head: Call) -> Stream:
            return await peer.open(head)

        head = Call(
            service=service,
            endpoint=endpoint,
            timeout=_seconds(timeout),
            content=content,
            metadata=metadata or {},
        )
        self._budget.earn()
        trip = _Trip(head, namespace, filter, False, self._clock())
        return await self._travel(trip, attempt, opens=True)

    async def close(self) -> None:
        """Close all connections; calls in flight end with Cancelled. Idempotent."""
        await self._pool.close()

    # -- listings --------------------------------------------------------------------------------

    def nodes(self, namespace: str = "*") -> list[NodeStatus]:
        """Every node of the table, with what this caller knows of it."""
        return self._pool.statuses(namespace)

    def routes(self, namespace: str = "*", service: str = "") -> list[Route]:
        """Every route of the table, or those of one service, sorted by service and id."""
        return self.table.routes(namespace, service)

    def services(self, namespace: str = "micro") -> list[str]:
        """The names of the services that can be called."""
        return self.table.services(namespace)

    def graph(self, namespace: str = "micro") -> dict[str, Any]:
        """Services with their nodes."""
        tree: dict[str, list[dict[str, Any]]] = {}
        for route in self.routes(namespace):
            node = {"id": route.id, "version": route.version, "host": route.host}
            tree.setdefault(route.service, []).append(node)
        return {"namespace": namespace, "services": tree}

    def status(self) -> dict[str, Any]:
        """How old and how large the table of this caller is."""
        table = self.table
        return {
            "epoch": table.epoch,
            "revision": table.revision,
            "stale": table.stale,
            "routes": table.size,
        }

    # -- a call ----------------------------------------------------------------------------------

    async def _travel(
        self,
        trip: _Trip,
        attempt: Callable[[Peer, Call], Awaitable[T]],
        opens: bool = False,
    ) -> T:
        if self._pool.closed:
            raise Unavailable("network", "this caller has been closed")
        while True:
            at_once = not trip.tried
            node = self._pick(trip)
            if node is None:
                node, at_once = await self._wait(trip), False
            trip.node, peer = node, node.peer
            sent, head = trip.begun, trip.head
            try:
                if peer is None or peer.closed:
                    peer = await self._pool.connect(node, trip.left(self._clock()))
                    at_once = False
                if not at_once:
                    sent = self._clock()
                    head = replace(head, timeout=trip.left(sent))
                answer = await attempt(peer, head)
            except Late:
                raise
            except MicroError as error:
                self._failed(trip, node, peer, sent, error)
            else:
                if opens:
                    node.calls += 1  # not an answer yet
                else:
                    node.good(self._clock() - sent)
                return answer

    def _failed(
        self, trip: _Trip, node: Node, peer: Peer | None, sent: float, error: MicroError
    ) -> None:
        """Learn from a failure; raise it unless the call may be tried again."""
        now = self._clock()
        safe = isinstance(error, Refused) or (
            trip.idempotent and isinstance(error, Unavailable | BadGateway)
        )
        retry: bool | None = None  # to be asked of the budget
        if isinstance(error, Unreachable):
            retry = error.retry
        elif isinstance(error, Refused | Broken) and peer is not None and peer.closed:
            if node.broke(peer, now, self._budget):
                self._pool.eject(node)
            retry = node.retry
        elif isinstance(error, Refused | Broken | Silent):
            if node.bad(now):
                self._pool.eject(node)
        else:
            node.good(now - sent)
        trip.last = error
        trip.tried.append(node)
        if not safe or self._pool.closed or len(trip.tried) >= ATTEMPTS:
            raise error
        if not (self._budget.spend() if retry is None else retry):
            raise error

    async def _hedged(
        self, trip: _Trip, attempt: Callable[[Peer, Call], Awaitable[bytes]], after: float
    ) -> bytes:
        pending = {asyncio.ensure_future(self._travel(trip, attempt))}
        tasks = set(pending)
        try:
            done, _ = await asyncio.wait(pending, timeout=after)
            second = _Trip(trip.head, trip.namespace, trip.filter, True, trip.begun)
            if trip.node is not None:
                second.tried.append(trip.node)
            if not done and self._pick(second) is not None and self._budget.spend():
                pending.add(asyncio.ensure_future(self._travel(second, attempt)))
                tasks |= pending
            while True:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                # An answer first, be it an error of the service's own; a failure when no other
                # attempt is under way.
                ended = sorted(done, key=_rank)
                if _rank(ended[0]) < 2 or not pending:
                    return ended[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- choosing --------------------------------------------------------------------------------

    def _pick(self, trip: _Trip) -> Node | None:
        """A node to call now; None when the table has none that was not tried."""
        groups = self._groups(trip)
        if not groups:
            return None
        if not trip.tried and not self._pool.left_out():
            return groups[0].choose(self._random)
        now, spare = self._clock(), None
        for group in groups:
            fresh = [node for node in group.nodes if node not in trip.tried]
            usable = [node for node in fresh if node.out_until <= now]
            if usable:
                return _Group(usable).choose(self._random)
            spare = spare or fresh
        # All are out: better one of them than nobody.
        return _Group(spare).choose(self._random) if spare else None

    def _groups(self, trip: _Trip) -> list[_Group]:
        """The nodes of a service, those of the nearest metric first."""
        table, name = self.table, (trip.namespace, trip.head.service)
        if trip.filter is not None:
            return self._grouped(table.lookup(*name, trip.filter))
        known = self._chosen.get(name)
        if known is not None and known[0] == table.version:
            return known[1]
        groups = self._grouped(table.lookup(*name))
        if groups:
            if len(self._chosen) >= REMEMBERED:
                self._chosen.clear()
            self._chosen[name] = (table.version, groups)
        return groups

    def _grouped(self, routes: Sequence[Route]) -> list[_Group]:
        usable = [r for r in routes if r.protocol == PROTOCOL and self._pool.addresses(r)]
        weighty = [route for route in usable if route.weight]
        groups: dict[int, list[Node]] = {}
        for route in weighty or usable:
            groups.setdefault(route.metric, []).append(self._pool.node(route))
        return [_Group(groups[metric]) for metric in sorted(groups)]

    async def _wait(self, trip: _Trip) -> Node:
        """A node that appears soon, or one that failed and may have come back. Raises NotFound,
        Unavailable, Cancelled, or the call's last failure."""
        if trip.last is not None and not isinstance(trip.last, Refused | Broken):
            raise trip.last  # every node has answered
        clock = self._clock
        now = clock()
        again = now + AGAIN * 2**trip.rounds if trip.tried else math.inf
        if not trip.limit:
            timeout = trip.head.timeout
            trip.limit = now + WAIT if timeout is None else min(now + WAIT, trip.begun + timeout)
        while True:
            self._check(trip)
            if now >= again:
                trip.tried.clear()
                trip.rounds += 1
                again = math.inf
            node = self._pick(trip)
            if node is not None:
                return node
            if now >= trip.limit:
                raise self._nobody(trip)
            await self._pool.changed(min(trip.limit, again) - now)
            if self._pool.closed:
                raise Cancelled("network", "this caller was closed")
            now = clock()

    def _check(self, trip: _Trip) -> None:
        """Raise NotFound when there is nothing to wait for."""
        table, namespace, service = self.table, trip.namespace, trip.head.service
        routes = table.lookup(namespace, service)
        if not routes and not table.known(namespace, service):
            if not table.version or (table.stale and not table.size):
                return  # no router that knows anything has answered yet
            near = table.near(namespace, service)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise NotFound("network", f"no service {service[:80]!r}{hint}")
        filter = trip.filter
        if filter is None:
            return
        versions = {*table.versions(namespace, service), *(route.version for route in routes)}
        if filter.version not in ("", "*", *versions):
            there = ", ".join(sorted(versions)[:20])
            raise NotFound(
                "network", f"no version {filter.version[:80]!r} of {service}; there is {there}"
            )
        if routes and filter.node not in ("", "*", *(route.id for route in routes)):
            there = ", ".join(route.id for route in routes[:20])
            raise NotFound(
                "network", f"no node {filter.node[:80]!r} of {service}; there is {there}"
            )

    def _nobody(self, trip: _Trip) -> MicroError:
        """Why there is no node for a call."""
        table, namespace, service = self.table, trip.namespace, trip.head.service
        last = trip.last
        if last is not None and not isinstance(last, Refused):
            return last  # it may have been executed
        if last is not None:
            why = f"no node of {service} took the call: {last.detail}"
        elif not table.version or (table.stale and not table.size):
            why = "no route table yet: no router has answered"
        elif routes := table.lookup(namespace, service, trip.filter or Filter()):
            spoken = sorted({route.protocol for route in routes})
            why = (
                f"the nodes of {service} cannot be reached from here"
                if PROTOCOL in spoken
                else f"the nodes of {service} speak {', '.join(spoken)}, not {PROTOCOL}"
            )
        elif trip.filter is not None and table.lookup(namespace, service):
            why = f"{service} has no node that the filter accepts"
        else:
            why = f"{service} has no node just now"
        return Unavailable("network", why, 1.0)


def _rank(task: asyncio.Future[bytes]) -> int:
    """0: an answer, 1: an error that is one, 2: a failure on the way."""
    error = task.exception()
    if error is None:
        return 0
    failed = isinstance(error, Unavailable | BadGateway | Late | Silent)
    return 2 if failed or not isinstance(error, MicroError) else 1


def _seconds(timeout: float | None) -> float | None:
    """A timeout as given. Raises Late when it has passed, BadRequest for what is no time."""
    if timeout is None or timeout > MAX_TIMEOUT:
        return None
    if timeout > 0:
        return timeout
    if math.isnan(timeout):
        raise BadRequest("network", "timeout: not a number")
    raise Late("network", "the deadline had passed before the call was sent")
