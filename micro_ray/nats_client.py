"""nats-py, with what it lacks for a connection that must last for months."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription

__all__ = ["GuardedClient", "Taker"]

Taker = Callable[[bytes, bytes, Mapping[str, str] | None], None]


class GuardedClient(Client):
    """A client of which a platform can be sure that:

    - ``tls_only`` is kept: asked for TLS, nats-py goes on in clear with a server that offers none,
      and gives it the password;
    - an answer to a flush that nobody waits for any more does not end its reading, which leaves
      a connection that looks well and is deaf;
    - a server that takes nothing (stopped, or cut off) is left at once: closing in good order would
      wait until it has taken what is under way;
    - a connection whose greeting failed is closed before the next is made;
    - messages are handed over as they are read (:meth:`listen`), and wait nowhere in between.
    """

    tls_only = False

    def __init__(self) -> None:
        super().__init__()
        self._takers: dict[int, Taker] = {}

    async def listen(self, subject: str, queue: str, taker: Taker) -> Subscription:
        """Subscribe; ``taker`` gets subject, body and headers of each message. It must not raise,
        and has no time to lose."""
        self._takers[self._sid + 1] = taker  # the number it is given next, before anything is sent
        return await self.subscribe(subject, queue=queue)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._takers.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        taker = self._takers.get(sid)
        if taker is not None:
            taker(subject, data, await self._process_headers(headers) if headers else None)

    def _connect_command(self) -> bytes:
        if self.tls_only and not self._server_info.get("tls_required"):
            raise nats.errors.Error("the server does not ask for TLS, which tls:// demands")
        command: bytes = super()._connect_command()
        return command

    async def _process_pong(self) -> None:
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pings_outstanding = 0
            return
        await super()._process_pong()

    async def _attempt_reconnect(self) -> None:
        self.abort()
        await super()._attempt_reconnect()

    async def _connect_to_server(self, s: Any) -> None:
        self.abort()
        await super()._connect_to_server(s)

    def abort(self) -> None:
        """Close the socket now, whatever is unsent."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()
