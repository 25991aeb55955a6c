"""Statements that are asked for all the time, as functions of the database that say first whose
they are.

Whom a statement is about must be said before it, in its transaction. Sent in front of it that
costs half of what the statement does, in the driver more than in the server; a function does it on
the way, and what it costs more cannot be measured where there is anything else to do. It is named
after what it does, so members of different versions have each their own.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg

from micro_ray.store.postgres_schema import settle

__all__ = ["Statement", "enter"]

#: A parameter, its format and its type.
_GIVEN = re.compile(r"%\((\w+)\)([sb])(?:::(\w+(?:\[\])?))?")


class Statement:
    """``sql`` has parameters like ``%(name)s``, each with its type (``::text``) where it is first,
    and gives rows of the types ``columns``. ``plain`` is it as such, ``call`` its function, with
    the parameter ``about`` more."""

    __slots__ = ("call", "definition", "name", "plain")

    def __init__(self, sql: str, columns: Sequence[str]) -> None:
        types: dict[str, str] = {"about": "text"}
        formats: dict[str, str] = {"about": "s"}
        for name, form, kind in _GIVEN.findall(sql):
            types.setdefault(name, kind)
            formats.setdefault(name, form)
        order = {name: at for at, name in enumerate(types, 1)}
        body = _GIVEN.sub(lambda found: f"${order[found[1]]}", sql)
        rows = ", ".join(f"o{at} {kind}" for at, kind in enumerate(columns))
        rest = (
            f"({', '.join(types.values())}) RETURNS TABLE ({rows}) LANGUAGE plpgsql AS $do$ BEGIN"
            f" PERFORM set_config('micro.namespace', $1, true); RETURN QUERY {body}; END $do$"
        )
        self.name = f"micro_store_do_{hashlib.sha256(rest.encode()).hexdigest()[:16]}"
        self.definition: LiteralString = f"CREATE OR REPLACE FUNCTION {self.name}{rest}"
        given = ", ".join(f"%({name}){formats[name]}::{kind}" for name, kind in types.items())
        # In bytes, or they would be encoded each time.
        self.plain = sql.encode()
        self.call = f"SELECT * FROM {self.name}({given})".encode()


async def enter(connection: psycopg.AsyncConnection[Any], statements: Sequence[Statement]) -> None:
    """Make the functions that are not there; any number may do so at once."""
    names = [statement.name for statement in statements]
    cursor = await connection.execute(
        "SELECT name FROM unnest(%s::text[]) AS named (name) WHERE to_regproc(name) IS NOT NULL",
        (names,),
    )
    there = {row[0] for row in await cursor.fetchall()}
    for statement in statements:
        if statement.name not in there:
            await settle(connection, statement.definition)
