"""The store's face on frames, and the interface over a caller."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from micro_ray.context import current
from micro_ray.errors import BadGateway, BadRequest
from micro_ray.store import DEFAULT, Blob, Change, Operation, Put, Record, Store, Usage
from micro_ray.wire.closing import closing
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.own import Own
from micro_ray.wire.remote import Caller, from_json, to_json
from micro_ray.wire.store_records import (
    Records,
    WireOperation,
    WireRecord,
    from_text,
    from_wire,
    to_operation,
    to_text,
    to_wire,
)

__all__ = ["RemoteStore", "endpoints"]

NAME = "store"

#: Blobs cross in pieces of at most so many bytes.
_PIECE = 256 * 1024


class _Face:
    """The endpoints as methods; the namespace is the caller's."""

    def __init__(self, store: Store, own: Own) -> None:
        self._store = store
        self._own = own

    def _in(self, database: str, table: str) -> dict[str, str]:
        """A place that the caller may touch."""
        self._own.table(database, table)
        return {"database": database, "table": table, "namespace": current().namespace}

    async def read(
        self,
        key: str,
        prefix: bool = False,
        suffix: bool = False,
        limit: int = 0,
        offset: int = 0,
        order: str = "asc",
        database: str = DEFAULT,
        table: str = DEFAULT,
    ) -> Records:
        """The record under a key, or with prefix or suffix all whose key begins or ends so."""
        place = self._in(database, table)
        if not prefix and not suffix:
            record = await self._store.read(key, **place)
            return Records(records=[to_wire(record)])
        found = await self._store.query(
            prefix=key if prefix else "",
            suffix=key if suffix else "",
            limit=limit,
            offset=offset,
            order=order,
            **place,
        )
        return Records(records=[to_wire(record) for record in found])

    async def query(
        self,
        prefix: str = "",
        suffix: str = "",
        limit: int = 0,
        offset: int = 0,
        order: str = "asc",
        database: str = DEFAULT,
        table: str = DEFAULT,
    ) -> Records:
        """Records whose key begins and ends so."""
        found = await self._store.query(
            prefix=prefix,
            suffix=suffix,
            limit=limit,
            offset=offset,
            order=order,
            **self._in(database, table),
        )
        return Records(records=[to_wire(record) for record in found])

    async def write(
        self,
        key: str,
        value: str = "",
        encoding: str = "text",
        metadata: dict[str, str] = {},  # noqa: B006 - copied by the struct, never changed
        expiry: float | None = None,
        expected: int | None = None,
        database: str = DEFAULT,
        table: str = DEFAULT,
    ) -> WireRecord:
        """Write a record; expiry in seconds. With expected only over that version (0: none)."""
        record = await self._store.write(
            key,
            from_text(value, encoding),
            metadata=metadata,
            expiry=expiry,
            expected=expected,
            **self._in(database, table),
        )
        return to_wire(record)

    async def delete(
        self,
        key: str,
        expected: int | None = None,
        database: str = DEFAULT,
        table: str = DEFAULT,
    ) -> None:
        """Remove a record."""
        await self._store.delete(
            key,
            expected=expected,
            **self._in(database, table),
        )

    async def list(
        self,
        prefix: str = "",
        suffix: str = "",
        limit: int = 0,
        offset: int = 0,
        order: str = "asc",
        database: str = DEFAULT,
        table: str = DEFAULT,
    ) -> dict[str, Any]:
        """The keys that begin and end so."""
        keys = await self._store.keys(
            prefix=prefix,
            suffix=suffix,
            limit=limit,
            offset=offset,
            order=order,
            **self._in(database, table),
        )
        return {"keys": keys}

    async def transaction(
        self, operations: Sequence[WireOperation], database: str = DEFAULT
    ) -> dict[str, Any]:
        """All of these operations or none."""
        rows = [to_operation(row) for row in operations]
        for table in {row.table for row in rows}:
            self._own.table(database, table)
        versions = await self._store.transact(
            rows, database=database, namespace=current().namespace
        )
        return {"versions": versions}

    async def databases(self) -> dict[str, Any]:
        """The databases of the namespace."""
        found = await self._store.databases(namespace=current().namespace)
        return {"databases": self._own.databases(found)}

    async def tables(self, database: str = DEFAULT) -> dict[str, Any]:
        """The tables of a database."""
        self._own.database(database)
        found = await self._store.tables(database, namespace=current().namespace)
        return {"tables": self._own.tables(database, found)}

    async def usage(self) -> Usage:
        """What the namespace keeps, counted now."""
        return await self._store.usage(namespace=current().namespace)

    async def revision(self) -> dict[str, Any]:
        """The newest version given."""
        return {"revision": await self._store.revision(namespace=current().namespace)}

    async def watch(
        self,
        revision: int = -1,
        prefix: str = "",
        database: str = DEFAULT,
        table: str = DEFAULT,
    ) -> AsyncIterator[Change]:
        """Changes after a revision (-1: from now on)."""
        place = self._in(database, table)
        if revision < 0:
            revision = await self._store.revision(namespace=place["namespace"])
        watch = self._store.watch(revision=revision, prefix=prefix, **place)
        async with closing(watch) as changes:
            async for change in changes:
                yield change

    async def read_blob(self, key: str) -> AsyncIterator[bytes]:
        """A blob in pieces."""
        self._own.blob(key)
        blob = self._store.read_blob(key, namespace=current().namespace)
        async with closing(blob) as pieces:
            async for piece in pieces:
                yield piece

    async def write_blob(self, messages: AsyncIterator[bytes]) -> Blob:
        """Write a blob: the first message is JSON with its key, the others are its bytes."""
        try:
            key = msgspec.json.decode(await anext(messages), type=dict[str, str])["key"]
        except (StopAsyncIteration, msgspec.DecodeError, KeyError):
            raise BadRequest("store", 'the first message must be {"key": "..."}') from None
        self._own.blob(key)
        return await self._store.write_blob(key, messages, namespace=current().namespace)

    async def delete_blob(self, key: str) -> dict[str, Any]:
        """Remove a blob."""
        self._own.blob(key)
        return {"deleted": await self._store.delete_blob(key, namespace=current().namespace)}

    async def blobs(self, prefix: str = "") -> dict[str, Any]:
        """Blobs by key."""
        self._own.blob(prefix)
        found = await self._store.blobs(prefix=prefix, namespace=current().namespace)
        return {"blobs": self._own.blobs(found)}


