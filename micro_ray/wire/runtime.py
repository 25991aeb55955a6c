"""The runtime's face on frames, and the interface over a caller."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from micro_ray.context import current
from micro_ray.errors import BadRequest, TooLarge
from micro_ray.runtime import LogLine, Progress, Runtime, Status, Workload
from micro_ray.runtime.reconcile import source_key
from micro_ray.runtime.source import MAX_BYTES
from micro_ray.store import Store
from micro_ray.wire.endpoints import Endpoints, endpoint_name
from micro_ray.wire.remote import Caller, from_json, to_json

__all__ = ["RemoteRuntime", "endpoints"]

NAME = "runtime"


class _Face:
    """The verbs as endpoints; the namespace is the caller's."""

    def __init__(self, runtime: Runtime, store: Store) -> None:
        self._runtime = runtime
        self._store = store

    async def create(self, workload: Workload) -> Status:
        """Let a workload run."""
        return await self._runtime.create(replace(workload, namespace=current().namespace))

    async def update(self, name: str, changes: dict[str, Any]) -> Status:
        """Change a workload; without changes, restart it."""
        try:
            typed = {k: _typed(k, v) for k, v in changes.items()}
        except msgspec.ValidationError as error:
            raise BadRequest(NAME, f"changes: {error}") from None
        return await self._runtime.update(name, current().namespace, typed)

    async def delete(self, name: str) -> None:
        """Stop a workload and forget it."""
        await self._runtime.delete(name, current().namespace)

    async def read(self, name: str = "") -> list[Status]:
        """All workloads, or one."""
        return await self._runtime.read(name, current().namespace)

    async def logs(self, name: str, tail: int = 15, follow: bool = False) -> AsyncIterator[LogLine]:
        """The last lines of all replicas, then what comes."""
        lines = self._runtime.logs(name, current().namespace, tail=tail, follow=follow)
        async for line in lines:
            yield line

    async def progress(self, name: str) -> AsyncIterator[Progress]:
        """The steps of a workload until it runs or has failed."""
        async for step in self._runtime.progress(name, current().namespace):
            yield step

    async def upload(self, pieces: AsyncIterator[bytes]) -> dict[str, Any]:
        """Keep a packed source; the answer has its digest."""
        archive = bytearray()
        async for piece in pieces:
            archive += piece
            if len(archive) > MAX_BYTES:
                raise TooLarge(NAME, f"source over {MAX_BYTES} bytes")
        digest = hashlib.sha256(archive).hexdigest()

        async def once() -> AsyncIterator[bytes]:
            for start in range(0, len(archive), 2**18):
                yield bytes(archive[start : start + 2**18])

        await self._store.write_blob(source_key(digest), once())
        return {"digest": digest, "size": len(archive)}


def endpoints(runtime: Runtime, store: Store) -> Endpoints:
    """Service ``runtime``. ``store`` takes the uploaded sources."""
    face, table = _Face(runtime, store), Endpoints(NAME)
    for name in ("create", "update", "delete", "read", "logs", "progress"):
        table.add(endpoint_name(NAME, name), getattr(face, name))
    table.add("Source.Upload", face.upload)
    return table


def _typed(name: str, value: Any) -> Any:
    kinds: Mapping[str, Any] = {
        "source": str,
        "digest": str,
        "command": tuple[str, ...],
        "env": dict[str, str],
        "replicas": int,
        "cpu": float,
        "gpu": float,
        "memory": int,
        "metadata": dict[str, str],
    }
    return msgspec.convert(value, kinds[name]) if name in kinds else value


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
    ) -> AsyncIterator[LogLine]:
        request = {"name": name, "tail": tail, "follow": follow}
        async for message in self._stream("Runtime.Logs", request, namespace):
            yield from_json(message, LogLine, NAME)

    async def progress(self, name: str, namespace: str = "micro") -> AsyncIterator[Progress]:
        async for message in self._stream("Runtime.Progress", {"name": name}, namespace):
            yield from_json(message, Progress, NAME)

    async def upload(self, archive: bytes, namespace: str = "micro") -> str:
        """Keep a packed source; its digest."""
        opened = await self._caller.open(
            NAME, "Source.Upload", metadata={"micro-namespace": namespace}
        )
        async with opened as stream:
            for start in range(0, len(archive), 2**18):
                await stream.send(archive[start : start + 2**18])
            await stream.end()
            answer = await stream.receive()
        return str(from_json(answer or b"", dict[str, Any], NAME)["digest"])
