"""The tables of a SQLite store, and what one operation does to them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from micro_ray.store import HISTORY, Action, Check, Operation, Put, checks

__all__ = ["COLUMNS", "SCHEMA", "Row", "apply", "delete", "row_of"]

SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    db TEXT NOT NULL, tbl TEXT NOT NULL, key TEXT NOT NULL,
    value BLOB NOT NULL, metadata TEXT NOT NULL, expires REAL, version INTEGER NOT NULL,
    PRIMARY KEY (db, tbl, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_expires ON records (expires) WHERE expires IS NOT NULL;
CREATE TABLE IF NOT EXISTS tables (
    db TEXT NOT NULL, tbl TEXT NOT NULL, PRIMARY KEY (db, tbl)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS changes (
    revision INTEGER PRIMARY KEY, action TEXT NOT NULL,
    db TEXT NOT NULL, tbl TEXT NOT NULL, key TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS blobs (
    key TEXT PRIMARY KEY, file TEXT NOT NULL, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counter (one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER);
INSERT OR IGNORE INTO counter VALUES (1, 0);
"""

COLUMNS = "key, value, metadata, expires, version"


@dataclass(frozen=True, slots=True)
class Row:
    key: str
    value: bytes
    metadata: Mapping[str, str]
    expires: float | None
    version: int


def apply(connection: sqlite3.Connection, database: str, row: Operation, now: float) -> int:
    place = (database, row.table, row.key)
    found = connection.execute(
        "SELECT version, expires FROM records WHERE db = ? AND tbl = ? AND key = ?", place
    ).fetchone()
    live = found is not None and (found[1] is None or found[1] > now)
    version = found[0] if live else 0
    if row.expected is not None and row.expected != version:
        raise checks.conflict("/".join(place), row.expected, version)
    if isinstance(row, Check):
        return 0
    if isinstance(row, Put):
        number = _next(connection, Action.PUT, place)
        connection.execute("INSERT OR IGNORE INTO tables VALUES (?, ?)", place[:2])
        connection.execute(
            "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                *place,
                row.value,
                json.dumps(dict(row.metadata)),
                None if row.expiry is None else now + row.expiry,
                number,
            ),
        )
        return number
    if found is not None:
        delete(connection, *place)
    return 0


def delete(connection: sqlite3.Connection, database: str, table: str, key: str) -> None:
    place = (database, table, key)
    connection.execute("DELETE FROM records WHERE db = ? AND tbl = ? AND key = ?", place)
    _next(connection, Action.DELETE, place)


def _next(connection: sqlite3.Connection, action: Action, place: tuple[str, str, str]) -> int:
    """The next version, entered in the history."""
    number = int(
        connection.execute(
            "UPDATE counter SET revision = revision + 1 RETURNING revision"
        ).fetchone()[0]
    )
    connection.execute("INSERT INTO changes VALUES (?, ?, ?, ?, ?)", (number, action.value, *place))
    if number % 100 == 0:
        connection.execute("DELETE FROM changes WHERE revision <= ?", (number - HISTORY,))
    return number


def row_of(found: Sequence[Any]) -> Row:
    return Row(found[0], bytes(found[1]), json.loads(found[2]), found[3], found[4])
