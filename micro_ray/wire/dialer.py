"""Makes the connections of the calling side."""

from __future__ import annotations

import asyncio

from micro_ray.context import DEFAULT_NAMESPACE
from micro_ray.network import Credentials, Dialer, Peer, Refused
from micro_ray.wire.address import parse
from micro_ray.wire.client import ClientConnection, WirePeer
from micro_ray.wire.identity import Identified, said, shown, verified
from micro_ray.wire.protocol import Limits

__all__ = ["WireDialer"]


class WireDialer(Dialer):
    """Dials ``unix:`` and ``tcp:`` addresses; the latter by TLS when it has an identity that covers
    them, and then only nodes that prove theirs. ``credentials`` go with every call that has none of
    its own."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        identity: Identified | None = None,
        credentials: Credentials | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._identity = identity
        self._credentials = credentials

    async def dial(
        self, address: str, *, timeout: float = 5.0, service: str = "", namespace: str = ""
    ) -> Peer:
        where = parse(address)
        loop = asyncio.get_running_loop()
        connection = None

        def make() -> ClientConnection:
            nonlocal connection
            connection = ClientConnection(self._limits, address)
            return connection

        try:
            async with asyncio.timeout(timeout):
                if where.path:
                    await loop.create_unix_connection(make, where.path)
                elif self._identity is None or not self._identity.covers(where):
                    await loop.create_connection(make, where.host, where.port)
                else:
                    transport, made = await loop.create_connection(
                        make,
                        where.host,
                        where.port,
                        ssl=await shown(self._identity, address),
                        server_hostname="",
                        ssl_handshake_timeout=max(timeout, 0.001),
                        ssl_shutdown_timeout=1.0,
                    )
                    made.secured(verified(transport, address, service, namespace))
                assert connection is not None
                await connection.ready
        except (OSError, TimeoutError) as error:
            if connection is not None:
                connection.kill()
            why = f"no answer within {timeout:g} s" if type(error) is TimeoutError else said(error)
            raise Refused("wire", f"cannot reach {address}: {why}") from None
        except BaseException:
            if connection is not None:
                connection.kill()
            raise
        return WirePeer(connection, namespace or DEFAULT_NAMESPACE, self._credentials)
