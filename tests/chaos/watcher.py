"""A watcher in a process of its own, for tests that kill it.

``python -m tests.chaos.watcher NOUN FOLDER MEMBERS LOG START`` watches everything of a store, a
config or a registry whose members listen in FOLDER, writes each step to LOG, and goes on after the
last step that is there: from START (a revision or version) when there is none. ``MEMBERS`` is JSON:
how many there are of each service.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvloop

from micro_ray.errors import Conflict, MicroError
from micro_ray.registry import Action as Registered
from micro_ray.registry import Change, Instance
from micro_ray.store import Action
from micro_ray.wire.config import RemoteConfig
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.registry import RemoteRegistry
from micro_ray.wire.store import RemoteStore
from tests.chaos.watches import Session, Sight
from tests.fixtures.members import addresses, caller

__all__ = ["SERIAL", "sessions", "sights"]

#: Where a registration says which of its writer's it is.
SERIAL = "serial"


class Log:
    """One JSON object per line, there before the next is asked for."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text().splitlines() if path.exists() else []
        self.last: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, **row: Any) -> None:
        os.write(self._file, json.dumps(row).encode() + b"\n")
        self.last = row


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def sights(path: Path) -> list[Sight]:
    """What the watcher of a store or a config saw so far."""
    return [Sight(revision=row["revision"], items=row["items"]) for row in _rows(path)]


def sessions(path: Path) -> list[Session]:
    """What the watcher of a registry saw so far."""
    found: list[Session] = []
    for row in _rows(path):
        if "state" in row:
            seen: list[Sight] = []
            state = Session(
                epoch=row["epoch"], revision=row["revision"], state=row["state"], sights=seen
            )
            found.append(state)
        else:
            seen.append(Sight(revision=row["revision"], items=row["items"]))
    return found


async def _store(folder: Path, members: Mapping[str, int], log: Log, start: int) -> None:
    async with caller(folder, members) as network:
        store = RemoteStore(network)
        while True:
            kept = log.last.get("revision", start)
            with contextlib.suppress(MicroError):
                async for change in store.watch(revision=kept):
                    put = change.action is Action.PUT
                    value = str(change.revision) if put else None
                    log.add(revision=change.revision, items={change.key: value})
            await asyncio.sleep(0.02)


async def _config(folder: Path, members: Mapping[str, int], log: Log, start: int) -> None:
    async with caller(folder, members) as network:
        config = RemoteConfig(network)
        async for version in config.watch(version=log.last.get("revision", start)):
            items = {change.path: change.new for change in version.changes}
            log.add(revision=version.version, items=items)


async def _registry(folder: Path, members: Mapping[str, int], log: Log, _: int) -> None:
    places = addresses(folder, "registry", members["registry"])
    registry = RemoteRegistry(WireDialer(), places)
    while True:
        try:
            if not log.last:
                await _snapshot(registry, log)
            epoch, kept = log.last["epoch"], log.last["revision"]
            async for change in registry.watch(epoch=epoch, revision=kept):
                log.add(epoch=epoch, revision=change.revision, items=_step(change))
        except Conflict:
            with contextlib.suppress(MicroError):
                await _snapshot(registry, log)
        except MicroError:
            pass
        await asyncio.sleep(0.02)


async def _snapshot(registry: RemoteRegistry, log: Log) -> None:
    found = await registry.snapshot()
    state = {instance.node.id: _serial(instance) for instance in found.instances}
    log.add(epoch=found.epoch, revision=found.revision, state=state)


def _step(change: Change) -> dict[str, str | None]:
    node = change.instance
    return {node.node.id: _serial(node) if change.action is Registered.PUT else None}


def _serial(instance: Instance) -> str:
    return instance.metadata[SERIAL]


async def _main(noun: str, folder: str, members: str, log: str, start: str) -> None:
    watch = {"store": _store, "config": _config, "registry": _registry}[noun]
    print("ready", flush=True)
    await watch(Path(folder), json.loads(members), Log(Path(log)), int(start))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    uvloop.run(_main(*sys.argv[1:]))
