"""The registry by the command line: what is for people by ``services`` and ``get service``, what is
for programs by ``call`` and ``stream``."""

from __future__ import annotations

import builtins
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec

from micro_ray.errors import BadGateway
from micro_ray.registry import DEFAULT_TTL, Change, Instance, Registry, Service, Snapshot
from tests.faces.rows import Rows
from tests.faces.terminal import Shell

__all__ = ["ROWS", "TerminalRegistry"]

_MANY = "hundreds of commands; the backend's own, and tried over frames"
_NUMBER = "JSON has no such number; what is sent instead is refused as none"

ROWS = Rows(
    verbs={"close": "what a command has opened it closes at its end"},
    fail={"test_a_ttl_out_of_bounds[nan]": _NUMBER, "test_a_ttl_out_of_bounds[inf]": _NUMBER},
    dear={
        "test_closing_ends_watchers": "what a command has opened it closes at its end",
        "test_leaving_leaves_nothing": "tasks are those of a process that has ended",
        "test_what_is_refused": _MANY,
        "test_a_watch_goes_on_where_it_ended": _MANY,
        "test_many_watch_alike": _MANY,
    },
)


class TerminalRegistry(Registry):
    """The interface over ``micro services``, ``get service``, ``call`` and ``stream``."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell

    async def _call(self, endpoint: str, request: Any) -> Any:
        body = msgspec.json.encode(request)
        return await self._shell.value("call", "registry", f"Registry.{endpoint}", "-", stdin=body)

    async def close(self) -> None:
        ROWS.lacks("close")

    async def register(
        self, instance: Instance, *, ttl: float = DEFAULT_TTL, holder: str = ""
    ) -> None:
        await self._call("Register", {"instance": instance, "ttl": ttl, "holder": holder})

    async def renew(self, namespace: str, node_ids: Sequence[str]) -> builtins.list[str]:
        request = {"nodes": [*node_ids], "namespace": namespace}
        return msgspec.convert(await self._call("Renew", request), builtins.list[str])

    async def deregister(self, namespace: str, node_id: str, *, holder: str = "") -> None:
        request = {"node": node_id, "namespace": namespace, "holder": holder}
        await self._call("Deregister", request)

    async def get(self, namespace: str, service: str) -> builtins.list[Service]:
        if namespace == "micro":
            rows = await self._shell.value("get", "service", "--", service)
        else:
            rows = await self._call("GetService", {"service": service, "namespace": namespace})
        return msgspec.convert(rows, builtins.list[Service])

    async def list(self, namespace: str) -> builtins.list[Service]:
        if namespace == "micro":
            rows = await self._shell.value("services")
        else:
            rows = await self._call("ListServices", {"namespace": namespace})
        return msgspec.convert(rows, builtins.list[Service])

    async def snapshot(self) -> Snapshot:
        lines = self._shell.lines("stream", "registry", "Registry.Snapshot")
        async with aclosing(lines) as rows:  # type: ignore[type-var]
            pages = [msgspec.convert(row, Snapshot) async for row in rows]
        if not pages:
            raise BadGateway("registry", "an answer without a snapshot")
        return replace(pages[0], instances=tuple(i for page in pages for i in page.instances))

    async def watch(self, *, epoch: str, revision: int) -> AsyncIterator[Change]:
        request = json.dumps({"epoch": epoch, "revision": revision})
        lines = self._shell.lines("stream", "registry", "Registry.Watch", "--", request)
        async with aclosing(lines) as rows:  # type: ignore[type-var]
            async for row in rows:
                yield msgspec.convert(row, Change)
