"""Listings of the records of a table, whole or by their keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from micro_ray.store import MAX_KEY
from micro_ray.store.postgres_statement import Statement
from micro_ray.store.prefix import after

__all__ = ["Lists"]

#: After all keys: longer than any, of the last of all characters.
_LAST = "\U0010ffff" * (MAX_KEY // 4 + 1)


class Lists:
    """``columns`` are those of a record with their types and ``now`` is the SQL of the present
    time."""

    def __init__(self, columns: Mapping[str, str], now: str) -> None:
        whole = {**columns, now: "float8"}
        self._records = {order: _statement(whole, order, now) for order in ("asc", "desc")}
        self._keys = {order: _statement({"key": "text"}, order, now) for order in ("asc", "desc")}
        self.statements = [*self._records.values(), *self._keys.values()]

    def records(self, order: str) -> Statement:
        return self._records[order]

    def keys(self, order: str) -> Statement:
        return self._keys[order]

    def values(
        self, place: tuple[str, str, str], prefix: str, suffix: str, limit: int, offset: int
    ) -> dict[str, Any]:
        """The parameters of all of them, but for the present time."""
        namespace, db, tbl = place
        return {
            "ns": namespace, "db": db, "tbl": tbl, "prefix": prefix, "end": after(prefix) or _LAST,
            "suffix": suffix, "tail": len(suffix), "limit": limit, "offset": offset,
        }  # fmt: skip


def _statement(columns: Mapping[str, str], order: str, now: str) -> Statement:
    """A range over the primary key for the prefix; never LIKE, whose wildcards are data."""
    return Statement(
        f"SELECT {', '.join(columns)} FROM micro_store_records WHERE namespace = %(ns)s::text"
        " AND db = %(db)s::text AND tbl = %(tbl)s::text"
        " AND key >= %(prefix)s::text AND key < %(end)s::text"
        " AND (%(tail)s::int4 = 0 OR right(key, %(tail)s::int4) = %(suffix)s::text)"
        f" AND (expires IS NULL OR expires > {now})"
        f" ORDER BY key {order} LIMIT %(limit)s::int8 OFFSET %(offset)s::int8",
        list(columns.values()),
    )
