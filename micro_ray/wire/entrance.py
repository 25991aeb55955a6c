"""Where connections over TCP shake hands before they are connections of frames."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

from micro_ray.wire.connection import Connection
from micro_ray.wire.identity import Secured, said

__all__ = ["MAX_HANDSHAKES", "Entrance"]

log = logging.getLogger(__name__)

#: Handshakes under way at one entrance. Each has a bounded time too.
MAX_HANDSHAKES = 1024
#: Seconds to wait when the system gives no connection (too many open files).
PAUSE = 0.1


class Entrance:
    """Takes connections from a listening socket and makes those that have shown a certificate what
    ``made`` makes. ``timeout`` is for one handshake, in seconds; over ``most`` at once the newest
    are cut off. Each handshake is with the identity as it is then."""

    def __init__(
        self,
        identity: Secured,
        bound: socket.socket,
        made: Callable[[], Connection[Any]],
        *,
        timeout: float,
        most: int = MAX_HANDSHAKES,
    ) -> None:
        self._identity = identity
        self._made = made
        self._timeout = timeout
        self.most = most
        self.shaking: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._accepting = self._loop.create_task(self._accept(bound))

    def stop(self) -> None:
        """Take no more; those who are shaking hands go on."""
        self._accepting.cancel()

    async def close(self) -> None:
        """Take no more, and end those who are shaking hands."""
        self.stop()
        tasks = [self._accepting, *self.shaking]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, bound: socket.socket) -> None:
        with bound:
            while True:
                try:
                    come, peer = await self._loop.sock_accept(bound)
                except OSError as error:
                    log.warning("no connection is taken: %s", error)
                    await asyncio.sleep(PAUSE)
                    continue
                if len(self.shaking) >= self.most:
                    log.info("connection closed: %d are shaking hands already", self.most)
                    come.close()
                    continue
                task = self._loop.create_task(self._shake(come, peer[0]))
                self.shaking.add(task)
                task.add_done_callback(self.shaking.discard)

    async def _shake(self, come: socket.socket, peer: str) -> None:
        connection = self._made()
        try:
            come.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(
                lambda: connection,
                come,
                ssl=self._identity.server,
                ssl_handshake_timeout=self._timeout,
                ssl_shutdown_timeout=1.0,
            )
        except OSError as error:
            connection.kill()
            log.info("connection from %s refused: %s", peer, said(error))
        except BaseException:
            connection.kill()
            raise
