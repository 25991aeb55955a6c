"""A listener that a door's replica runs by itself: uvicorn on a shared port.

Replicas on a node share the port by ``SO_REUSEPORT``: the kernel gives each new connection to one
of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from micro_ray.errors import Conflict, Unavailable
from micro_ray.serve.protocols import HttpProtocol, State, protocols
from micro_ray.settings import Api as ApiSettings

__all__ = ["Listener", "drain_of"]

BACKLOG = 2048
#: Seconds of silence after which a connection is probed, between probes, and probes that may fail:
#: a client whose machine has vanished is let go after about a minute and a half.
PROBE_AFTER, PROBE_EVERY, PROBES = 60, 10, 3
#: Seconds that what is cut off at the end of a drain has to end by itself, and then once more.
LAST = 1.0
#: Seconds of a replica's graceful stop that are Serve's own, and for what is cut off.
SERVE = 3.0
#: Seconds in which a loop makes the protocol of a connection that it has accepted.
TURN = 0.01


def drain_of(timeout: float) -> tuple[float, float]:
    """Of ``runtime.drain_timeout``: the seconds in which a door finishes what is under way, and
    those after which Serve kills it, who must have had time to cut off the rest in good order."""
    return max(0.0, timeout - SERVE), max(timeout, SERVE)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state = self._state = State()
        self.drain = 0.0
        self.leave = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process, not to a listener in it."""
        yield

    async def main_loop(self) -> None:
        await self.leave.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Leave the port without losing a connection, finish what is under way, close."""
        state, loop = self.server_state, asyncio.get_running_loop()
        # What asyncio has accepted and not yet given a protocol is lost when its server closes: let
        # it take no more, and finish those. (uvloop gives them their protocol at once.)
        for listening in sockets or ():
            with contextlib.suppress(RuntimeError):
                loop.remove_reader(listening)
        await asyncio.sleep(TURN)
        # Closing a listening socket resets what the kernel has accepted and we have not; without a
        # pause between the last look and the close, nothing is left there.
        waiting = [found for listening in sockets or () for found in _accepted(listening)]
        for server in self.servers:
            server.close()
        for listening in sockets or ():
            listening.close()
        self._state.leaving = True
        for connection in list(state.connections):
            connection.shutdown()
        for found in waiting:
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(self._protocol, found)
        await asyncio.sleep(TURN)
        if await self._over(self.drain):
            return
        for connection in list(state.connections):
            if isinstance(connection, HttpProtocol):
                connection.give_up()
            else:
                connection.transport.abort()
        if not await self._over(LAST):
            for task in list(state.tasks):
                task.cancel()
            for connection in list(state.connections):
                connection.transport.abort()
            await self._over(LAST)

    async def _over(self, seconds: float) -> bool:
        """Whether everything has ended within some seconds."""
        state = self.server_state
        end = asyncio.get_running_loop().time() + seconds
        while state.connections or state.tasks:
            if asyncio.get_running_loop().time() > end:
                return False
            await asyncio.sleep(0.01)
        return True

    def _protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        made: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


class Listener:
    """Serves an ASGI app. ``port`` 0 takes a free one; ``bound`` is the one in use."""

    def __init__(self, app: Any, host: str, port: int, settings: ApiSettings) -> None:
        self._host = host
        self._port = port
        http, websocket = protocols(settings)
        self._server = _Server(
            uvicorn.Config(
                app,
                loop="none",
                http=http,
                ws=websocket,
                ws_max_size=settings.max_body,
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,
                timeout_keep_alive=90,
                backlog=BACKLOG,
            )
        )
        self._task: asyncio.Task[None] | None = None
        self.bound = port

    async def start(self) -> None:
        """Listen. Raises Conflict when another program has the port, Unavailable when it cannot be
        bound."""
        listening = _listening(self._host, self._port)
        self.bound = listening.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[listening]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise Unavailable("api", "the listener ended at its start")
            await asyncio.sleep(0.005)

    @property
    def serving(self) -> bool:
        """Whether connections are taken."""
        return self._task is not None and not self._task.done()

    async def stop(self, drain: float = 25.0) -> None:
        """Take no new connection, finish what is being served within ``drain`` seconds, close.

        A connection that is idle may bring one last request within a second; its answer says that
        the connection closes. What is still under way at the end is answered with 502, or broken
        off where the answer has begun. Idempotent.
        """
        task, self._task = self._task, None
        if task is None:
            return
        self._server.drain = drain
        self._server.leave.set()
        await task


def _listening(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # Connections inherit these.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise Conflict("api", f"port {port} on {host} is in use by another program") from None
        raise Unavailable("api", f"cannot listen on {host}:{port}: {error}") from None
    listening.setblocking(False)
    return listening


def _accepted(listening: socket.socket) -> Iterator[socket.socket]:
    """The connections that wait at a listening socket."""
    for _ in range(2 * BACKLOG):
        try:
            found, _address = listening.accept()
        except OSError:
            return
        found.setblocking(False)
        yield found
