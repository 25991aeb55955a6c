"""The registry's face on frames, the registration that is tied to a stream, and the interface over
a connection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from micro_ray.certs import SCHEME, Identity
from micro_ray.context import current
from micro_ray.errors import (
    BadGateway,
    BadRequest,
    Cancelled,
    Forbidden,
    MicroError,
    TooLarge,
    Unavailable,
)
from micro_ray.network import Dialer, Stream
from micro_ray.registry import DEFAULT_TTL, Change, Instance, Registry, Service, Snapshot
from micro_ray.router.table import home
from micro_ray.settings import PLATFORM
from micro_ray.wire.endpoints import Endpoints, endpoint_name
from micro_ray.wire.remote import Direct, decode, encode

__all__ = ["Attachment", "RemoteRegistry", "endpoints"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between attempts to register: first, and at most.
BACKOFF = (0.02, 1.0)
#: Bytes of a snapshot's instances that go in one message. A registration may have as many.
PAGE = 2**20
#: Seconds that a whole snapshot may take.
SNAPSHOT = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """A message of ``Registry.Attach``: an instance to register, or nothing to renew it."""

    instance: Instance | None = None
    ttl: float = DEFAULT_TTL


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """The answer to each message of ``Registry.Attach``."""

    node: str


class _Face:
    """The verbs as endpoints."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def attach(self, messages: AsyncIterator[Attach]) -> AsyncIterator[Attached]:
        """Register a node for as long as this stream lasts; empty messages renew, another
        instance of the same node replaces what was registered."""
        # The end of an older stream must not remove what a newer one, here or at another member of
        # the pool, has registered.
        mine, holder = None, os.urandom(8).hex()
        ttl = DEFAULT_TTL
        key = ("", "")
        try:
            async for message in messages:
                given = message.instance
                if given is None and mine is None:
                    raise BadRequest("registry", "the first message must have an instance")
                if given is not None:
                    _may_register(given)
                    if mine is not None and key != (given.namespace, given.node.id):
                        raise BadRequest("registry", f"this stream is of the node {key[1]}")
                    mine, ttl = given, message.ttl
                    key = (mine.namespace, mine.node.id)
                    await self._registry.register(given, ttl=ttl, holder=holder)
                elif mine is not None:
                    # Not a mere renewal: the lease may have ended while the node was silent.
                    await self._registry.register(mine, ttl=ttl, holder=holder)
                yield Attached(node=key[1])
        except Unavailable:
            # It is the registry that is away; the node lives, and comes again.
            mine = None
            raise
        finally:
            if mine is not None:
                with contextlib.suppress(Unavailable):
                    await self._registry.deregister(*key, holder=holder)

    async def register(
        self, instance: Instance, ttl: float = DEFAULT_TTL, holder: str = ""
    ) -> None:
        """Register a node for ``ttl`` seconds."""
        _may_register(instance)
        await self._registry.register(instance, ttl=ttl, holder=holder)

    async def renew(self, nodes: list[str], namespace: str = "") -> list[str]:
        """Renew leases; the answer are the nodes that are unknown."""
        space = current().within(namespace)
        for node in nodes:
            _is_own(space, node)
        return await self._registry.renew(space, nodes)

    async def deregister(self, node: str, namespace: str = "", holder: str = "") -> None:
        """Remove a node; with a holder, only when this was the last who registered it."""
        space = current().within(namespace)
        _is_own(space, node)
        await self._registry.deregister(space, node, holder=holder)

    async def get_service(self, service: str, namespace: str = "") -> list[Service]:
        """All versions of a service, with endpoints and nodes."""
        space = home(current().within(namespace), service)
        return await self._registry.get(space, service)

    async def list_services(self, namespace: str = "") -> list[Service]:
        """Every service of the namespace."""
        return await self._registry.list(current().within(namespace))

    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """Everything, with the revision to watch from: one snapshot in pages. For the platform."""
        current().within("*")
        whole = await self._registry.snapshot()
        page: list[Instance] = []
        room = PAGE
        for instance in whole.instances:
            size = len(encode(instance))
            if size > room and page:
                yield replace(whole, instances=tuple(page))
                page, room = [], PAGE
            page.append(instance)
            room -= size
        yield replace(whole, instances=tuple(page))

    async def watch(self, epoch: str, revision: int) -> AsyncIterator[Change]:
        """Changes after a revision. For the platform."""
        current().within("*")
        async for change in self._registry.watch(epoch=epoch, revision=revision):
            yield change


def _may_register(instance: Instance) -> None:
    """Raises Forbidden for a node of another namespace, for one that would pass for a service of
    the platform, and for another than oneself."""
    context = current()
    context.within(instance.namespace)
    if context.whose is not None and instance.service.lower() in PLATFORM:
        raise Forbidden("registry", f"{instance.service} is a service of the platform")
    _is_own(instance.namespace, instance.node.id, instance.service)


def _is_own(namespace: str, node: str, service: str = "") -> None:
    """Who has proved who he is is that node, and no other. Raises Forbidden."""
    peer = current().peer
    if not peer.startswith(SCHEME):
        return
    who = Identity.parse(peer)
    if (who.namespace, who.node) != (namespace, node) or service not in ("", who.service):
        raise Forbidden(
            "registry",
            f"{who.node}, which is {who.service} of {who.namespace}, is not the node {node}"
            + (f" of {service}" if service else "")
            + f" of {namespace}",
        )


def endpoints(registry: Registry) -> Endpoints:
    """Service ``registry``."""
    face, table = _Face(registry), Endpoints("registry")
    for name in (
        "attach", "register", "renew", "deregister", "get_service", "list_services", "snapshot",
        "watch",
    ):  # fmt: skip
        table.add(endpoint_name("registry", name), getattr(face, name))
    return table


