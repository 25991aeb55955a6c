"""The runtime's face on frames, and the interface over a caller."""

from __future__ import annotations

import contextlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
)
from dataclasses import replace
from typing import Any

from micro_ray.context import current
from micro_ray.errors import BadRequest, MicroError, NotFound, Unavailable
from micro_ray.network.network import Network
from micro_ray.router import Filter
from micro_ray.runtime import LogLine, Progress, Replica, Runtime, Status, Workload
from micro_ray.runtime.keeper import Gate
from micro_ray.runtime.source import pieces
from micro_ray.wire.endpoints import Endpoints, endpoint_name
from micro_ray.wire.remote import Caller, from_json, to_json

__all__ = ["RemoteRuntime", "endpoints", "gate", "lives"]

NAME = "runtime"
#: Seconds that a replica has to say that it is healthy.
HEALTH = 5.0


class _Face:
    """The verbs as endpoints; the namespace is the caller's."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def create(self, workload: Workload) -> Status:
        """Let a workload run."""
        return await self._runtime.create(replace(workload, namespace=current().namespace))

    async def update(self, name: str, changes: dict[str, Any]) -> Status:
        """Change a workload; without changes, restart it."""
        return await self._runtime.update(name, current().namespace, changes)

    async def delete(self, name: str) -> None:
        """Stop a workload and forget it."""
        await self._runtime.delete(name, current().namespace)

    async def read(self, name: str = "") -> list[Status]:
        """All workloads, or one; the values of their variables for who administers and for
        services alone."""
        found = await self._runtime.read(name, current().namespace)
        return found if current().entrusted else [_without_values(status) for status in found]

    async def logs(self, name: str, tail: int = 15, follow: bool = False) -> AsyncIterator[LogLine]:
        """The last lines of all replicas, then what comes."""
        lines = self._runtime.logs(name, current().namespace, tail=tail, follow=follow)
        async with contextlib.aclosing(lines):
            async for line in lines:
                yield line

    async def progress(self, name: str) -> AsyncIterator[Progress]:
        """The steps of a workload until it runs or has failed."""
        steps = self._runtime.progress(name, current().namespace)
        async with contextlib.aclosing(steps):
            async for step in steps:
                yield step

    async def upload(self, archive: AsyncIterator[bytes]) -> dict[str, Any]:
        """Keep a packed source; the answer has its digest."""
        return {"digest": await self._runtime.upload(archive, current().namespace)}


def _without_values(status: Status) -> Status:
    workload = status.workload
    return replace(status, workload=replace(workload, env=dict.fromkeys(workload.env, "")))


def endpoints(runtime: Runtime) -> Endpoints:
    """Service ``runtime``."""
    face, table = _Face(runtime), Endpoints(NAME)
    for name in ("create", "update", "delete", "read", "logs", "progress"):
        table.add(endpoint_name(NAME, name), getattr(face, name))
    table.add("Source.Upload", face.upload)
    return table


def gate(network: Network) -> Gate:
    """Lets a replica through that is in the route table and says of itself that it is healthy; a
    command need not be there."""

    async def check(replica: Replica, workload: Workload) -> None:
        routes = network.table.routes(replica.namespace)
        route = next((route for route in routes if route.id == replica.id), None)
        if route is not None:
            await network.call(
                route.service,
                "Debug.Health",
                b"{}",
                namespace=replica.namespace,
                filter=Filter(node=replica.id),
                timeout=HEALTH,
            )
        elif not workload.command:
            raise Unavailable(NAME, "it is not in the route table")

    return check


def lives(network: Network) -> Callable[[str, str], Awaitable[bool]]:
    """Whether the runtime has a replica, by its namespace and id; True while it cannot say."""

    async def check(namespace: str, id: str) -> bool:
        try:
            body = await network.call(
                NAME,
                "Runtime.Read",
                to_json({"name": id.rpartition("-")[0]}),
                metadata={"micro-namespace": namespace},
                timeout=HEALTH,
                idempotent=True,
            )
        except (NotFound, BadRequest) as error:
            return error.id != NAME  # else it is the service that is not there
        except MicroError:
            return True
        found = from_json(body, list[Status], NAME)
        return any(replica.id == id for status in found for replica in status.replicas)

    return check


class RemoteRuntime(Runtime):
    """The interface over a caller."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def _call(
        self, endpoint: str, request: Any, namespace: str, *, safe: bool = False
    ) -> bytes:
        return await self._caller.call(
            NAME,
            endpoint,
            to_json(request),
            metadata={"micro-namespace": namespace},
            idempotent=safe,
        )

    async def _stream(self, endpoint: str, request: Any, namespace: str) -> AsyncIterator[bytes]:
        opened = await self._caller.open(NAME, endpoint, metadata={"micro-namespace": namespace})
        async with opened as stream:
            await stream.send(to_json(request))
            await stream.end()
            while (message := await stream.receive()) is not None:
                yield message

    async def create(self, workload: Workload) -> Status:
        body = await self._call("Runtime.Create", workload, workload.namespace)
        return from_json(body, Status, NAME)

    async def update(self, name: str, namespace: str, changes: Mapping[str, Any]) -> Status:
        body = await self._call("Runtime.Update", {"name": name, "changes": changes}, namespace)
        return from_json(body, Status, NAME)

    async def delete(self, name: str, namespace: str = "micro") -> None:
        await self._call("Runtime.Delete", {"name": name}, namespace)

    async def read(self, name: str = "", namespace: str = "micro") -> list[Status]:
        body = await self._call("Runtime.Read", {"name": name}, namespace, safe=True)
        return from_json(body, list[Status], NAME)

    async def logs(
        self, name: str, namespace: str = "micro", *, tail: int = 15, follow: bool = False
    ) -> AsyncGenerator[LogLine, None]:
        request = {"name": name, "tail": tail, "follow": follow}
        async for message in self._stream("Runtime.Logs", request, namespace):
            yield from_json(message, LogLine, NAME)

    async def progress(self, name: str, namespace: str = "micro") -> AsyncGenerator[Progress, None]:
        async for message in self._stream("Runtime.Progress", {"name": name}, namespace):
            yield from_json(message, Progress, NAME)

    async def upload(self, archive: bytes | AsyncIterable[bytes], namespace: str = "micro") -> str:
        opened = await self._caller.open(
            NAME, "Source.Upload", metadata={"micro-namespace": namespace}
        )
        async with opened as stream:
            with contextlib.suppress(MicroError):  # refused before its end: the answer says why
                async for piece in pieces(archive):
                    await stream.send(piece)
                await stream.end()
            answer = await stream.receive()
        return str(from_json(answer or b"", dict[str, Any], NAME)["digest"])
