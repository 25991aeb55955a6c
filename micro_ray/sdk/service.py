"""Service: what a service author writes against."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, overload

from micro_ray.broker import Broker
from micro_ray.certs import Credential, Identity
from micro_ray.errors import BadRequest, Unavailable
from micro_ray.network import Credentials
from micro_ray.sdk.client import AsyncClient
from micro_ray.sdk.events import ServiceEvents
from micro_ray.settings import Bootstrap, bootstrap, load, socket_path
from micro_ray.store import Store
from micro_ray.tracebacks import own_traceback
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.endpoints import Endpoints, endpoint_name
from micro_ray.wire.enrolment import Enrolled, covers, enrolled
from micro_ray.wire.host import Host
from micro_ray.wire.identity import Secured
from micro_ray.wire.protocol import limits_of

if TYPE_CHECKING:
    from micro_ray.sdk.config import ServiceConfig
    from micro_ray.wire.trust import Holder

__all__ = ["Service"]

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound=type)
H = TypeVar("H", bound=Callable[[], Awaitable[None]])
Hook = Callable[[], Awaitable[None]]

#: The version that says nothing: a workload's own version wins over the code's, but not this one.
LATEST = "latest"
_METHODS = (staticmethod, classmethod)

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
    ``events`` publishes and handles events: ``@service.events.on("orders")``. A ``limited`` service
    keeps its limits (docs/limits.md) also for callers that do not come through a door.
    """

    def __init__(
        self,
        name: str,
        version: str = "latest",
        *,
        metadata: Mapping[str, str] | None = None,
        description: str = "",
        limited: bool = False,
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
        self.events = ServiceEvents(name, lambda: self.client)
        self._endpoints = Endpoints(name)
        self._limited = limited
        self._on_start: list[Hook] = []
        self._on_stop: list[Hook] = []
        self._life: _Life | None = None
        self._shown: Credential | None = None

    # -- what an author says ---------------------------------------------------------------------

    @overload
    def endpoint(self, function: F) -> F: ...

    @overload
    def endpoint(
        self,
        *,
        name: str = "",
        path: str = "",
        method: str = "",
        idempotent: bool | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Callable[[F], F]: ...

    def endpoint(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str = "",
        path: str = "",
        method: str = "",
        idempotent: bool | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Any:
        """Serve a function; as a decorator, bare or with options.

        ``name`` is ``Handler.Method`` (default: made of the service's and the function's name).
        ``path`` and ``method`` bind a path of the HTTP door, such as ``/users/{id}`` and ``GET``
        (each may be a comma list). ``idempotent`` says whether calling twice does no more than
        calling once: the HTTP door calls another node when one fails such a call (default: by the
        method, GET and HEAD are). Raises BadRequest for what cannot be, and once the service has
        started: callers would not learn of it.
        """
        self._unstarted("endpoints")
        extra = dict(metadata or {})
        if path:
            extra["path"] = _path(self.name, path)
        if method:
            extra["method"] = _methods(self.name, method)
        if idempotent is not None:
            extra["idempotent"] = "true" if idempotent else "false"

        def add(function: F) -> F:
            full = name or endpoint_name(self.name, function.__name__)
            self._endpoints.add(full, function, metadata=extra)
            return function

        return add if function is None else add(function)

    def handler(self, cls: C) -> C:
        """Serve the public methods of a class (made without arguments) as ``Class.Method``; as a
        decorator. Raises BadRequest when it has none."""
        self._unstarted("endpoints")
        handler, found = cls(), False
        for name in sorted(dir(cls)):
            kind = inspect.getattr_static(cls, name)
            if name.startswith("_") or not (inspect.isfunction(kind) or isinstance(kind, _METHODS)):
                continue
            self._endpoints.add(endpoint_name(cls.__name__, name), getattr(handler, name))
            found = True
        if not found:
            raise BadRequest(self.name, f"handler {cls.__name__} has no public method")
        return cls

    def health(self, function: H) -> H:
        """Add an async health check: it raises when something is wrong. As a decorator. A replica
        that is unhealthy when it comes up does not take the place of an older one."""
        self._endpoints.check(_hook("health", function))
        return function

    def on_start(self, function: H) -> H:
        """Run an async function before the service is found by others; several in the order in
        which they are given. When one raises, the service does not start. As a decorator."""
        self._on_start.append(_hook("on_start", function))
        return function

    def on_stop(self, function: H) -> H:
        """Run an async function after the last call; several in the reverse order, all of them,
        also when one raises. They run only where all of ``on_start`` went well. As a decorator."""
        self._on_stop.append(_hook("on_stop", function))
        return function

    @property
    def client(self) -> AsyncClient:
        """Calls other services, from ``on_start`` to ``on_stop``. Raises Unavailable outside."""
        if self._life is None or self._life.client is None:
            raise Unavailable(self.name, "the client is there once the service has started")
        return self._life.client

    @property
    def store(self) -> Store:
        """The store, in a table of this service's own, in the namespace of the call being served.
        Raises as :attr:`client`."""
        from micro_ray.wire.store import RemoteStore

        return RemoteStore(self.client, table=self.name)

    @property
    def broker(self) -> Broker:
        """The broker, in the namespace of the call being served. Raises as :attr:`client`."""
        from micro_ray.wire.broker import RemoteBroker

        return RemoteBroker(self.client)

    @property
    def config(self) -> ServiceConfig:
        """The config of the namespace, with values that follow it. Raises as :attr:`client`."""
        from micro_ray.sdk.config import ServiceConfig

        return ServiceConfig(self.client)

    @property
    def node(self) -> str:
        """What this node is named in the registry; "" while it does not serve."""
        host = self._life.host if self._life is not None else None
        return host.node_id if host is not None else ""

    @property
    def in_flight(self) -> int:
        """Calls that are being served."""
        host = self._life.host if self._life is not None else None
        return host.in_flight if host is not None else 0

    # -- its life --------------------------------------------------------------------------------

    async def start(self, boot: Bootstrap | None = None, instance: str = "") -> None:
        """Serve on the running loop: start hooks, listen, register. ``boot`` says where the
        platform is (default: from the settings), ``instance`` what this node is named. It may be
        started again once it has stopped.

        Raises what the hooks raise, Unavailable when no registry answers within half a minute or
        it is stopped meanwhile, BadRequest when it is started already; nothing runs then.
        """
        if self._life is not None:
            raise BadRequest(self.name, "the service has been started already")
        boot = boot or bootstrap(load())
        life = self._life = _Life()
        name = instance or boot.instance or _node(self.name)
        life.starting = asyncio.ensure_future(self._come_up(life, boot, name))
        try:
            await life.starting
        except BaseException as error:
            await self._close(life)
            if isinstance(error, asyncio.CancelledError) and life.given_up:
                raise Unavailable(self.name, "it was stopped while it started") from None
            raise
        life.starting = None
        assert life.host is not None
        self.logger.info("serving as %s on %s", life.host.node_id, life.host.addresses[0])

    async def _come_up(self, life: _Life, boot: Bootstrap, instance: str) -> None:
        identity = await self._identity(life.stack, boot, instance)
        holder = await self._held(life, boot, identity)
        client = AsyncClient(boot, holder=holder, identity=identity)
        life.client = await life.stack.enter_async_context(client)
        await life.stack.enter_async_context(self._asking(boot, client.itself, identity))
        for hook in self._on_start:
            await hook()
        for hook in self._on_stop:
            life.stack.push_async_callback(hook)
        if self._limited:
            await life.stack.enter_async_context(self._limits(life.client, boot.namespace))
        version = boot.version if boot.version not in ("", LATEST) else self.version
        life.host = await life.stack.enter_async_context(
            Host(
                service=self.name,
                version=version,
                endpoints=self._endpoints,
                namespace=boot.namespace,
                registry_addresses=boot.registry,
                run_dir=boot.run,
                node_id=instance,
                socket_name=socket_path(boot.run, instance).stem,
                host=boot.host,
                address=boot.address,
                ttl=boot.ttl,
                service_metadata=self.metadata,
                limits=limits_of(boot.wire),
                credentials=client.itself,
                identity=identity,
            )
        )
        try:
            await life.host.registered(REGISTER)
        except TimeoutError:
            raise Unavailable(
                self.name,
                f"no registry answers at {', '.join(boot.registry)}; "
                "start the platform with `micro server`",
            ) from None
        await life.stack.enter_async_context(self.events.running())

    async def _identity(
        self, stack: contextlib.AsyncExitStack, boot: Bootstrap, node: str
    ) -> Secured | None:
        """What proves to other machines who this is, where they are called by TLS."""
        if not covers(boot.network.tls, boot.address):
            return None
        who = Identity(namespace=boot.namespace, service=self.name, node=node)
        try:
            own = await stack.enter_async_context(enrolled(boot, who, has=self._shown))
        except TimeoutError:
            raise Unavailable(
                self.name, f"no certs answers at {', '.join(boot.certs)} for an identity"
            ) from None
        self._endpoints.check(own.examine)
        stack.callback(self._keep, own)
        return own.secured

    def _keep(self, own: Enrolled) -> None:
        """A ticket is good once: another life in this process goes on with what this one had."""
        self._shown = own.credential

    @contextlib.asynccontextmanager
    async def _asking(
        self, boot: Bootstrap, credentials: Credentials, identity: Secured | None
    ) -> AsyncIterator[None]:
        """Ask who calls, where the platform asks."""
        if not boot.platform:
            yield
            return
        from micro_ray.wire.trust import Trust

        trust = Trust(
            WireDialer(limits=limits_of(boot.wire), identity=identity, credentials=credentials),
            boot.auths,
            boot.auth,
            platform=boot.platform,
            namespace=boot.namespace,
        )
        async with trust:
            self._endpoints.callers = trust.callers(self.name, boot.namespace)
            try:
                yield
            finally:
                self._endpoints.callers = None

    async def _held(self, life: _Life, boot: Bootstrap, identity: Secured | None) -> Holder | None:
        """The identity of this replica, kept good while it lives; None for who has none."""
        if not boot.identity:
            return None
        from micro_ray.wire.trust import Holder

        holder = Holder(boot.identity)
        own = holder.passes.itself
        dialer = WireDialer(limits=limits_of(boot.wire), identity=identity, credentials=own)
        await life.stack.enter_async_context(holder.renewed(dialer, boot.auths))
        return holder

    @contextlib.asynccontextmanager
    async def _limits(self, client: AsyncClient, namespace: str) -> AsyncIterator[None]:
        """Keep the limits of this service and its routes for callers that come through no door."""
        from micro_ray.limits import Kind
        from micro_ray.limits.gate import Gate
        from micro_ray.wire.gate import Supply

        gate = self._endpoints.gate = Gate(kinds=(Kind.SERVICE, Kind.ROUTE))
        try:
            async with Supply(gate, client, own=namespace):
                yield
        finally:
            self._endpoints.gate = None

    async def stop(self) -> None:
        """Leave the registry, finish the calls in flight, run the stop hooks; a start that is under
        way is given up. Idempotent. Raises what a stop hook raises, once all is closed."""
        life = self._life
        if life is None:
            return
        if life.starting is not None:
            life.given_up = True
            life.starting.cancel()
            await life.gone.wait()
        elif life.closing:
            await life.gone.wait()
        else:
            await self._close(life)

    async def _close(self, life: _Life) -> None:
        life.closing = True
        try:
            await life.stack.aclose()
        finally:
            self._life = None
            life.gone.set()

    def run(self) -> None:
        """Serve in this process until SIGINT or SIGTERM; the end of a standalone ``main.py``.

        Exits with status 1 when it cannot start: with the traceback of the service's own code, or
        with what the platform says."""
        import uvloop

        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        try:
            uvloop.run(self._until_signal())
        except Exception as error:
            sys.stderr.write(own_traceback(error))
            sys.exit(1)

    async def _until_signal(self) -> None:
        loop, ending = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ending.set)
        asked = asyncio.ensure_future(ending.wait())
        starting = asyncio.ensure_future(self.start())
        await asyncio.wait([asked, starting], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await asked
        await self.stop()
        await asyncio.gather(starting, return_exceptions=True)

    def _unstarted(self, what: str) -> None:
        if self._life is not None:
            raise BadRequest(self.name, f"the service has started; define its {what} before")


@dataclass(slots=True)
class _Life:
    """From a start to the end of its stop."""

    starting: asyncio.Future[None] | None = None
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    client: AsyncClient | None = None
    host: Host | None = None
    given_up: bool = False
    closing: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)


def _node(name: str) -> str:
    return f"{name}-{os.urandom(8).hex()}"


def _hook(what: str, function: Any) -> Any:
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"{what}: {getattr(function, '__name__', function)!s} is not async")
    return function


def _path(service: str, path: str) -> str:
    for template in path.split(","):
        if not template.strip().startswith("/"):
            raise BadRequest(service, f"path {template.strip()[:80]!r} does not begin with '/'")
    return path


def _methods(service: str, method: str) -> str:
    from micro_ray.api.paths import METHODS  # late: only who binds paths needs the door's rules

    methods = [one.strip().upper() for one in method.split(",")]
    for one in methods:
        if one not in METHODS:
            raise BadRequest(service, f"method {one[:20]!r} is none of {', '.join(METHODS)}")
    return ",".join(methods)
