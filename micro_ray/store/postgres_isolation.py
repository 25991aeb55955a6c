"""Namespaces kept apart by the database itself (row level security).

Each row has its namespace, and each transaction says by the setting ``micro.namespace`` whose rows
it is about: the server shows and takes those alone, whatever else a statement says. What acts on
all namespaces says :data:`EVERYTHING`. A store begins its connections with a blank setting, which
is refused as soon as there are rows: who forgets to say shall not take a full store for an empty
one. A connection that has never heard of the setting is not bound: a member of a version before
this, that serves until it is replaced, and an operator with a client of his own.

This is against mistakes of ours, not against who can send any SQL: they can set the setting too.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg

from micro_ray.errors import PreconditionFailed
from micro_ray.store.postgres_schema import settle
from micro_ray.store.postgres_statement import Statement, enter

__all__ = ["DONE", "EVERYTHING", "MODES", "SINCE", "TABLES", "isolate", "obstacle", "release"]

log = logging.getLogger(__name__)

#: Said in place of a namespace, by what acts on all of them; no namespace can have this name.
EVERYTHING = "*"
#: By the server where it can, or not at all; by the server or not at all; by our queries alone.
MODES = ("auto", "server", "query")
#: The first CockroachDB with row level security.
SINCE = (25, 2)
#: All that hold something of a namespace.
TABLES: Sequence[LiteralString] = (
    "micro_store_records",
    "micro_store_tables",
    "micro_store_counters",
    "micro_store_changes",
    "micro_store_commits",
    "micro_store_blobs",
    "micro_store_pieces",
    "micro_store_leftovers",
)

#: Who is bound by it: nobody who is a superuser or has BYPASSRLS.
_FREE = "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user"
#: How many of these keep rows apart, from their owner too.
DONE = (
    "SELECT count(*) FROM pg_class AS c WHERE oid = ANY(SELECT to_regclass(t) FROM"
    " unnest(%s::text[]) AS named (t)) AND relrowsecurity AND relforcerowsecurity"
    " AND EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid AND polname = 'micro_namespace')"
)
#: Policies of others, each of which shows what it shows beside ours.
_FOREIGN = (
    "SELECT polname, polrelid::regclass::text FROM pg_policy WHERE polname <> 'micro_namespace'"
    " AND polpermissive AND polrelid = ANY(SELECT to_regclass(t) FROM"
    " unnest(%s::text[]) AS named (t))"
)
#: Whether a row is of those that the transaction is about. Of a row of another namespace is asked
#: whether all are meant: with a blank setting by an error, that of a setting which there is not.
_MINE: LiteralString = (
    "namespace = current_setting('micro.namespace', true) OR"
    " CASE coalesce(current_setting('micro.namespace', true), '*') WHEN '*' THEN true"
    " WHEN '' THEN current_setting('micro.namespace is blank') = '' ELSE false END"
)
#: In these a member of a version before the column leaves it blank. Such rows are found by ids by
#: chance alone, and are gone in a day or get their namespace from the sweep.
_LATE = ("micro_store_commits", "micro_store_pieces", "micro_store_leftovers")
_STATEMENTS: Sequence[LiteralString] = (
    "DROP POLICY IF EXISTS micro_namespace ON {table}",
    f"CREATE POLICY micro_namespace ON {{table}} USING ({{late}}{_MINE}) WITH CHECK ({_MINE})",
    "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
    # Or it would not bind the owner of the tables, which is us.
    "ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
)


async def isolate(
    connection: psycopg.AsyncConnection[Any],
    mode: str,
    statements: Sequence[Statement],
    *,
    cockroach: bool,
    name: str,
) -> bool:
    """Have the server keep namespaces apart, and know the ``statements``; whether it does. With
    "auto" one that cannot is left as it is, which is said in the log where it could be mended.
    Raises PreconditionFailed when the mode is "server" and it cannot."""
    if mode == "query" or (cockroach and mode == "auto"):
        return False
    why = await obstacle(connection, cockroach=cockroach)
    if why is None:
        try:
            await _protect(connection)
            if not cockroach:
                await enter(connection, statements)
        except psycopg.errors.InsufficientPrivilege as error:
            why = f"{error.diag.message_primary}: let the store's user own its tables"
        else:
            return True
    if mode == "server":
        raise PreconditionFailed("store", f'store.isolation is "server", but at {name} {why}')
    log.warning("%s does not keep namespaces apart by itself: %s", name, why)
    return False


async def obstacle(connection: psycopg.AsyncConnection[Any], *, cockroach: bool) -> str | None:
    """Why rows would not be kept apart here, and what to do; None when they would."""
    if cockroach:
        found = release(connection.info.parameter_status("crdb_version") or "")
        if found < SINCE:
            return f"CockroachDB has row level security from v{SINCE[0]}.{SINCE[1]}"
    row = await (await connection.execute(_FREE)).fetchone()
    if row is None or row[0]:
        return (
            "the user is a superuser or has BYPASSRLS, whom row level security does not bind: let "
            "the store have a plain user, that owns its schema"
        )
    if not cockroach:
        row = await (await connection.execute(_FOREIGN, (list(TABLES),))).fetchone()
        if row is not None:
            return f"the policy {row[0]} on {row[1]} lets more through: drop it"
    return None


async def _protect(connection: psycopg.AsyncConnection[Any]) -> None:
    row = await (await connection.execute(DONE, (list(TABLES),))).fetchone()
    if row is not None and row[0] == len(TABLES):
        return
    for table in TABLES:
        late: LiteralString = "namespace IS NULL OR " if table in _LATE else ""
        # One transaction a table: between two statements it would be closed to everybody.
        text = "; ".join(_STATEMENTS).replace("{table}", table).replace("{late}", late)
        await settle(connection, text)


def release(text: str) -> tuple[int, ...]:
    """``CockroachDB CCL v25.2.1 (...)`` as (25, 2)."""
    for word in text.split():
        if word.startswith("v"):
            parts = word[1:].split(".")[:2]
            if all(part.isdigit() for part in parts):
                return tuple(map(int, parts))
    return ()
