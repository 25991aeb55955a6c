"""Blobs as rows of pieces.

Pieces are written one by one under a random id as they come, each committed by itself, and become
the blob by one transaction that enters the id. Until then the id is among the leftovers, due in a
day; so is the id of a blob that was replaced or deleted, due in an hour, so that who reads it can
finish. What is due is removed by whoever sweeps first.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any

from micro_ray.errors import MicroError, NotFound, Unavailable
from micro_ray.store import MAX_RECORDS, Blob, checks
from micro_ray.store.postgres_connection import Connection
from micro_ray.store.postgres_database import Database
from micro_ray.store.postgres_isolation import EVERYTHING
from micro_ray.store.prefix import after

__all__ = ["Blobs"]

#: Bytes of a row, and of what a reader is given.
_ROW, _PIECE = 256 * 1024, 64 * 1024
#: Leftovers removed by one transaction.
_SWEPT = 20
#: Pieces that get their namespace by one statement, which leaves their data where it is.
_ADOPTED = 1000


class Blobs:
    """The blobs of all namespaces of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, namespace: str, key: str, chunks: AsyncIterable[bytes]) -> Blob:
        id = os.urandom(16).hex()

        async def announce(connection: Connection) -> None:
            await connection.execute(
                "INSERT INTO micro_store_leftovers (id, due, namespace)"
                " VALUES (%s, now() + '1 day'::interval, %s) ON CONFLICT (id) DO NOTHING",
                (id, namespace),
            )

        await self._database.ask(namespace, announce)
        try:
            size = await self._pour(namespace, id, chunks)
            await self._enter(namespace, key, id, size)
        except BaseException as error:
            # After a commit of unknown end the pieces may be somebody's: the sweeper knows.
            if not isinstance(error, MicroError) or error.code != 502:
                with contextlib.suppress(MicroError):
                    await self._due(namespace, id)
            raise
        return Blob(key=key, size=size)

    async def _pour(self, namespace: str, id: str, chunks: AsyncIterable[bytes]) -> int:
        held, at, size = bytearray(), 0, 0
        async for chunk in checks.blob_chunks(chunks):
            held += chunk
            size += len(chunk)
            while len(held) >= _ROW:
                await self._put(namespace, id, at, bytes(held[:_ROW]))
                del held[:_ROW]
                at += 1
        if held:
            await self._put(namespace, id, at, bytes(held))
        return size

    async def _put(self, namespace: str, id: str, at: int, data: bytes) -> None:
        async def job(connection: Connection) -> None:
            # Once more after a lost answer, it is there already.
            await connection.execute(
                "INSERT INTO micro_store_pieces (id, at, data, namespace) VALUES (%s, %s, %b, %s)"
                " ON CONFLICT (id, at) DO NOTHING",
                (id, at, data, namespace),
            )

        await self._database.ask(namespace, job)

    async def _enter(self, namespace: str, key: str, id: str, size: int) -> None:
        async def job(connection: Connection) -> tuple[None, bool]:
            kept = await connection.execute(
                "DELETE FROM micro_store_leftovers WHERE id = %s", (id,)
            )
            old = await connection.execute(
                "SELECT id FROM micro_store_blobs WHERE namespace = %s AND key = %s FOR UPDATE",
                (namespace, key),
            )
            replaced = await old.fetchone()
            if kept.rowcount != 1:
                raise Unavailable("store", f"blob {key!r} took over a day to write")
            await connection.execute(
                "INSERT INTO micro_store_blobs (namespace, key, id, size) VALUES (%s, %s, %s, %s)"
                " ON CONFLICT (namespace, key) DO UPDATE"
                " SET id = excluded.id, size = excluded.size",
                (namespace, key, id, size),
            )
            if replaced is not None:
                await _leave(connection, namespace, replaced[0])
            return None, True

        await self._database.transact(namespace, job)

    async def _due(self, namespace: str, id: str) -> None:
        async def job(connection: Connection) -> None:
            await connection.execute(
                "UPDATE micro_store_leftovers SET due = now() WHERE id = %s", (id,)
            )

        await self._database.ask(namespace, job)

    async def read(self, namespace: str, key: str) -> AsyncGenerator[bytes, None]:
        found = await self._one(
            namespace,
            "SELECT id, size FROM micro_store_blobs WHERE namespace = %s AND key = %s",
            namespace,
            key,
        )
        if found is None:
            raise NotFound("store", f"no blob {key!r}")
        id, left = found
        at = 0
        while left > 0:
            row = await self._one(
                namespace,
                "SELECT data FROM micro_store_pieces WHERE id = %s AND at = %s",
                id,
                at,
            )
            if row is None:
                raise Unavailable(
                    "store", f"blob {key!r} was replaced over an hour ago; read it again"
                )
            for start in range(0, len(row[0]), _PIECE):
                yield bytes(row[0][start : start + _PIECE])
            left -= len(row[0])
            at += 1

    async def _one(self, namespace: str, sql: Any, *values: object) -> tuple[Any, ...] | None:
        async def job(connection: Connection) -> tuple[Any, ...] | None:
            cursor = connection.cursor(binary=True)
            return await (await cursor.execute(sql, values)).fetchone()

        return await self._database.ask(namespace, job)

    async def delete(self, namespace: str, key: str) -> bool:
        async def job(connection: Connection) -> tuple[bool, bool]:
            gone = await connection.execute(
                "DELETE FROM micro_store_blobs WHERE namespace = %s AND key = %s RETURNING id",
                (namespace, key),
            )
            row = await gone.fetchone()
            if row is not None:
                await _leave(connection, namespace, row[0])
            return row is not None, row is not None

        return await self._database.transact(namespace, job)

    async def list(self, namespace: str, prefix: str) -> list[Blob]:
        where, values = "namespace = %s AND key >= %s", [namespace, prefix]
        if end := after(prefix):
            where += " AND key < %s"
            values.append(end)

        async def job(connection: Connection) -> list[Blob]:
            cursor = await connection.execute(
                f"SELECT key, size FROM micro_store_blobs WHERE {where} ORDER BY key LIMIT %s",
                (*values, MAX_RECORDS + 1),
            )
            return [Blob(key=key, size=size) for key, size in await cursor.fetchall()]

        return await self._database.ask(namespace, job)

    async def sweep(self) -> bool:
        """Remove some of what is due; whether there may be more."""

        async def job(connection: Connection) -> tuple[int, bool]:
            cursor = await connection.execute(
                "DELETE FROM micro_store_leftovers WHERE id IN (SELECT id FROM"
                " micro_store_leftovers WHERE due <= now() ORDER BY due LIMIT %s) RETURNING id",
                (_SWEPT,),
            )
            ids = [row[0] for row in await cursor.fetchall()]
            if ids:
                await connection.execute(
                    "DELETE FROM micro_store_pieces WHERE id = ANY(%s)", (ids,)
                )
            return len(ids), bool(ids)

        return await self._database.transact(EVERYTHING, job) == _SWEPT

    async def adopt(self) -> bool:
        """Enter whose they are with some of the pieces that were written before that was; whether
        there may be more."""

        async def job(connection: Connection) -> int:
            cursor = await connection.execute(
                "UPDATE micro_store_pieces AS p SET namespace = found.namespace FROM"
                " (SELECT p.id, p.at, b.namespace FROM micro_store_pieces AS p"
                " JOIN micro_store_blobs AS b ON b.id = p.id WHERE p.namespace IS NULL"
                f" LIMIT {_ADOPTED}) AS found WHERE p.id = found.id AND p.at = found.at"
            )
            return cursor.rowcount

        return await self._database.ask(EVERYTHING, job) == _ADOPTED


async def _leave(connection: Connection, namespace: str, id: str) -> None:
    await connection.execute(
        "INSERT INTO micro_store_leftovers (id, due, namespace)"
        " VALUES (%s, now() + '1 hour'::interval, %s) ON CONFLICT (id) DO NOTHING",
        (id, namespace),
    )
