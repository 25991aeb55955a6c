"""Service: what a service author writes against."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import re
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from micro_ray.errors import BadRequest, Unavailable
from micro_ray.sdk.client import AsyncClient
from micro_ray.settings import Bootstrap, bootstrap, load
from micro_ray.wire.endpoints import Endpoints, endpoint_name
from micro_ray.wire.host import Host

if TYPE_CHECKING:
    from micro_ray.sdk.config import ServiceConfig

__all__ = ["Service"]

F = TypeVar("F", bound=Callable[..., Any])
Hook = Callable[[], Awaitable[None]]

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")

#: Seconds that a start waits for the registry.
REGISTER = 30.0


class Service:
    """A service with its endpoints.

    ::

        service = Service("helloworld")

        @service.endpoint
        async def call(name: str = "World") -> dict[str, str]:
            return {"message": f"Hello {name}"}

    ``name`` is of lower-case letters, digits, dashes and dots. The function ``call`` is served as
    ``Helloworld.Call``; see :mod:`micro_ray.wire.endpoints` for what signatures may be.
    ``client`` calls other services, with the deadline and trace of the call being served.
    """

    def __init__(
        self,
        name: str,
        version: str = "latest",
        *,
        metadata: Mapping[str, str] | None = None,
        description: str = "",
    ) -> None:
        if not _NAME.fullmatch(name) or len(name) > 63:
            raise BadRequest(
                "service",
                f"name {name!r}: lower-case letters, digits, '-' and '.', at most 63 characters",
            )
        self.name = name
        self.version = version
        self.metadata = dict(metadata or {})
        if description:
            self.metadata["description"] = description
        self.logger = logging.getLogger(name)
        self._endpoints = Endpoints(name)
        self._start: list[Hook] = []
        self._stop: list[Hook] = []
        self._client: AsyncClient | None = None
        self._host: Host | None = None
        self._stack = contextlib.AsyncExitStack()

    # -- what an author says ---------------------------------------------------------------------

    def endpoint(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str = "",
        path: str = "",
        method: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> Any:
        """Serve a function; as a decorator, bare or with options.

        ``name`` is ``Handler.Method`` (default: made of the service's and the function's name).
        ``path`` and ``method`` bind a path of the HTTP door, such as ``/users/{id}`` and ``GET``.
        """

        def add(function: F) -> F:
            full = name or endpoint_name(self.name, function.__name__)
            extra = dict(metadata or {})
            extra |= {k: v for k, v in (("path", path), ("method", method.upper())) if v}
            self._endpoints.add(full, function, metadata=extra)
            return function

        return add if function is None else add(function)

    def handler(self, cls: type) -> type:
        """Serve the public methods of a class (made without arguments) as ``Class.Method``; as a
        decorator."""
        handler = cls()
        for name, method in inspect.getmembers(handler, inspect.ismethod):
            if not name.startswith("_"):
                self._endpoints.add(endpoint_name(cls.__name__, name), method)
        return cls

    def health(self, function: F) -> F:
        """Add an async health check: it raises when something is wrong. As a decorator."""
        self._endpoints.check(function)
        return function

    def on_start(self, function: F) -> F:
        """Run an async function before the service is found by others. As a decorator."""
        self._start.append(function)
        return function

    def on_stop(self, function: F) -> F:
        """Run an async function after the last call. As a decorator."""
        self._stop.append(function)
        return function

    @property
    def client(self) -> AsyncClient:
        """Calls other services. Raises Unavailable before the service has started."""
        if self._client is None:
            raise Unavailable(self.name, "the client is there once the service has started")
        return self._client

    @property
    def store(self) -> Any:
        """The store, in this service's own table. Raises as :attr:`client`."""
        from micro_ray.wire.store import RemoteStore

        return RemoteStore(self.client, table=self.name)

    @property
    def config(self) -> ServiceConfig:
        """The config of the namespace, with values that follow it. Raises as :attr:`client`."""
        from micro_ray.sdk.config import ServiceConfig

        return ServiceConfig(self.client)

    # -- its life --------------------------------------------------------------------------------

    async def start(self, boot: Bootstrap | None = None, instance: str = "") -> None:
        """Serve on the running loop: start hooks, listen, register. Raises what the hooks raise,
        Unavailable when no registry answers within half a minute."""
        boot = boot or bootstrap(load())
        if self._host is not None:
            raise BadRequest(self.name, "the service has been started already")
        try:
            self._client = await self._stack.enter_async_context(AsyncClient(boot))
            for hook in self._start:
                await hook()
            for hook in self._stop:
                self._stack.push_async_callback(hook)
            self._host = await self._stack.enter_async_context(
                Host(
                    service=self.name,
                    version=boot.version or self.version,
                    endpoints=self._endpoints,
                    namespace=boot.namespace,
                    registry_addresses=boot.registry,
                    run_dir=boot.run,
                    node_id=instance or boot.instance,
                    host=boot.host,
                    ttl=boot.ttl,
                    service_metadata=self.metadata,
                )
            )
            try:
                await self._host.registered(REGISTER)
            except TimeoutError:
                raise Unavailable(
                    self.name, f"no registry answers at {', '.join(boot.registry)}"
                ) from None
        except BaseException:
            await self.stop()
            raise
        self.logger.info("serving as %s on %s", self._host.node_id, self._host.addresses[0])

    async def stop(self) -> None:
        """Leave the registry, finish the calls in flight, run the stop hooks; idempotent."""
        await self._stack.aclose()
        self._host = self._client = None

    @property
    def in_flight(self) -> int:
        return self._host.in_flight if self._host is not None else 0

    def run(self) -> None:
        """Serve in this process until SIGINT or SIGTERM; the end of a standalone ``main.py``."""
        import uvloop

        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        uvloop.run(self._until_signal())

    async def _until_signal(self) -> None:
        ending = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ending.set)
        await self.start()
        await ending.wait()
        await self.stop()
