"""Desired state in the store: one record per workload, in the platform's own namespace."""

from __future__ import annotations

import logging

import msgspec

from micro_ray.errors import BadRequest
from micro_ray.runtime import Workload
from micro_ray.runtime.checks import check_place
from micro_ray.store import Store

__all__ = ["Desired", "Records"]

log = logging.getLogger(__name__)

TABLE = "runtime"
PREFIX = "workload/"
#: Records read at a time: they are of some hundred kilobytes at most, an answer of ten megabytes.
PAGE = 16


class Desired(msgspec.Struct, frozen=True, kw_only=True):
    """What should run. ``previous`` is what ran before, to go back to, until ``workload`` is
    ``proven``: has run as desired for a while. ``failed`` says why it did not come up ("": it did,
    or may still); then ``previous`` goes on."""

    workload: Workload
    previous: Workload | None = None
    proven: bool = False
    failed: str = ""


class Records:
    """The desired state as the store has it."""

    def __init__(self, store: Store, namespace: str) -> None:
        self._store = store
        self._namespace = namespace

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
                found.append(desired)
            if len(records) < PAGE:
                return found
            offset += len(records)

    async def write(self, desired: Desired) -> None:
        await self._store.write(
            _key(desired.workload.namespace, desired.workload.name),
            msgspec.json.encode(desired),
            table=TABLE,
            namespace=self._namespace,
        )

    async def delete(self, namespace: str, name: str) -> None:
        await self._store.delete(_key(namespace, name), table=TABLE, namespace=self._namespace)


def _key(namespace: str, name: str) -> str:
    return f"{PREFIX}{namespace}/{name}"
