"""Records as they cross.

Values cross JSON as text when they are text, and as base64 otherwise; ``encoding`` says which
(``text`` or ``base64``). Writers may send either.
"""

from __future__ import annotations

import base64
import contextlib
import re
from dataclasses import dataclass, field

from micro_ray.errors import BadRequest
from micro_ray.store import DEFAULT, Check, Delete, Operation, Put, Record

__all__ = [
    "Records",
    "WireOperation",
    "WireRecord",
    "from_text",
    "from_wire",
    "to_operation",
    "to_text",
    "to_wire",
]

_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_ESCAPED = (b'"', b"\\", b"\t", b"\n", b"\r")
_LARGE = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class WireRecord:
    """A record as it crosses."""

    key: str
    value: str = ""
    encoding: str = "text"
    metadata: dict[str, str] = field(default_factory=dict)
    expiry: float | None = None
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    records: list[WireRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class WireOperation:
    """One step of a transaction: ``kind`` is put, delete or check."""

    kind: str
    key: str
    value: str = ""
    encoding: str = "text"
    table: str = DEFAULT
    metadata: dict[str, str] = field(default_factory=dict)
    expiry: float | None = None
    expected: int | None = None


def to_text(value: bytes) -> tuple[str, str]:
    """Text where people can read it. Not with control characters, which JSON makes six times as
    long, and not large and full of what it escapes: a value must fit a message."""
    dense = len(value) > _LARGE and sum(map(value.count, _ESCAPED)) > len(value) // 3
    if not dense and not _CONTROL.search(value):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode(), "text"
    return base64.b64encode(value).decode(), "base64"


def from_text(value: str, encoding: str, where: str = "store") -> bytes:
    """Raises BadRequest of the service ``where``."""
    if encoding == "text":
        try:
            return value.encode()
        except UnicodeEncodeError:
            raise BadRequest(where, "value is not valid Unicode; send it as base64") from None
    if encoding != "base64":
        raise BadRequest(where, f"encoding {encoding!r} is neither 'text' nor 'base64'")
    try:
        return base64.b64decode(value, validate=True)
    except ValueError as error:  # also what has other than ASCII
        raise BadRequest(where, f"value is not base64: {error}") from None


def to_wire(record: Record) -> WireRecord:
    value, encoding = to_text(record.value)
    return WireRecord(
        key=record.key,
        value=value,
        encoding=encoding,
        metadata=dict(record.metadata),
        expiry=record.expiry,
        version=record.version,
    )


def from_wire(record: WireRecord) -> Record:
    return Record(
        key=record.key,
        value=from_text(record.value, record.encoding),
        metadata=record.metadata,
        expiry=record.expiry,
        version=record.version,
    )


def to_operation(row: WireOperation) -> Operation:
    if row.kind == "put":
        return Put(
            key=row.key,
            value=from_text(row.value, row.encoding),
            table=row.table,
            metadata=row.metadata,
            expiry=row.expiry,
            expected=row.expected,
        )
    if row.kind == "delete":
        return Delete(key=row.key, table=row.table, expected=row.expected)
    if row.kind == "check":
        if row.expected is None:
            raise BadRequest("store", f"check of {row.key!r} without an expected version")
        return Check(key=row.key, table=row.table, expected=row.expected)
    raise BadRequest("store", f"kind {row.kind!r} is not put, delete or check")
