"""Desired state in the store: one record per workload, in the platform's own namespace."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from micro_ray.errors import (
    BadRequest,
    Cancelled,
    Conflict,
    MicroError,
    NotFound,
    Timeout,
    Unavailable,
)
from micro_ray.runtime import Workload
from micro_ray.runtime.checks import check_place
from micro_ray.store import Delete, Operation, Put, Store

__all__ = ["Desired", "Records"]

log = logging.getLogger(__name__)

TABLE = "runtime"
PREFIX = "workload/"
#: Records read at a time: they are of some hundred kilobytes at most, an answer of ten megabytes.
PAGE = 16
#: Times that a write is tried whose end is not known, or was that another came between.
ATTEMPTS = 3
#: Seconds between attempts: first, and at most.
BACKOFF = (0.05, 1.0)


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """What should run. ``previous`` is what ran before, to go back to, until ``workload`` is
    ``proven``: has run as desired for a while. ``failed`` says why it did not come up ("": it did,
    or may still); then ``previous`` goes on."""

    workload: Workload
    previous: Workload | None = None
    proven: bool = False
    failed: str = ""


class Records:
    """The desired state as the store has it. Writes compare versions, so that one whose answer was
    lost, and that comes late, is barred once another has come."""

    def __init__(self, store: Store, namespace: str) -> None:
        self._store = store
        self._namespace = namespace
        self._versions: dict[str, int] = {}

    async def load(self) -> list[Desired]:
        """Everything that should run; what cannot be read is passed over, and said in the log."""
        found: list[Desired] = []
        offset = 0
        while True:
            records = await self._store.query(
                prefix=PREFIX,
                limit=PAGE,
                offset=offset,
                table=TABLE,
                namespace=self._namespace,
            )
            for record in records:
                try:
                    desired = msgspec.json.decode(record.value, type=Desired)
                    check_place(desired.workload.name, desired.workload.namespace)
                except (msgspec.DecodeError, RecursionError, BadRequest) as error:
                    log.error("%s cannot be read and is passed over: %s", record.key, error)
                    continue
                if record.key != _key(desired.workload.namespace, desired.workload.name):
                    log.error("%s is of another workload and is passed over", record.key)
                    continue
                self._versions[record.key] = record.version
                found.append(desired)
            if len(records) < PAGE:
                return found
            offset += len(records)

    async def write(self, desired: Desired) -> None:
        """Returns once the store has it. Raises Unavailable when it has what it had before; as long
        as the store does not say which, it is asked."""
        workload = desired.workload
        value = msgspec.json.encode(desired)
        await self._see_through(_key(workload.namespace, workload.name), value)

    async def delete(self, namespace: str, name: str) -> None:
        """As :meth:`write`."""
        await self._see_through(_key(namespace, name), None)

    async def _see_through(self, key: str, value: bytes | None) -> None:
        failed: MicroError | None = None
        for attempt in range(ATTEMPTS):
            await asyncio.sleep(attempt * BACKOFF[0])
            try:
                await self._try(key, value)
            except MicroError as error:
                if not _open_ended(error):
                    raise
                failed = error
            else:
                return
            if await self._found(key) == value:
                return  # the answer was lost, not the write
        assert failed is not None
        raise Unavailable("runtime", f"nothing was changed: {failed.detail}", 1.0) from failed

    async def _try(self, key: str, value: bytes | None) -> None:
        expected = self._versions.get(key, 0)
        operation: Operation = Delete(key=key, table=TABLE, expected=expected)
        if value is not None:
            operation = Put(key=key, value=value, table=TABLE, expected=expected)
        (version,) = await self._store.transact([operation], namespace=self._namespace)
        self._versions[key] = version

    async def _found(self, key: str) -> bytes | None:
        """What the store has, as soon as it says so; the next write is over that."""
        pause = BACKOFF[0]
        while True:
            try:
                record = await self._store.read(key, table=TABLE, namespace=self._namespace)
            except NotFound:
                self._versions[key] = 0
                return None
            except MicroError as error:
                log.info("what became of %s is not known yet: %s", key, error)
            else:
                self._versions[key] = record.version
                return record.value
            await asyncio.sleep(pause)
            pause = min(pause * 2, BACKOFF[1])


def _open_ended(error: MicroError) -> bool:
    """Whether a write that failed so may have been done, or another came between."""
    return error.code >= 500 or isinstance(error, Timeout | Cancelled | Conflict)


def _key(namespace: str, name: str) -> str:
    return f"{PREFIX}{namespace}/{name}"
