"""What every backend refuses, said in one place."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Sequence

from micro_ray.errors import BadRequest, Conflict, TooLarge
from micro_ray.store import (
    MAX_BLOB,
    MAX_KEY,
    MAX_METADATA,
    MAX_METADATA_BYTES,
    MAX_NAME,
    MAX_OPERATIONS,
    MAX_VALUE,
    Operation,
    Put,
)

__all__ = ["blob_chunks", "conflict", "key", "name", "operations", "page"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def name(what: str, value: str) -> None:
    """Names are kept as they are, so no two ever fall together."""
    if len(value) > MAX_NAME or not _NAME.fullmatch(value):
        raise BadRequest(
            "store",
            f"{what} {value[:80]!r}: letters, digits, '.', '_', '-', at most {MAX_NAME} characters",
        )


def key(value: str, what: str = "key") -> None:
    if not value:
        raise BadRequest("store", f"{what} is empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise BadRequest("store", f"{what} is not valid Unicode") from None
    if size > MAX_KEY:
        raise TooLarge("store", f"{what} of {size} bytes; {MAX_KEY} allowed")
    if _CONTROL.search(value):
        raise BadRequest("store", f"{what} {value[:80]!r} contains control characters")


def page(limit: int, offset: int, order: str) -> None:
    if limit < 0 or offset < 0:
        raise BadRequest("store", f"limit {limit} and offset {offset} must not be negative")
    if order not in ("asc", "desc"):
        raise BadRequest("store", f"order {order!r} is neither 'asc' nor 'desc'")


def operations(rows: Sequence[Operation]) -> None:
    if not rows:
        raise BadRequest("store", "a transaction without operations")
    if len(rows) > MAX_OPERATIONS:
        raise TooLarge("store", f"{len(rows)} operations; {MAX_OPERATIONS} allowed")
    for row in rows:
        key(row.key)
        name("table", row.table)
        if row.expected is not None and row.expected < 0:
            raise BadRequest("store", f"expected version {row.expected} is negative")
        if isinstance(row, Put):
            _put(row)


def _put(row: Put) -> None:
    if len(row.value) > MAX_VALUE:
        raise TooLarge(
            "store", f"value of {len(row.value)} bytes; {MAX_VALUE} allowed (blobs may be larger)"
        )
    if row.expiry is not None and not 0 < row.expiry < 10**10:
        raise BadRequest("store", f"expiry {row.expiry:g} s is not over 0")
    size = sum(len(k) + len(v) for k, v in row.metadata.items())
    if len(row.metadata) > MAX_METADATA or size > MAX_METADATA_BYTES:
        raise TooLarge(
            "store", f"metadata over {MAX_METADATA} entries or {MAX_METADATA_BYTES} bytes"
        )


def conflict(where: str, expected: int, found: int) -> Conflict:
    have = f"version {found}" if found else "no record"
    want = f"version {expected}" if expected else "no record"
    return Conflict("store", f"{where}: {want} expected, {have} found")


async def blob_chunks(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The pieces of a blob, bounded in all."""
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > MAX_BLOB:
            raise TooLarge("store", f"blob over {MAX_BLOB} bytes")
        yield chunk
