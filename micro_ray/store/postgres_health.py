"""The examination of PostgreSQL or CockroachDB: what it is, whether it keeps what it confirms, and
whether its clock and its connections will do."""

from __future__ import annotations

import time
from typing import Any

from micro_ray.errors import MicroError
from micro_ray.finding import Finding
from micro_ray.store.postgres_connection import Connection
from micro_ray.store.postgres_database import Database
from micro_ray.store.postgres_isolation import DONE, EVERYTHING, TABLES, obstacle
from micro_ray.store.postgres_url import parse

__all__ = ["examine", "examine_url"]

#: Seconds that a server has to be reached when nothing else waits for it.
PATIENCE = 2.0
#: Seconds that clocks may differ.
SKEW = 2.0
#: The share of connections that may be taken.
CROWDED = 0.9

_SQL = "SELECT version(), extract(epoch FROM clock_timestamp())::float8"
#: PostgreSQL's own.
_SETTINGS = (
    "SELECT pg_is_in_recovery(), current_setting('fsync'), current_setting('full_page_writes'),"
    " current_setting('max_connections')::int8,"
    " (SELECT count(*) FROM pg_stat_activity),"
    " pg_database_size(current_database())"
)


async def examine(database: Database) -> list[Finding]:
    async def facts(connection: Connection) -> tuple[Any, float, Any, Finding]:
        begun = time.time()
        first = await (await connection.execute(_SQL)).fetchone()
        assert first is not None
        # The server looked at its clock somewhere between.
        middle = (begun + time.time()) / 2
        second = None
        if "CockroachDB" not in first[0]:
            second = await (await connection.execute(_SETTINGS)).fetchone()
        return first, middle, second, await _isolation(connection, database)

    try:
        first, now, second, isolation = await database.ask(EVERYTHING, facts)
    except MicroError as error:
        return [_bad(f"{error.detail}; start it, or correct store.url")]
    version, clock = first
    standby = second is not None and second[0]
    told = f"{' '.join(version.split()[:2])} at {database.name}"
    found = [_bad(f"{told} is a standby, which takes no write") if standby else _good(told)]
    if abs(clock - now) > SKEW:
        found.append(
            _bad(f"its clock is {clock - now:+.1f} s from this machine's: let both follow NTP")
        )
    if second is not None:
        found += _kept(second)
    return [*found, isolation]


async def examine_url(url: str, isolation: str = "auto") -> list[Finding]:
    """Of a database that no store has opened. Raises BadRequest for a URL that is none."""
    database = Database(parse(url), size=1, patience=PATIENCE, isolation=isolation)
    try:
        return await examine(database)
    finally:
        await database.close()


async def _isolation(connection: Connection, database: Database) -> Finding:
    """Who keeps namespaces apart here, from what is so by now, whoever has set it."""
    mode = database.isolation
    ours = "namespaces are kept apart by our queries alone"
    if mode == "query":
        return _good(f'{ours}, as store.isolation is "query"')
    cockroach = connection.info.parameter_status("crdb_version") is not None
    why = await obstacle(connection, cockroach=cockroach)
    if why is not None:
        # On CockroachDB that is what is to be expected, unless somebody asked for more.
        return _good(f"{ours}: {why}") if cockroach and mode == "auto" else _bad(f"{ours}: {why}")
    if cockroach and mode == "auto":
        return _good(f'{ours}; store.isolation = "server" has CockroachDB do it')
    row = await (await connection.execute(DONE, (list(TABLES),))).fetchone()
    if row is not None and row[0] == len(TABLES):
        if database.isolated is False:
            return _bad(f"{ours}: it could not be otherwise when the store started; restart it")
        return _good("the database keeps namespaces apart (row level security)")
    return _bad(f"{ours} until a store has started here that may change its tables")


def _kept(row: Any) -> list[Finding]:
    _, fsync, pages, most, taken, size = row
    found = []
    if fsync != "on" or pages != "on":
        found.append(
            _bad(f"fsync={fsync}, full_page_writes={pages}: a power failure can lose or break the "
                 "database; turn both on")
        )  # fmt: skip
    text = f"{size / 2**20:.1f} MiB, {taken} of {most} connections"
    crowded = taken > CROWDED * most
    found.append(_bad(f"{text}: raise max_connections") if crowded else _good(text))
    return found


def _good(text: str) -> Finding:
    return Finding(check="store", good=True, text=text)


def _bad(text: str) -> Finding:
    return Finding(check="store", good=False, text=text)
