"""The caller: finds a service in the table, chooses a node, calls it, tries another where that is
safe."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from micro_ray.errors import BadGateway, MicroError, NotFound, Timeout, Unavailable
from micro_ray.network import Call, Dialer, Peer, Stream
from micro_ray.network.health import Budget, Node
from micro_ray.router import Filter, Route
from micro_ray.router.choose import choose, weigh
from micro_ray.router.table import Table
from micro_ray.settings import Network as NetworkSettings

__all__ = ["Network", "NodeStatus"]

#: Seconds that a call waits for a node when the service is known but has none just now (its only
#: replica is being replaced), if its deadline is not nearer.
WAIT = 2.0
#: Attempts of one call at most, the first included.
ATTEMPTS = 4

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """A node as this caller sees it; ``latency`` in seconds, ``out`` while it is left out."""

    id: str
    service: str
    address: str
    connected: bool
    in_flight: int
    calls: int
    errors: int
    latency: float
    out: bool


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
        self._dialer = dialer
        self._host = host
        self._settings = settings or NetworkSettings()
        self._random = rand
        self._clock = clock
        self._nodes: dict[str, Node] = {}
        self._dials: dict[str, asyncio.Task[Peer]] = {}
        self._chosen: dict[tuple[str, str], tuple[int, Sequence[Route], list[int]]] = {}
        self._budget = Budget(self._settings.retry_budget)
        self._tidy: asyncio.Task[None] | None = None
        self._closed = False

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
        when the call was surely not executed, or when it broke and is ``idempotent``, within the
        retry budget. ``hedge_after`` seconds without an answer an idempotent call is made a second
        time elsewhere and the first answer wins.

        Raises NotFound for an unknown service, Unavailable when no node took the call, BadGateway
        when a node died with it, Timeout, and whatever the service raises.
        """

        async def attempt(peer: Peer, head: Call) -> bytes:
            return await peer.call(head, body)

        head = Call(
            service=service,
            endpoint=endpoint,
            timeout=self._settings.timeout if timeout is None else timeout,
            content=content,
            metadata=metadata or {},
        )
        if hedge_after is not None and idempotent:
            return await self._hedged(attempt, head, namespace, filter, hedge_after)
        return await self._attempts(attempt, head, namespace, filter, idempotent)

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
            timeout=timeout,
            content=content,
            metadata=metadata or {},
        )
        return await self._attempts(attempt, head, namespace, filter, False)

    async def close(self) -> None:
        """Close all connections; calls in flight end with Cancelled."""
        self._closed = True
        tasks: list[asyncio.Task[Any]] = list(self._dials.values())
        if self._tidy is not None:
            tasks.append(self._tidy)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        peers = [node.peer for node in self._nodes.values() if node.peer is not None]
        await asyncio.gather(*(peer.close() for peer in peers), return_exceptions=True)
        self._nodes.clear()

    # -- listings --------------------------------------------------------------------------------

    def nodes(self, namespace: str = "*") -> list[NodeStatus]:
        """Every node of the table, with what this caller knows of it."""
        now = self._clock()
        rows = []
        for route in self.table.routes(namespace):
            node = self._nodes.get(route.id) or Node(route)
            rows.append(
                NodeStatus(
                    id=route.id,
                    service=route.service,
                    address=route.addresses[0] if route.addresses else "",
                    connected=node.peer is not None and not node.peer.closed,
                    in_flight=node.in_flight,
                    calls=node.calls,
                    errors=node.errors,
                    latency=node.latency,
                    out=node.out_until > now,
                )
            )
        return rows

    def routes(self, namespace: str = "*") -> list[Route]:
        return self.table.routes(namespace)

    # -- a call ----------------------------------------------------------------------------------

    async def _attempts(
        self,
        attempt: Callable[[Peer, Call], Awaitable[T]],
        head: Call,
        namespace: str,
        filter: Filter | None,
        idempotent: bool,
    ) -> T:
        begun = self._clock()
        self._budget.earn()
        tried: list[str] = []
        last: MicroError | None = None
        while True:
            node = self._pick(namespace, head.service, filter, tried)
            if node is None:
                node = await self._wait(namespace, head, filter, tried, begun, last)
            try:
                peer = node.peer
                if peer is None or peer.closed:
                    peer = await self._connect(node, head.timeout)
                sent = self._clock()
                answer = await attempt(peer, _later(head, sent - begun) if tried else head)
                node.good(self._clock() - sent)
                return answer
            except Unavailable as error:
                last = error
                node.bad(self._clock())
                tried.append(node.route.id)
            except BadGateway as error:
                node.bad(self._clock())
                if not idempotent:
                    raise
                last = error
                tried.append(node.route.id)
            except MicroError:
                node.good(self._clock() - begun)
                raise
            if len(tried) >= ATTEMPTS or not self._budget.spend():
                raise last

    async def _hedged(
        self,
        attempt: Callable[[Peer, Call], Awaitable[bytes]],
        head: Call,
        namespace: str,
        filter: Filter | None,
        after: float,
    ) -> bytes:
        tasks = {asyncio.ensure_future(self._attempts(attempt, head, namespace, filter, True))}
        try:
            done, _ = await asyncio.wait(tasks, timeout=after)
            if not done and self._budget.spend():
                again = self._attempts(attempt, _later(head, after), namespace, filter, True)
                tasks.add(asyncio.ensure_future(again))
            while True:
                done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task.exception() is None or not pending:
                        return task.result()
                tasks = set(pending)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _pick(
        self, namespace: str, service: str, filter: Filter | None, tried: Sequence[str]
    ) -> Node | None:
        """A node to call now; None when the table has none that was not tried."""
        routes, cumulative = self._candidates(namespace, service, filter)
        if not routes:
            return None
        now = self._clock()
        nodes = self._nodes
        if len(routes) > 1 or tried:
            usable = [
                route
                for route in routes
                if route.id not in tried
                and ((node := nodes.get(route.id)) is None or node.out_until <= now)
            ]
            if len(usable) != len(routes):
                if not usable:
                    # All are out: better one of them than nobody.
                    usable = [route for route in routes if route.id not in tried]
                    if not usable:
                        return None
                routes, cumulative = usable, weigh(usable)
        route = choose(routes, self._load, self._random, cumulative)
        node = nodes.get(route.id)
        if node is None:
            node = nodes[route.id] = Node(route)
        elif node.route is not route:
            node.route = route
        return node

    def _load(self, route: Route) -> float:
        node = self._nodes.get(route.id)
        return node.in_flight if node is not None else 0

    def _candidates(
        self, namespace: str, service: str, filter: Filter | None
    ) -> tuple[Sequence[Route], list[int]]:
        table = self.table
        if filter is not None:
            routes = self._reachable(table.lookup(namespace, service, filter))
            return routes, weigh(routes) if routes else []
        key = (namespace, service)
        cached = self._chosen.get(key)
        if cached is not None and cached[0] == table.version:
            return cached[1], cached[2]
        routes = self._reachable(table.lookup(namespace, service))
        cumulative = weigh(routes) if routes else []
        if len(self._chosen) > 10_000:
            self._chosen.clear()
        self._chosen[key] = (table.version, routes, cumulative)
        return routes, cumulative

    def _reachable(self, routes: Sequence[Route]) -> Sequence[Route]:
        """Those of the nearest metric that have an address this machine can use."""
        usable = [route for route in routes if self._address(route)]
        if not usable:
            return usable
        nearest = min(route.metric for route in usable)
        return [route for route in usable if route.metric == nearest]

    def _address(self, route: Route) -> str:
        here = not self._host or not route.host or route.host == self._host
        for address in route.addresses:
            if here or not address.startswith("unix:"):
                return address
        return ""

    async def _wait(
        self,
        namespace: str,
        head: Call,
        filter: Filter | None,
        tried: list[str],
        begun: float,
        last: MicroError | None,
    ) -> Node:
        """A node that appears soon. Raises NotFound, Unavailable or Timeout."""
        table, service = self.table, head.service
        if not table.known(namespace, service) and not table.lookup(namespace, service):
            if not table.version:
                raise Unavailable("network", "no route table yet: no router has answered", 0.5)
            near = table.near(namespace, service)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise NotFound("network", f"no service {service!r}{hint}")
        limit = begun + min(WAIT, head.timeout or WAIT)
        while (left := limit - self._clock()) > 0:
            try:
                async with asyncio.timeout(left):
                    await table.changed()
            except TimeoutError:
                break
            node = self._pick(namespace, service, filter, tried)
            if node is not None:
                return node
        if last is not None:
            raise Unavailable("network", f"no node of {service} took the call: {last.detail}", 1.0)
        wanted = "" if filter is None else " that the filter accepts"
        raise Unavailable("network", f"{service} has no node{wanted} just now", 1.0)

    # -- connections -----------------------------------------------------------------------------

    async def _connect(self, node: Node, timeout: float | None) -> Peer:
        """The node's connection, made now if need be; one attempt serves all who wait for it."""
        if self._closed:
            raise Unavailable("network", "this caller has been closed")
        if self._tidy is None:
            self._tidy = asyncio.create_task(self._close_gone())
        key = node.route.id
        dial = self._dials.get(key)
        if dial is None:
            dial = asyncio.create_task(self._dial(node))
            self._dials[key] = dial
            dial.add_done_callback(lambda _: self._dials.pop(key, None))
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(dial)
        except TimeoutError:
            raise Timeout("network", f"no connection to {key} before the deadline") from None

    async def _dial(self, node: Node) -> Peer:
        try:
            node.peer = await self._dialer.dial(
                self._address(node.route), timeout=self._settings.dial_timeout
            )
        except MicroError:
            node.eject(self._clock())
            raise
        node.out_until = 0.0
        return node.peer

    async def _close_gone(self) -> None:
        """Close idle connections to nodes that are no longer in the table."""
        while True:
            await self.table.changed()
            await asyncio.sleep(0.2)
            alive = {route.id for route in self.table.routes()}
            for key, node in list(self._nodes.items()):
                if key in alive or node.in_flight:
                    continue
                del self._nodes[key]
                if node.peer is not None:
                    await node.peer.close()


def _later(head: Call, passed: float) -> Call:
    """The same call with what is left of its time."""
    if head.timeout is None:
        return head
    left = head.timeout - passed
    if left <= 0:
        raise Timeout("network", f"{head.service}.{head.endpoint}: the deadline passed")
    return Call(
        service=head.service,
        endpoint=head.endpoint,
        timeout=left,
        content=head.content,
        metadata=head.metadata,
    )
