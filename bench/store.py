"""Reading and writing records, against the same work by the bare drivers on the same disk: sqlite3
and psycopg, each write one row committed with fsync, each read one row by its key."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.measure import Sample, interleave, quantile, table

__all__ = ["run"]

VALUE = b"x" * 256
KEYS = 1000
Work = Callable[[str], Awaitable[object]]


async def _sample(work: Work, in_flight: int, seconds: float) -> Sample:
    took: list[float] = []
    numbers = itertools.count()
    begun = time.perf_counter()
    end = begun + seconds

    async def client() -> None:
        while (at := time.perf_counter()) < end:
            await work(f"key-{next(numbers) % KEYS}")
            took.append(time.perf_counter() - at)

    await asyncio.gather(*(client() for _ in range(in_flight)))
    rate = len(took) / (time.perf_counter() - begun)
    return Sample(rate=rate, p50=quantile(took, 0.5), p99=quantile(took, 0.99))


@contextlib.asynccontextmanager
async def _raw_sqlite(folder: Path) -> AsyncIterator[tuple[Work, Work]]:
    """A connection per thread, two for reading and one for writing, as the store has them."""
    path = folder / "raw.db"

    def connect() -> sqlite3.Connection:
        made = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        made.execute("PRAGMA journal_mode=WAL")
        made.execute("PRAGMA synchronous=FULL")
        return made

    writing = connect()
    writing.execute("CREATE TABLE kv (k TEXT PRIMARY KEY, v BLOB NOT NULL) WITHOUT ROWID")
    readers = [connect(), connect()]
    idle = list(readers)
    loop = asyncio.get_running_loop()

    def put(key: str) -> None:
        writing.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (key, VALUE))

    def get(key: str) -> None:
        connection = idle.pop()
        (value,) = connection.execute("SELECT v FROM kv WHERE k = ?", (key,)).fetchone()
        idle.append(connection)
        if value != VALUE:
            raise SystemExit("bench: a wrong answer")

    with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(2) as reader:
        yield (
            lambda key: loop.run_in_executor(writer, put, key),
            lambda key: loop.run_in_executor(reader, get, key),
        )
    for connection in (writing, *readers):
        connection.close()


@contextlib.asynccontextmanager
async def _raw_psycopg(url: str, size: int) -> AsyncIterator[tuple[Work, Work]]:
    """As many connections as the store has, each used by one client at a time."""
    import psycopg

    idle: asyncio.LifoQueue[psycopg.AsyncConnection[tuple[object, ...]]] = asyncio.LifoQueue()
    for _ in range(size):
        idle.put_nowait(await psycopg.AsyncConnection.connect(url, autocommit=True))
    first = await idle.get()
    await first.execute("CREATE TABLE kv (k TEXT PRIMARY KEY, v BYTEA NOT NULL)")
    idle.put_nowait(first)

    async def put(key: str) -> None:
        connection = await idle.get()
        await connection.execute(
            "INSERT INTO kv VALUES (%s, %s) ON CONFLICT (k) DO UPDATE SET v = excluded.v",
            (key, VALUE),
        )
        idle.put_nowait(connection)

    async def get(key: str) -> None:
        connection = await idle.get()
        cursor = connection.cursor(binary=True)
        row = await (await cursor.execute("SELECT v FROM kv WHERE k = %s", (key,))).fetchone()
        idle.put_nowait(connection)
        if row != (VALUE,):
            raise SystemExit("bench: a wrong answer")

    yield put, get
    while not idle.empty():
        await (await idle.get()).close()


async def run(*, quick: bool) -> str:
    """Aim: the store at least 0.7 of the bare driver, so "first / this" at most 1.4."""
    from micro_ray.store import Store
    from micro_ray.store.postgres import CONNECTIONS, PostgresStore
    from micro_ray.store.sqlite import SqliteStore
    from tests.fixtures.postgres import server

    seconds, rounds = (0.5, 2) if quick else (2.0, 5)

    def verbs(store: Store) -> tuple[Work, Work]:
        return (lambda key: store.write(key, VALUE)), (lambda key: store.read(key))

    tables = []
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mb-")))
        url = stack.enter_context(server(fsync=True)).url()
        pairs = {
            "sqlite": (
                await stack.enter_async_context(_raw_sqlite(folder)),
                verbs(await stack.enter_async_context(SqliteStore(folder / "store"))),
            ),
            "PostgreSQL": (
                await stack.enter_async_context(_raw_psycopg(url, CONNECTIONS)),
                verbs(await stack.enter_async_context(PostgresStore(url))),
            ),
        }
        for name, (raw, store) in pairs.items():
            for put, _ in (raw, store):
                await asyncio.gather(*(put(f"key-{i}") for i in range(KEYS)))
            for at, verb in enumerate(("write", "read")):
                for in_flight in (1, 32):
                    figures = await interleave(
                        {
                            f"{name}, bare": lambda w=raw[at], n=in_flight: _sample(w, n, seconds),
                            f"{name}, store": lambda w=store[at], n=in_flight: _sample(
                                w, n, seconds
                            ),
                        },
                        rounds=rounds,
                    )
                    tables.append(table(f"{verb}, {in_flight} at a time", figures, f"{name}, bare"))
    return "\n\n".join(tables)
