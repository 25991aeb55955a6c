"""What every backend refuses, said in one place."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from micro_ray.errors import BadRequest, Conflict, TooLarge
from micro_ray.store import (
    MAX_ANSWER,
    MAX_BLOB,
    MAX_KEY,
    MAX_KEYS,
    MAX_METADATA,
    MAX_METADATA_BYTES,
    MAX_NAME,
    MAX_OPERATIONS,
    MAX_RECORDS,
    MAX_VALUE,
    Blob,
    Operation,
    Put,
)

__all__ = [
    "Answer",
    "answer",
    "answer_blobs",
    "answer_keys",
    "beyond",
    "blob_chunks",
    "conflict",
    "key",
    "name",
    "operations",
    "page",
    "part",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_INT = 2**63


def name(what: str, value: str) -> None:
    """Names are kept as they are, so no two ever fall together."""
    if len(value) > MAX_NAME or not _NAME.fullmatch(value):
        raise BadRequest(
            "store",
            f"{what} {value[:80]!r}: letters, digits, '.', '_', '-', at most {MAX_NAME} characters",
        )


def _size(what: str, value: str) -> int:
    """In bytes as stored."""
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        raise BadRequest("store", f"{what} is not valid Unicode") from None


def part(what: str, value: str) -> None:
    """The beginning or end of keys: anything that a key could hold."""
    size = _size(what, value)
    if size > MAX_KEY:
        raise TooLarge("store", f"{what} of {size} bytes; {MAX_KEY} allowed")


def key(value: str, what: str = "key") -> None:
    if not value:
        raise BadRequest("store", f"{what} is empty")
    part(what, value)
    if _CONTROL.search(value):
        raise BadRequest("store", f"{what} {value[:80]!r} contains control characters")


def page(prefix: str, suffix: str, limit: int, offset: int, order: str) -> None:
    part("prefix", prefix)
    part("suffix", suffix)
    if not (0 <= limit < _MAX_INT and 0 <= offset < _MAX_INT):
        raise BadRequest(
            "store", f"limit {limit} and offset {offset} must not be negative, nor 2**63 and more"
        )
    if order not in ("asc", "desc"):
        raise BadRequest("store", f"order {order!r} is neither 'asc' nor 'desc'")


def operations(rows: Sequence[Operation]) -> None:
    if not rows:
        raise BadRequest("store", "a transaction without operations")
    if len(rows) > MAX_OPERATIONS:
        raise TooLarge("store", f"{len(rows)} operations; {MAX_OPERATIONS} allowed")
    size = 0
    for row in rows:
        key(row.key)
        name("table", row.table)
        if row.expected is not None and row.expected < 0:
            raise BadRequest("store", f"expected version {row.expected} is negative")
        if isinstance(row, Put):
            _put(row)
            size += _weight(row)
    if size > MAX_ANSWER:
        raise TooLarge("store", f"a transaction of {size} bytes; {MAX_ANSWER} allowed")


def _put(row: Put) -> None:
    if not isinstance(row.value, bytes):
        raise BadRequest("store", f"value is {type(row.value).__name__}; bytes are stored")
    if len(row.value) > MAX_VALUE:
        raise TooLarge(
            "store", f"value of {len(row.value)} bytes; {MAX_VALUE} allowed (blobs may be larger)"
        )
    if row.expiry is not None and not 0 < row.expiry < 10**10:
        raise BadRequest("store", f"expiry {row.expiry:g} s is not over 0 and below 1e10")
    if not all(isinstance(text, str) for item in row.metadata.items() for text in item):
        raise BadRequest("store", "metadata has keys or values that are no text")
    size = _metadata_size(row.metadata)
    if len(row.metadata) > MAX_METADATA or size > MAX_METADATA_BYTES:
        raise TooLarge(
            "store", f"metadata over {MAX_METADATA} entries or {MAX_METADATA_BYTES} bytes"
        )


def _metadata_size(metadata: Mapping[str, str]) -> int:
    return sum(_size("metadata", k) + _size("metadata", v) for k, v in metadata.items())


class _Row(Protocol):
    @property
    def key(self) -> str: ...
    @property
    def value(self) -> bytes: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...


R = TypeVar("R", bound=_Row)


def _weight(row: _Row) -> int:
    return len(row.key.encode()) + len(row.value) + _metadata_size(row.metadata)


class Answer(Generic[R]):
    """The rows of one answer as they come."""

    def __init__(self) -> None:
        self.rows: list[R] = []
        self._size = 0

    def add(self, row: R) -> None:
        """Raises TooLarge as soon as there are too many: what is beyond it is never held."""
        self._size += _weight(row)
        if len(self.rows) == MAX_RECORDS or self._size > MAX_ANSWER:
            raise TooLarge(
                "store", f"over {MAX_RECORDS} records or {MAX_ANSWER} bytes; set a limit"
            )
        self.rows.append(row)


def answer(rows: Iterable[R]) -> list[R]:
    """The rows as a list. Raises TooLarge as :class:`Answer` does."""
    kept: Answer[R] = Answer()
    for row in rows:
        kept.add(row)
    return kept.rows


def answer_keys(keys: Iterable[str]) -> list[str]:
    """The same for keys alone."""
    kept: list[str] = []
    size = 0
    for item in keys:
        size += len(item.encode())
        if len(kept) == MAX_KEYS or size > MAX_ANSWER:
            raise TooLarge("store", f"over {MAX_KEYS} keys or {MAX_ANSWER} bytes; set a limit")
        kept.append(item)
    return kept


def answer_blobs(blobs: Sequence[Blob]) -> list[Blob]:
    """The same for a list of blobs."""
    if len(blobs) > MAX_RECORDS:
        raise TooLarge("store", f"over {MAX_RECORDS} blobs; give a longer prefix")
    return list(blobs)


def conflict(where: str, expected: int, found: int) -> Conflict:
    have = f"version {found}" if found else "no record"
    want = f"version {expected}" if expected else "no record"
    return Conflict("store", f"{where}: {want} expected, {have} found")


def beyond(revision: int, newest: int) -> Conflict:
    """For a watch from a revision that was never given here."""
    return Conflict(
        "store",
        f"revision {revision} is beyond the newest, {newest}: it is of another store, or of one "
        "that has lost writes since; read all and watch from now",
    )


async def blob_chunks(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The pieces of a blob, bounded in all."""
    size = 0
    async for chunk in chunks:
        if not isinstance(chunk, bytes | bytearray | memoryview):
            raise BadRequest("store", f"a piece is {type(chunk).__name__}; bytes are stored")
        size += len(chunk)
        if size > MAX_BLOB:
            raise TooLarge("store", f"blob over {MAX_BLOB} bytes")
        yield chunk