def endpoints(store: Store, own: Own | None = None) -> Endpoints:
    """Service ``store``; ``own`` is the platform's part of it (default: in ``micro``)."""
    face, table = _Face(store, own or Own()), Endpoints(NAME)
    for name in (
        "read", "query", "write", "delete", "list", "transaction", "databases", "tables",
        "usage", "revision", "watch",
    ):  # fmt: skip
        table.add(f"Store.{name.title()}", getattr(face, name))
    table.add("BlobStore.Read", face.read_blob)
    table.add("BlobStore.Write", face.write_blob)
    table.add("BlobStore.Delete", face.delete_blob)
    table.add("BlobStore.List", face.blobs)
    return table


class RemoteStore(Store):
    """The interface over a caller. ``database`` and ``table`` of the verbs default to the ones
    given here. Reads may be tried again on another node, writes only when they were surely not
    executed."""

    def __init__(self, caller: Caller, *, database: str = DEFAULT, table: str = DEFAULT) -> None:
        self._caller = caller
        self._database = database
        self._table = table

    async def _call(
        self, endpoint: str, request: Mapping[str, Any], namespace: str, *, safe: bool = False
    ) -> bytes:
        return await self._caller.call(
            NAME,
            endpoint,
            to_json(request),
            metadata={"micro-namespace": namespace},
            idempotent=safe,
        )

    def _place(self, database: str, table: str) -> dict[str, Any]:
        return {
            "database": self._database if database == DEFAULT else database,
            "table": self._table if table == DEFAULT else table,
        }

    async def close(self) -> None:
        """The caller is not ours."""

    async def read(
        self, key: str, *, database: str = DEFAULT, table: str = DEFAULT, namespace: str = DEFAULT
    ) -> Record:
        request = {"key": key, **self._place(database, table)}
        body = await self._call("Store.Read", request, namespace, safe=True)
        records = from_json(body, Records, NAME).records
        if len(records) != 1:
            raise BadGateway(NAME, f"{len(records)} records for one key")
        return from_wire(records[0])

    async def query(
        self,
        *,
        prefix: str = "",
        suffix: str = "",
        limit: int = 0,
        offset: int = 0,
        order: str = "asc",
        database: str = DEFAULT,
        table: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> list[Record]:
        request = {
            "prefix": prefix,
            "suffix": suffix,
            "limit": limit,
            "offset": offset,
            "order": order,
            **self._place(database, table),
        }
        body = await self._call("Store.Query", request, namespace, safe=True)
        return [from_wire(record) for record in from_json(body, Records, NAME).records]

    async def keys(
        self,
        *,
        prefix: str = "",
        suffix: str = "",
        limit: int = 0,
        offset: int = 0,
        order: str = "asc",
        database: str = DEFAULT,
        table: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> list[str]:
        request = {
            "prefix": prefix,
            "suffix": suffix,
            "limit": limit,
            "offset": offset,
            "order": order,
            **self._place(database, table),
        }
        body = await self._call("Store.List", request, namespace, safe=True)
        return from_json(body, dict[str, list[str]], NAME)["keys"]

    async def transact(
        self,
        operations: Sequence[Operation],
        *,
        database: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> list[int]:
        rows = []
        for row in operations:
            form: dict[str, Any] = {
                "kind": type(row).__name__.lower(),
                "key": row.key,
                "table": self._place(database, row.table)["table"],
                "expected": row.expected,
            }
            if isinstance(row, Put):
                form["value"], form["encoding"] = to_text(row.value)
                form["metadata"], form["expiry"] = dict(row.metadata), row.expiry
            rows.append(form)
        request = {"operations": rows, "database": self._place(database, DEFAULT)["database"]}
        body = await self._call("Store.Transaction", request, namespace)
        return from_json(body, dict[str, list[int]], NAME)["versions"]

    async def databases(self, *, namespace: str = DEFAULT) -> list[str]:
        body = await self._call("Store.Databases", {}, namespace, safe=True)
        return from_json(body, dict[str, list[str]], NAME)["databases"]

    async def tables(self, database: str = DEFAULT, *, namespace: str = DEFAULT) -> list[str]:
        request = {"database": self._place(database, DEFAULT)["database"]}
        body = await self._call("Store.Tables", request, namespace, safe=True)
        return from_json(body, dict[str, list[str]], NAME)["tables"]

    async def usage(self, *, namespace: str = DEFAULT) -> Usage:
        return from_json(await self._call("Store.Usage", {}, namespace, safe=True), Usage, NAME)

    async def revision(self, *, namespace: str = DEFAULT) -> int:
        body = await self._call("Store.Revision", {}, namespace, safe=True)
        return from_json(body, dict[str, int], NAME)["revision"]

    async def watch(
        self,
        *,
        revision: int,
        prefix: str = "",
        database: str = DEFAULT,
        table: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> AsyncIterator[Change]:
        request = {"revision": revision, "prefix": prefix, **self._place(database, table)}
        opened = await self._caller.open(
            NAME, "Store.Watch", metadata={"micro-namespace": namespace}
        )
        async with opened as stream:
            await stream.send(to_json(request))
            await stream.end()
            while (message := await stream.receive()) is not None:
                yield from_json(message, Change, NAME)

    async def write_blob(
        self, key: str, chunks: AsyncIterable[bytes], *, namespace: str = DEFAULT
    ) -> Blob:
        opened = await self._caller.open(
            NAME, "BlobStore.Write", metadata={"micro-namespace": namespace}
        )
        async with opened as stream:
            await stream.send(to_json({"key": key}))
            async for chunk in chunks:
                for start in range(0, len(chunk), _PIECE):
                    await stream.send(chunk[start : start + _PIECE])
            await stream.end()
            answer = await stream.receive()
            return from_json(answer or b"", Blob, NAME)

    async def read_blob(self, key: str, *, namespace: str = DEFAULT) -> AsyncIterator[bytes]:
        opened = await self._caller.open(
            NAME, "BlobStore.Read", metadata={"micro-namespace": namespace}
        )
        async with opened as stream:
            await stream.send(to_json({"key": key}))
            await stream.end()
            while (piece := await stream.receive()) is not None:
                yield piece

    async def delete_blob(self, key: str, *, namespace: str = DEFAULT) -> bool:
        body = await self._call("BlobStore.Delete", {"key": key}, namespace)
        return from_json(body, dict[str, bool], NAME)["deleted"]

    async def blobs(self, *, prefix: str = "", namespace: str = DEFAULT) -> list[Blob]:
        body = await self._call("BlobStore.List", {"prefix": prefix}, namespace, safe=True)
        return from_json(body, dict[str, list[Blob]], NAME)["blobs"]
