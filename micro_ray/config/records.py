"""The records of config in a store, all in the platform's own namespace: tenants, who may read the
stores of theirs, do not come by them.

Database ``config``, a table per namespace: ``document`` is the newest document, and
``version/<12 digits>`` an entry per version. A write puts both in one transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import TypeVar, cast

import msgspec

from micro_ray.config.document import Document, Entry, Leaf, undone
from micro_ray.errors import Conflict, InternalError, NotFound
from micro_ray.store import Action, Change, Delete, Operation, Put, Store

__all__ = ["Head", "Records"]

T = TypeVar("T")

DATABASE = "config"
HEAD = "document"
PREFIX = "version/"
#: Entries that are read at once on the way back.
BATCH = 16


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The newest document and the version of its record (0: none yet)."""

    document: Document
    record: int


class Records:
    """``space`` is the store's namespace that holds them, ``history`` how many versions are
    kept."""

    def __init__(self, store: Store, space: str, history: int) -> None:
        self._store = store
        self._space = space
        self._history = history
        #: The newest documents by namespace: what has not changed is not parsed again.
        self._parsed: dict[str, Head] = {}

    async def head(self, namespace: str) -> Head:
        """The newest document, an empty one where nothing was written."""
        try:
            record = await self._store.read(
                HEAD, database=DATABASE, table=namespace, namespace=self._space
            )
        except NotFound:
            return Head(document=Document(), record=0)
        known = self._parsed.get(namespace)
        if known is None or known.record != record.version:
            document = _decode(record.value, Document, namespace)
            known = Head(document=document, record=record.version)
            self._parsed[namespace] = known
        return known

    async def write(self, namespace: str, head: Head, document: Document, entry: Entry) -> None:
        """Put the next document and its entry in the place of ``head``. Raises Conflict when it is
        no longer the newest."""
        gone = entry.version - self._history
        rows: list[Operation] = [
            Put(key=HEAD, table=namespace, value=_encode(document), expected=head.record),
            Put(key=_key(entry.version), table=namespace, value=_encode(entry), expected=0),
            # Two at a time, so that a history that was made shorter gets there.
            *(Delete(key=_key(n), table=namespace) for n in (gone, gone - 1) if n > 0),
        ]
        await self._store.transact(rows, database=DATABASE, namespace=self._space)

    async def reseal(self, namespace: str, head: Head, document: Document) -> None:
        """Put the same document, sealed otherwise. Raises Conflict as :meth:`write`."""
        row = Put(key=HEAD, table=namespace, value=_encode(document), expected=head.record)
        await self._store.transact([row], database=DATABASE, namespace=self._space)

    async def entry(self, namespace: str, version: int) -> Entry:
        """Raises Conflict when it is no longer kept."""
        try:
            record = await self._store.read(
                _key(version), database=DATABASE, table=namespace, namespace=self._space
            )
        except NotFound:
            raise Conflict(
                "config",
                f"version {version} is no longer kept ({self._history} are, config.history)",
            ) from None
        return _decode(record.value, Entry, namespace)

    async def back(self, namespace: str, newest: int) -> AsyncGenerator[Entry, None]:
        """The entries from ``newest`` down, as far as they are kept."""
        while newest > 0:
            numbers = range(newest, max(0, newest - BATCH), -1)
            found = await asyncio.gather(
                *(self.entry(namespace, n) for n in numbers), return_exceptions=True
            )
            for item in found:
                if isinstance(item, Conflict):
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
            newest -= BATCH

    async def leaves(self, namespace: str, document: Document, version: int) -> dict[str, Leaf]:
        """The leaves of an older version. Raises NotFound for one that has not been, Conflict for
        one that is no longer kept."""
        if version > document.version:
            raise NotFound(
                "config", f"version {version} has not been; the newest is {document.version}"
            )
        if version == 0:
            return {}
        leaves = dict(document.leaves)
        at = document.version
        async with contextlib.aclosing(self.back(namespace, document.version)) as entries:
            while at > version and (entry := await anext(entries, None)) is not None:
                undone(leaves, entry)
                at -= 1
        if at > version:
            raise Conflict(
                "config",
                f"version {version} is no longer kept; the oldest is {at} "
                f"({self._history} are kept, config.history)",
            )
        return leaves

    async def namespaces(self) -> list[str]:
        """Those that have had a document."""
        return await self._store.tables(DATABASE, namespace=self._space)

    async def revision(self) -> int:
        """The store's revision, to follow from."""
        return await self._store.revision(namespace=self._space)

    async def follow(self, namespace: str, revision: int) -> AsyncGenerator[int, None]:
        """The numbers of the versions written after a revision of the store."""
        watch = self._store.watch(
            revision=revision,
            prefix=PREFIX,
            database=DATABASE,
            table=namespace,
            namespace=self._space,
        )
        async with contextlib.aclosing(cast("AsyncGenerator[Change, None]", watch)) as changes:
            async for change in changes:
                if change.action is Action.PUT:
                    yield int(change.key.removeprefix(PREFIX))


def _key(version: int) -> str:
    return f"{PREFIX}{version:012}"


_encode = msgspec.json.Encoder().encode


def _decode(value: bytes, kind: type[T], namespace: str) -> T:
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InternalError(
            "config", f"a record of config of {namespace} cannot be read: {error}"
        ) from None
