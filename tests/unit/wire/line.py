"""Servers and callers that a test need not close, and what they may leave behind."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from micro_ray.network import Call, Peer
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.protocol import Limits
from micro_ray.wire.server import Handler, Server


def call(**changes: Any) -> Call:
    """The head of a call."""
    given: dict[str, Any] = {"service": "echo", "endpoint": "Echo.Call", **changes}
    return Call(**given)


def sockets() -> set[str]:
    """The sockets of this process."""
    found = set()
    for handle in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{handle}")
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


class Line:
    """Makes servers and callers that the test need not close. ``kind`` is how they are connected:
    unix, tcp or tcp6."""

    def __init__(self, folder: Path, stack: AsyncExitStack, kind: str = "unix") -> None:
        self.folder = folder
        self._stack = stack
        self._kind = kind
        self._made = 0

    async def server(
        self, handler: Handler, limits: Limits | None = None, **options: Any
    ) -> tuple[Server, str]:
        """A server and its address."""
        self._made += 1
        where = {
            "unix": f"unix:{self.folder}/{self._made}.sock",
            "tcp": "tcp:127.0.0.1:0",
            "tcp6": "tcp:[::1]:0",
        }[self._kind]
        server = Server(handler, limits=limits, name="test", **options)
        await self._stack.enter_async_context(server)
        return server, await server.listen(where)

    async def peer(self, address: str, limits: Limits | None = None) -> Peer:
        """A connection to it."""
        peer = await WireDialer(limits=limits).dial(address, timeout=5)
        self._stack.push_async_callback(peer.close)
        return peer

    async def pair(
        self,
        handler: Handler,
        *,
        limits: Limits | None = None,
        caller: Limits | None = None,
        **options: Any,
    ) -> tuple[Server, Peer]:
        server, address = await self.server(handler, limits, **options)
        return server, await self.peer(address, caller)