class RemoteRegistry(Registry):
    """The interface over frames to the first registry that answers."""

    def __init__(self, dialer: Dialer, addresses: Sequence[str]) -> None:
        self._direct = Direct(dialer, addresses, "registry")
        self._closed = False

    async def _call(self, verb: str, request: Any, kind: type[T]) -> T:
        self._check_open()
        return await self._direct.call(f"Registry.{verb}", request, kind)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("registry", "this way to the registry is closed")

    async def register(
        self, instance: Instance, *, ttl: float = DEFAULT_TTL, holder: str = ""
    ) -> None:
        request = {"instance": instance, "ttl": ttl, "holder": holder}
        await self._call("Register", request, object)

    async def renew(self, namespace: str, node_ids: Sequence[str]) -> list[str]:
        request = {"nodes": [*node_ids], "namespace": namespace}
        return await self._call("Renew", request, list[str])

    async def deregister(self, namespace: str, node_id: str, *, holder: str = "") -> None:
        request = {"node": node_id, "namespace": namespace, "holder": holder}
        await self._call("Deregister", request, object)

    async def get(self, namespace: str, service: str) -> list[Service]:
        request = {"service": service, "namespace": namespace}
        return await self._call("GetService", request, list[Service])

    async def list(self, namespace: str) -> list[Service]:
        return await self._call("ListServices", {"namespace": namespace}, list[Service])

    async def snapshot(self) -> Snapshot:
        self._check_open()
        try:
            async with (
                asyncio.timeout(SNAPSHOT),
                await self._direct.open("Registry.Snapshot") as stream,
            ):
                await stream.send(encode({}))
                await stream.end()
                pages = [decode(page, Snapshot, "registry") async for page in stream]
        except TimeoutError:
            raise Unavailable("registry", f"no snapshot within {SNAPSHOT:g} s") from None
        except Unavailable:
            await self._direct.elsewhere()
            raise
        if not pages:
            raise BadGateway("registry", "an answer without a snapshot")
        return replace(pages[0], instances=tuple(i for page in pages for i in page.instances))

    async def watch(self, *, epoch: str, revision: int) -> AsyncIterator[Change]:
        self._check_open()
        try:
            async with await self._direct.open("Registry.Watch") as stream:
                await stream.send(encode({"epoch": epoch, "revision": revision}))
                await stream.end()
                async for message in stream:
                    yield decode(message, Change, "registry")
        except Cancelled:
            if not self._closed:
                raise

    async def close(self) -> None:
        self._closed = True
        await self._direct.close()


class Attachment:
    """An ``async with`` that keeps a node registered at the first registry that answers, and again
    whenever the stream breaks (the registry restarted, the line was cut). ``ready`` is set while it
    is registered; ``settled`` once the registry has taken or refused it."""

    def __init__(
        self,
        dialer: Dialer,
        addresses: Sequence[str],
        instance: Instance,
        ttl: float = DEFAULT_TTL,
    ) -> None:
        self._direct = Direct(dialer, addresses, "registry")
        self._instance = instance
        self._ttl = ttl
        self._task: asyncio.Task[None] | None = None
        self._former: Stream | None = None
        self.ready = asyncio.Event()
        #: Why the registry refuses this instance (its fault, not the line's), if it does.
        self.refused: MicroError | None = None
        self.settled = asyncio.Event()

    async def __aenter__(self) -> Attachment:
        self._task = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the registry in good order; idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._leave()
        self.ready.clear()
        await self._direct.close()

    async def _keep(self) -> None:
        pause = BACKOFF[0]
        while True:
            moving = False
            try:
                stream = await self._direct.open("Registry.Attach")
                try:
                    await self._begin(stream)
                    self._leave()
                    pause = BACKOFF[0]
                    moving = await self._hold(stream)
                finally:
                    if moving:
                        self._former = stream
                    else:
                        stream.cancel()
                if moving:
                    continue
                log.info("the registry ended the registration; registering again")
            except (BadRequest, Forbidden, TooLarge) as error:
                if self.refused is None:
                    log.error("the registry refuses %s: %s", self._instance.node.id, error)
                self.refused = error
                self.settled.set()
            except (MicroError, TimeoutError) as error:
                log.info("not registered: %s", error)
                await self._direct.elsewhere()
            except Exception:
                log.exception("not registered")
            finally:
                if not moving:
                    self.ready.clear()
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, BACKOFF[1])

    async def _begin(self, stream: Stream) -> None:
        await stream.send(encode(Attach(instance=self._instance, ttl=self._ttl)))
        await self._answer(stream)
        self.refused = None
        self.ready.set()
        self.settled.set()

    def _leave(self) -> None:
        """End the stream on the connection that was left: the newer one holds the registration."""
        former, self._former = self._former, None
        if former is not None:
            former.cancel()

    async def _hold(self, stream: Stream) -> bool:
        """Renew until the stream ends. True when it is to be replaced before: its connection takes
        no more calls (a certificate has ended, a registry leaves) and will be cut."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._ttl / 3):
                    await stream.receive()  # nothing is due: this ends when the stream breaks
                    return False
            if self._direct.let_go():
                return True
            await stream.send(encode(Attach()))
            await self._answer(stream)

    async def _answer(self, stream: Stream) -> None:
        """The answer to one message. Raises TimeoutError for a registry that is silent."""
        async with asyncio.timeout(self._ttl):
            if await stream.receive() is None:
                raise Unavailable("registry", "the registry ended the registration")
