"""A listener of the gRPC door that a replica runs by itself, on a port that replicas share."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import grpc

from micro_ray.errors import Unavailable
from micro_ray.settings import Proxy as ProxySettings

__all__ = ["GrpcListener"]

#: Milliseconds of silence after which a client is probed, and that it has to answer: one whose
#: machine has vanished is let go, with what it had under way.
PROBE_AFTER, PROBE_ANSWER = 60_000, 20_000
#: Least milliseconds between the probes of a client that has nothing under way.
PROBED = 10_000
#: Milliseconds that a connection takes new calls (give or take a tenth): clients that keep theirs
#: for ever would leave the replicas that came later with nothing to do. What is under way goes on.
MAX_AGE = 30 * 60_000
#: Calls of every kind that may be open, in ``max_in_flight``: also those whose message has not come
#: and those that ask the door itself.
ALL = 2


class GrpcListener:
    """``port`` 0 takes a free one; ``bound`` is the port in use. ``leaving`` is set when no more
    calls are taken: handlers that would go on for ever end then."""

    def __init__(
        self,
        handlers: Sequence[grpc.GenericRpcHandler],
        settings: ProxySettings,
        leaving: asyncio.Event,
    ) -> None:
        self._settings = settings
        self._leaving = leaving
        self._server = grpc.aio.server(
            handlers=tuple(handlers),
            maximum_concurrent_rpcs=ALL * settings.max_in_flight,
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", settings.max_message),
                ("grpc.max_send_message_length", settings.max_message),
                ("grpc.max_metadata_size", settings.max_metadata),
                ("grpc.absolute_max_metadata_size", settings.max_metadata),
                ("grpc.max_concurrent_streams", settings.max_streams),
                ("grpc.max_connection_age_ms", MAX_AGE),
                ("grpc.keepalive_time_ms", PROBE_AFTER),
                ("grpc.keepalive_timeout_ms", PROBE_ANSWER),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", PROBED),
            ],
        )
        self._started = False
        self.bound = settings.port

    @property
    def serving(self) -> bool:
        """Whether calls are taken."""
        return self._started and not self._leaving.is_set()

    async def start(self) -> None:
        """Listen. Raises Unavailable when the port cannot be bound."""
        # By name it would be both of IPv4's and IPv6's, and one that is taken not be missed.
        host = {"localhost": "127.0.0.1"}.get(self._settings.host, self._settings.host)
        port = self._settings.port
        try:
            self.bound = self._server.add_insecure_port(
                f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            )
        except RuntimeError as error:
            raise Unavailable("proxy", f"cannot listen on {host}:{port}: {error}") from None
        await self._server.start()
        self._started = True

    async def stop(self, drain: float = 25.0) -> None:
        """Take no new call, finish what is under way within ``drain`` seconds, close."""
        self._leaving.set()
        await self._server.stop(drain)
