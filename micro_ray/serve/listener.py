"""A listener that a door's replica runs by itself: uvicorn on a shared port.

Replicas on a node share the port by ``SO_REUSEPORT``. uvicorn bounds neither the size of a header
nor the time it may take to arrive; the protocol here does, so that slow or endless headers cost a
connection and not the door.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from micro_ray.errors import Conflict, Unavailable
from micro_ray.settings import Api as ApiSettings

__all__ = ["Listener"]

BACKLOG = 2048


def _protocol(settings: ApiSettings) -> type[asyncio.Protocol]:
    class BoundedProtocol(HttpToolsProtocol):
        """Counts what arrives before a request's headers are complete."""

        _head = 0
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait_for_head()

        def data_received(self, data: bytes) -> None:
            waiting = self._late is not None
            super().data_received(data)
            if waiting and self._late is not None:
                self._head += len(data)
                if self._head > settings.max_headers:
                    self._refuse(b"431 Request Header Fields Too Large", b"headers too large")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            if self._late is None:
                self._wait_for_head()

        def on_headers_complete(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None
            self._head = 0
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None
            super().connection_lost(exc)

        def _wait_for_head(self) -> None:
            self._late = self.loop.call_later(settings.header_timeout, self._too_late)

        def _too_late(self) -> None:
            self._refuse(b"408 Request Timeout", b"headers did not arrive in time")

        def _refuse(self, status: bytes, detail: bytes) -> None:
            self._late = None
            if self.transport.is_closing():
                return
            code = status[:3]
            body = b'{"id":"api","code":%b,"detail":"%b","status":"%b"}' % (
                code, detail, status[4:],
            )  # fmt: skip
            self.transport.write(
                b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%b" % (status, len(body), body)
            )
            self.transport.close()

    return BoundedProtocol


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process, not to a listener in it."""
        yield


class Listener:
    """Serves an ASGI app. ``port`` 0 takes a free one; ``bound`` is the one in use."""

    def __init__(self, app: Any, host: str, port: int, settings: ApiSettings) -> None:
        self._host = host
        self._port = port
        self._server = _Server(
            uvicorn.Config(
                app,
                loop="none",
                http=_protocol(settings),
                ws="websockets-sansio",
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
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self.bound = port

    async def start(self) -> None:
        """Listen. Raises Conflict when another program has the port, Unavailable when it cannot be
        bound."""
        listening = socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            listening.bind((self._host, self._port))
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRINUSE:
                raise Conflict(
                    "api", f"port {self._port} on {self._host} is in use by another program"
                ) from None
            raise Unavailable(
                "api", f"cannot listen on {self._host}:{self._port}: {error}"
            ) from None
        listening.setblocking(False)
        self._socket = listening
        self.bound = listening.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve(sockets=[listening]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise Unavailable("api", "the listener ended at its start")
            await asyncio.sleep(0.005)

    @property
    def serving(self) -> bool:
        return self._task is not None and not self._task.done() and not self._server.should_exit

    async def stop(self, drain: float = 25.0) -> None:
        """Take no new connection, finish what is being served within ``drain`` seconds, close."""
        task, self._task = self._task, None
        if task is None:
            return
        self._server.config.timeout_graceful_shutdown = int(drain)
        self._server.should_exit = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain + 5):
                await task
        if self._socket is not None:
            self._socket.close()
