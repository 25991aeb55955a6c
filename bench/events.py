"""Events: an acknowledged publish, against a plain insert that is flushed as it is, and against
nats-py on the same server.

All of one table write to one disk in turn. ``raw`` is one thread with one connection of sqlite3 in
WAL with ``synchronous=FULL`` that commits each insert: what an application would do without a
platform.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench.measure import Sample, interleave, quantile, table
from micro_ray.events import Events
from micro_ray.events.jetstream import JetStreamEvents
from micro_ray.events.sqlite import SqliteEvents
from micro_ray.nats_url import parse
from tests.fixtures.events import over_frames
from tests.fixtures.nats import jetstream

__all__ = ["run"]

PAYLOAD = os.urandom(256)
RAW = "raw sqlite3, one at a time"


class Raw:
    """The plain insert, in a thread as any asyncio application must have it."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute(
            "CREATE TABLE events (sequence INTEGER PRIMARY KEY, id TEXT UNIQUE, time REAL,"
            " payload BLOB, metadata TEXT)"
        )

    def insert(self, count: int) -> list[float]:
        took = []
        for _ in range(count):
            begun = time.perf_counter()
            self._connection.execute(
                "INSERT INTO events (id, time, payload, metadata) VALUES (?, ?, ?, '{}')",
                (os.urandom(16).hex(), time.time(), PAYLOAD),
            )
            took.append(time.perf_counter() - begun)
        return took

    def close(self) -> None:
        self._connection.close()


def _sample(took: list[float], elapsed: float) -> Sample:
    return Sample(rate=len(took) / elapsed, p50=quantile(took, 0.5), p99=quantile(took, 0.99))


def _raw(raw: Raw, count: int) -> Callable[[], Awaitable[Sample]]:
    async def sample() -> Sample:
        begun = time.perf_counter()
        took = await asyncio.to_thread(raw.insert, count)
        return _sample(took, time.perf_counter() - begun)

    return sample


def _publish(events: Events, count: int, at_once: int) -> Callable[[], Awaitable[Sample]]:
    async def sample() -> Sample:
        took: list[float] = []

        async def lane(share: int) -> None:
            for _ in range(share):
                begun = time.perf_counter()
                await events.publish("bench", PAYLOAD)
                took.append(time.perf_counter() - begun)

        begun = time.perf_counter()
        await asyncio.gather(*(lane(count // at_once) for _ in range(at_once)))
        return _sample(took, time.perf_counter() - begun)

    return sample


def _raw_jetstream(client: Any, count: int, at_once: int) -> Callable[[], Awaitable[Sample]]:
    """nats-py's own acknowledged publish, with an id that JetStream looks for."""
    stream = client.jetstream()

    async def sample() -> Sample:
        took: list[float] = []

        async def lane(share: int) -> None:
            for _ in range(share):
                begun = time.perf_counter()
                headers = {"Nats-Msg-Id": os.urandom(16).hex()}
                await stream.publish("raw.events", PAYLOAD, headers=headers)
                took.append(time.perf_counter() - begun)

        begun = time.perf_counter()
        await asyncio.gather(*(lane(count // at_once) for _ in range(at_once)))
        return _sample(took, time.perf_counter() - begun)

    return sample


async def run(*, quick: bool) -> str:
    """Over SQLite and over JetStream."""
    return f"{await _sqlite(quick)}\n\n{await _jetstream(quick)}"


async def _jetstream(quick: bool) -> str:
    import nats

    count, rounds = (1000, 3) if quick else (2000, 15)
    parts = []
    async with jetstream() as server:
        client = await nats.connect(f"nats://{server.address}")
        await client.jetstream().add_stream(name="raw", subjects=["raw.>"])
        place = parse(f"nats://{server.address}")
        with tempfile.TemporaryDirectory(prefix="be-") as name:
            async with (
                JetStreamEvents(place, patience=10) as events,
                over_frames(events, Path(name)) as remote,
            ):
                for at_once in (1, 32):
                    figures = await interleave(
                        {
                            "events on JetStream": _publish(events, count, at_once),
                            "nats-py": _raw_jetstream(client, count, at_once),
                            "frames, one process": _publish(remote, count, at_once),
                        },
                        rounds=rounds,
                    )
                    title = f"Acknowledged publish of 256 bytes on one NATS, {at_once} at a time"
                    parts.append(table(title, figures, "events on JetStream"))
        await client.close()
    return "\n\n".join(parts)


async def _sqlite(quick: bool) -> str:
    count, rounds = (200, 1) if quick else (1000, 7)
    with tempfile.TemporaryDirectory(prefix="be-") as name:
        folder = Path(name)
        raw = Raw(folder / "raw.db")
        async with SqliteEvents(folder / "events") as events, over_frames(events, folder) as remote:
            figures = await interleave(
                {
                    RAW: _raw(raw, count),
                    "backend, one at a time": _publish(events, count, 1),
                    "frames, one at a time": _publish(remote, count, 1),
                    "backend, 32 at once": _publish(events, 8 * count, 32),
                    "frames, 32 at once": _publish(remote, 8 * count, 32),
                },
                rounds=rounds,
            )
        raw.close()
    return table("Acknowledged publish of 256 bytes (flushed)", figures, RAW)
