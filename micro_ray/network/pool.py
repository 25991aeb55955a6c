"""The connections of a caller: one per node, made when first needed, closed when the node has left
the table."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from micro_ray.errors import Cancelled, Timeout, Unavailable
from micro_ray.network import Dialer, Peer, Refused
from micro_ray.network.health import Budget, Node, NodeStatus
from micro_ray.router import Route
from micro_ray.router.table import Table

__all__ = ["Late", "Pool", "Unreachable"]

log = logging.getLogger(__name__)

#: Seconds that the connection to a node which left the table is kept, for calls that were just
#: being sent; and between looks for those that were still busy.
GONE = 0.2
_LOOPBACK = ("tcp:127.", "tcp:localhost:", "tcp:[::1]:")

Key = tuple[str, str]


class Late(Timeout):
    """The deadline passed before the call was sent."""


class Unreachable(Refused):
    """No connection to the node. ``retry``: whether the budget allows to try another; one failed
    attempt costs one retry, however many calls waited for it."""

    retry = True


class Pool:
    """Nodes and their connections. ``host`` is this machine: Unix sockets and loopback addresses of
    other machines are not tried. ``out`` are the nodes that were left out and may still be."""

    def __init__(
        self,
        table: Table,
        dialer: Dialer,
        *,
        host: str,
        dial_timeout: float,
        budget: Budget,
        clock: Callable[[], float],
    ) -> None:
        self.closed = False
        self.out: set[Node] = set()
        self._table = table
        self._dialer = dialer
        self._host = host
        self._dial_timeout = dial_timeout
        self._budget = budget
        self._clock = clock
        self._nodes: dict[Key, Node] = {}
        self._dials: dict[Node, asyncio.Task[Peer]] = {}
        #: Connections that take no more calls but still have some.
        self._leaving: set[Peer] = set()
        self._waiting: set[asyncio.Future[object]] = set()
        self._tidy: asyncio.Task[None] | None = None

    # -- nodes -----------------------------------------------------------------------------------

    def node(self, route: Route) -> Node:
        """What is known of a route's node."""
        key = (route.namespace, route.id)
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = Node(route)
        elif node.route is not route:
            if node.route.addresses != route.addresses:
                self._retire(node)
            node.route = route
        return node

    def addresses(self, route: Route) -> list[str]:
        """Those of a route that this machine can use, in order of preference."""
        if not self._host or not route.host or route.host == self._host:
            return list(route.addresses)
        return [a for a in route.addresses if a.startswith("tcp:") and not a.startswith(_LOOPBACK)]

    def eject(self, node: Node) -> None:
        """Leave a node out for a while."""
        node.eject(self._clock())
        self.out.add(node)

    def left_out(self) -> bool:
        """Whether any node is left out now."""
        if not self.out:
            return False
        now = self._clock()
        self.out = {node for node in self.out if node.out_until > now}
        return bool(self.out)

    def statuses(self, namespace: str) -> list[NodeStatus]:
        """Every node of the table, as this caller knows it."""
        now = self._clock()
        known = self._nodes
        return [
            (known.get((route.namespace, route.id)) or Node(route)).status(
                now, self.addresses(route)
            )
            for route in self._table.routes(namespace)
        ]

    # -- connections -----------------------------------------------------------------------------

    async def connect(self, node: Node, timeout: float | None) -> Peer:
        """The node's connection, made now if need be; one attempt serves all who wait for it.

        Raises Unreachable, Late when ``timeout`` seconds pass before, Cancelled when the pool is
        closed meanwhile.
        """
        if self.closed:
            raise Unavailable("network", "this caller has been closed")
        route = node.route
        if self._nodes.get((route.namespace, route.id)) is not node:
            raise Unreachable("network", f"{route.id} has left")
        dial = self._dials.get(node)
        if dial is None:
            dial = self._dials[node] = asyncio.create_task(self._dial(node))
            dial.add_done_callback(lambda done: self._dialed(node, done))
            if self._tidy is None:
                self._tidy = asyncio.create_task(self._close_gone())
        node.waiting += 1
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(dial)
        except TimeoutError:
            raise Late("network", f"no connection to {route.id} before the deadline") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.closed and dial.cancelled() and task is not None and not task.cancelling():
                raise Cancelled("network", "this caller was closed") from None
            raise
        finally:
            node.waiting -= 1

    async def _dial(self, node: Node) -> Peer:
        route, end = node.route, time.monotonic() + self._dial_timeout
        why: Exception | str = "it has no address that this machine can use"
        for address in self.addresses(route):
            left = end - time.monotonic()
            if left <= 0:
                break
            try:
                peer = await self._dialer.dial(
                    address, timeout=left, service=route.service, namespace=route.namespace
                )
            except Exception as error:  # whatever it is, this address does not lead to the node
                why = error
                continue
            self._retire(node)
            node.peer = peer
            return peer
        self.eject(node)
        log.info("no connection to %s: %s", route.id, why)
        failure = Unreachable("network", f"{route.id} of {route.service} cannot be reached: {why}")
        failure.retry = self._budget.spend()
        raise failure

    def _dialed(self, node: Node, dial: asyncio.Task[Peer]) -> None:
        del self._dials[node]
        if not dial.cancelled():
            dial.exception()  # all who waited may have left

    def _retire(self, node: Node) -> None:
        """Use the node's connection no more; what is under way on it goes on."""
        peer, node.peer = node.peer, None
        if peer is not None and (peer.in_flight or not peer.closed):
            self._leaving.add(peer)

    async def changed(self, timeout: float) -> None:
        """Wait for a change of the table, ``timeout`` seconds at most, or until this is closed."""
        waiter = asyncio.ensure_future(self._table.changed())
        self._waiting.add(waiter)
        try:
            await asyncio.wait({waiter}, timeout=timeout)
        finally:
            self._waiting.discard(waiter)
            waiter.cancel()

    async def _close_gone(self) -> None:
        """Close idle connections to nodes that are no longer in the table, and those that were
        replaced."""
        seen, busy = -1, False
        while True:
            if self._table.version == seen and not busy:
                await self._table.changed()
            await asyncio.sleep(GONE)
            seen = self._table.version
            for key, node in list(self._nodes.items()):
                if not self._table.has(*key) and not node.in_flight and node not in self._dials:
                    del self._nodes[key]
                    self.out.discard(node)
                    self._retire(node)
            idle = [peer for peer in self._leaving if not peer.in_flight]
            self._leaving.difference_update(idle)
            await asyncio.gather(*(peer.close() for peer in idle), return_exceptions=True)
            busy = bool(self._leaving) or any(not self._table.has(*key) for key in self._nodes)

    async def close(self) -> None:
        """Close all connections; calls in flight end with Cancelled. Idempotent."""
        self.closed = True
        tasks: list[asyncio.Future[Any]] = [*self._dials.values()]
        tasks += self._waiting
        if self._tidy is not None:
            tasks.append(self._tidy)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        peers = [node.peer for node in self._nodes.values() if node.peer is not None]
        peers += self._leaving
        self._nodes.clear()
        self._leaving.clear()
        await asyncio.gather(*(peer.close() for peer in peers), return_exceptions=True)
