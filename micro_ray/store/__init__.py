"""store: bytes under keys.

A record is in a table of a database of a namespace; databases and tables come into being with their
first record. Every successful write has a version, which grows with each write of the namespace and
is never used twice, also not after a delete: comparing versions is safe.

Backends: ``memory.py`` (one process, gone with it), ``sqlite.py`` (WAL, fsync on commit; several
processes may share the files), ``postgres.py`` (CockroachDB or PostgreSQL; any number of machines).
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = [
    "Action",
    "Blob",
    "Change",
    "Check",
    "Delete",
    "Operation",
    "Put",
    "Record",
    "Store",
    "Usage",
]

DEFAULT = "micro"
#: Limits, in bytes or counts. A value is bounded so that a record fits a message of frames; larger
#: things are blobs.
MAX_KEY = 1024
MAX_VALUE = 8 * 2**20
MAX_NAME = 63
MAX_METADATA = 64
MAX_METADATA_BYTES = 16 * 2**10
MAX_RECORDS = 10_000
MAX_KEYS = 100_000
#: Keys, values and metadata of one answer or one transaction together. Base64 makes 13.4 MiB of
#: it, and a message of frames holds 16.
MAX_ANSWER = 10 * 2**20
MAX_OPERATIONS = 128
MAX_BLOB = 2**30
#: Changes kept for watchers that come back.
HISTORY = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """``expiry`` is what is left in seconds, None for ever. ``version`` is 0 before the write."""

    key: str
    value: bytes = b""
    metadata: Mapping[str, str] = field(default_factory=dict)
    expiry: float | None = None
    version: int = 0


class Action(StrEnum):
    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One write of a namespace. ``revision`` is the version a PUT gave the record; it grows, and a
    transaction's changes follow each other."""

    revision: int
    action: Action
    database: str
    table: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Write a record. ``expected`` None writes whatever is there, 0 only when nothing is, another
    number only over that version."""

    key: str
    value: bytes
    table: str = DEFAULT
    metadata: Mapping[str, str] = field(default_factory=dict)
    expiry: float | None = None
    expected: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Remove a record; ``expected`` as in :class:`Put`."""

    key: str
    table: str = DEFAULT
    expected: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Go on only if the record has this version (0: is not there)."""

    key: str
    expected: int
    table: str = DEFAULT


Operation = Put | Delete | Check


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """What is known of a blob without reading it; ``size`` in bytes."""

    key: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a namespace keeps. ``bytes`` are those of keys and values, without what the backend
    keeps beside; what has expired may be counted until it is removed."""

    records: int = 0
    bytes: int = 0
    blobs: int = 0
    blob_bytes: int = 0


class Store(abc.ABC):
    """The interface; an ``async with`` that opens and closes it.

    Common to all verbs: BadRequest for names and keys that are empty, too long or contain control
    characters; TooLarge for sizes and counts over the limits, naming the limit; Unavailable when
    the backend cannot be written (disk full, locked) and nothing was done; BadGateway when a write
    was sent and it could not be found out whether it was done.
    """

    async def __aenter__(self) -> Store:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @abc.abstractmethod
    async def close(self) -> None:
        """Release what is held; what was acknowledged is safe already."""

    @abc.abstractmethod
    async def read(
        self, key: str, *, database: str = DEFAULT, table: str = DEFAULT, namespace: str = DEFAULT
    ) -> Record:
        """One record. Raises NotFound, also when the table or database is not there."""

    @abc.abstractmethod
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
        """Records whose key begins and ends so, by key in code point order (``asc`` or ``desc``).
        ``%``, ``_`` and ``*`` in keys are plain characters. ``offset`` counts after filtering;
        ``limit`` 0 is all. Raises TooLarge when the answer would be over 10,000 records or 10 MiB:
        ask for less at a time."""

    @abc.abstractmethod
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
        """The keys of :meth:`query`, up to 100,000 of them or 10 MiB."""

    @abc.abstractmethod
    async def transact(
        self,
        operations: Sequence[Operation],
        *,
        database: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> list[int]:
        """All of these or none, over tables of one database; the versions given (0 for checks and
        deletes). Raises Conflict naming the first key whose version is another, TooLarge over 128
        operations or 10 MiB."""

    @abc.abstractmethod
    async def databases(self, *, namespace: str = DEFAULT) -> list[str]:
        """Names of the databases that have a table, sorted."""

    @abc.abstractmethod
    async def tables(self, database: str = DEFAULT, *, namespace: str = DEFAULT) -> list[str]:
        """Names of the tables that have had a record, sorted."""

    @abc.abstractmethod
    async def usage(self, *, namespace: str = DEFAULT) -> Usage:
        """What the namespace keeps, counted now: it takes time with what there is."""

    @abc.abstractmethod
    async def revision(self, *, namespace: str = DEFAULT) -> int:
        """The newest version given, to watch from."""

    @abc.abstractmethod
    def watch(
        self,
        *,
        revision: int,
        prefix: str = "",
        database: str = DEFAULT,
        table: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> AsyncIterator[Change]:
        """Changes after ``revision`` of keys that begin so, in order, each once, for ever; what has
        expired is a DELETE some seconds later. Raises Conflict when that revision is no longer
        kept, and when it is beyond the newest, which it names: read all and watch from now. Raises
        Unavailable when the store is closed."""

    @abc.abstractmethod
    async def write_blob(
        self, key: str, chunks: AsyncIterable[bytes], *, namespace: str = DEFAULT
    ) -> Blob:
        """Write a blob from a stream; it is there when it is there whole. Replaces an older one."""

    @abc.abstractmethod
    def read_blob(self, key: str, *, namespace: str = DEFAULT) -> AsyncIterator[bytes]:
        """A blob in pieces of at most 64 KiB. Raises NotFound."""

    @abc.abstractmethod
    async def delete_blob(self, key: str, *, namespace: str = DEFAULT) -> bool:
        """Remove a blob; whether it was there."""

    @abc.abstractmethod
    async def blobs(self, *, prefix: str = "", namespace: str = DEFAULT) -> list[Blob]:
        """Blobs by key. Raises TooLarge over 10,000: give a longer prefix."""

    # -- in terms of the above -------------------------------------------------------------------

    async def write(
        self,
        key: str,
        value: bytes,
        *,
        metadata: Mapping[str, str] | None = None,
        expiry: float | None = None,
        expected: int | None = None,
        database: str = DEFAULT,
        table: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> Record:
        """Write one record and give it with its version. ``expiry`` in seconds (over 0).
        ``expected`` compares: see :class:`Put`. Raises Conflict."""
        put = Put(
            key=key,
            value=value,
            table=table,
            metadata=metadata or {},
            expiry=expiry,
            expected=expected,
        )
        (version,) = await self.transact([put], database=database, namespace=namespace)
        return Record(key=key, value=value, metadata=metadata or {}, expiry=expiry, version=version)

    async def delete(
        self,
        key: str,
        *,
        expected: int | None = None,
        database: str = DEFAULT,
        table: str = DEFAULT,
        namespace: str = DEFAULT,
    ) -> None:
        """Remove a record. Not an error when it is not there, unless a version is expected."""
        operation = Delete(key=key, table=table, expected=expected)
        await self.transact([operation], database=database, namespace=namespace)
