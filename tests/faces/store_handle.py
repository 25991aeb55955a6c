"""The store by its actor's handle."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

from micro_ray.store import Blob, Change, Operation, Record, Store, Usage
from tests.faces.handle import Handle
from tests.faces.rows import Rows

__all__ = ["ROWS", "HandleStore"]

_CLOCK = "the clock of an actor is the machine's"
_SHARED = "the actor is shared, it is not one test's to close"
_LARGEST = "8 MiB of each filling; \\xff is tried"

ROWS = Rows(
    verbs={"close": _SHARED},
    fail={
        "test_expired_is_gone_at_once": _CLOCK,
        "test_expired_counts_as_absent_in_comparisons": _CLOCK,
        "test_a_key_written_again_does_not_expire_by_its_old_time": _CLOCK,
        "test_a_blob_is_bounded": "a limit is the actor's own, a test cannot lower it",
    },
    dear={
        "test_watchers_see_what_expires": _CLOCK + ", and it is waited for",
        "test_a_write_sets_the_expiry_anew": _CLOCK + ", and no time passes",
        "test_the_largest_value[\\x00]": _LARGEST,
        "test_the_largest_value[\\x01]": _LARGEST,
        'test_the_largest_value["]': _LARGEST,
        "test_the_largest_value[x]": _LARGEST,
        "test_the_largest_value[\\x7f]": _LARGEST,
        "test_an_answer_is_bounded": "megabytes, the backend's own to count",
        "test_an_answer_has_a_most_of_records": "10,000 records, the backend's own to count",
        "test_a_transaction_is_bounded": "megabytes, the backend's own to count",
        "test_what_is_no_longer_kept": "10,000 changes, the backend's own to keep",
    },
)


class HandleStore(Store):
    """The interface over ``ray.get_actor("store", namespace="micro")``."""

    def __init__(self) -> None:
        self._handle = Handle("store")

    async def _call(self, verb: str, *args: Any, namespace: str, **options: Any) -> Any:
        return await self._handle.call(
            verb, *args, namespace=self._handle.space.to(namespace), **options
        )

    async def close(self) -> None:
        ROWS.lacks("close")

    async def read(self, key: str, *, namespace: str = "micro", **place: Any) -> Record:
        return await self._call("read", key, namespace=namespace, **place)

    async def write(
        self, key: str, value: bytes, *, namespace: str = "micro", **options: Any
    ) -> Record:
        return await self._call("write", key, value, namespace=namespace, **options)

    async def delete(self, key: str, *, namespace: str = "micro", **options: Any) -> None:
        await self._call("delete", key, namespace=namespace, **options)

    async def query(self, *, namespace: str = "micro", **options: Any) -> list[Record]:
        return await self._call("query", namespace=namespace, **options)

    async def keys(self, *, namespace: str = "micro", **options: Any) -> list[str]:
        return await self._call("keys", namespace=namespace, **options)

    async def transact(
        self, operations: Sequence[Operation], *, namespace: str = "micro", **options: Any
    ) -> list[int]:
        return await self._call("transact", operations, namespace=namespace, **options)

    async def databases(self, *, namespace: str = "micro") -> list[str]:
        return await self._call("databases", namespace=namespace)

    async def tables(self, database: str = "micro", *, namespace: str = "micro") -> list[str]:
        return await self._call("tables", database, namespace=namespace)

    async def usage(self, *, namespace: str = "micro") -> Usage:
        return await self._call("usage", namespace=namespace)

    async def revision(self, *, namespace: str = "micro") -> int:
        return await self._call("revision", namespace=namespace)

    def watch(
        self, *, revision: int, namespace: str = "micro", **options: Any
    ) -> AsyncIterator[Change]:
        space = self._handle.space.to(namespace)
        return self._handle.stream("watch", revision=revision, namespace=space, **options)

    async def write_blob(
        self, key: str, chunks: AsyncIterable[bytes], *, namespace: str = "micro"
    ) -> Blob:
        pieces = [piece async for piece in chunks]
        return await self._call("write_blob", key, pieces, namespace=namespace)

    def read_blob(self, key: str, *, namespace: str = "micro") -> AsyncIterator[bytes]:
        return self._handle.stream("read_blob", key, namespace=self._handle.space.to(namespace))

    async def delete_blob(self, key: str, *, namespace: str = "micro") -> bool:
        return await self._call("delete_blob", key, namespace=namespace)

    async def blobs(self, *, prefix: str = "", namespace: str = "micro") -> list[Blob]:
        return await self._call("blobs", prefix=prefix, namespace=namespace)
