"""Steady HTTP load with every answer checked: so many requests per second whatever the answers
take, over keep-alive connections, each request tried once. Every other one is a GET, which the
platform may try again by itself; a POST whose replica dies under it is answered with 502."""

from __future__ import annotations

import asyncio
import collections
import time
from dataclasses import dataclass, field

__all__ = ["Load", "Outcome"]


@dataclass
class Outcome:
    """What became of the requests. ``failures`` counts by kind, ``wrong`` are bad answers."""

    sent: int = 0
    good: int = 0
    wrong: list[bytes] = field(default_factory=list)
    failures: collections.Counter[str] = field(default_factory=collections.Counter)
    slowest: float = 0.0

    @property
    def success(self) -> float:
        return self.good / self.sent if self.sent else 0.0


class Load:
    """``async with Load(port, rate=500) as outcome``: runs until the block is left, then waits for
    what is under way."""

    def __init__(self, port: int, *, rate: float, connections: int = 32) -> None:
        self._port = port
        self._rate = rate
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._slots = asyncio.Semaphore(connections * 8)
        self._tasks: set[asyncio.Task[None]] = set()
        self.outcome = Outcome()

    async def __aenter__(self) -> Outcome:
        self._pace = asyncio.create_task(self._run())
        return self.outcome

    async def __aexit__(self, *exc: object) -> None:
        self._pace.cancel()
        await asyncio.gather(self._pace, return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _, writer in self._free:
            writer.close()

    async def _run(self) -> None:
        begun, number = time.monotonic(), 0
        while True:
            number += 1
            delay = begun + number / self._rate - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            await self._slots.acquire()
            task = asyncio.create_task(self._one(number))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _one(self, number: int) -> None:
        outcome, begun = self.outcome, time.monotonic()
        outcome.sent += 1
        writer = None
        try:
            async with asyncio.timeout(10):
                reader, writer = self._kept() or await self._fresh()
                status, body = await self._exchange(reader, writer, number)
            if status != 200:
                outcome.failures[f"{status} {body[:200].decode(errors='replace')}"] += 1
            elif body != b'{"message":"Hello %d"}' % number:
                outcome.wrong.append(body)
            else:
                outcome.good += 1
            self._free.append((reader, writer))
            writer = None
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            outcome.failures[type(error).__name__] += 1
        finally:
            outcome.slowest = max(outcome.slowest, time.monotonic() - begun)
            self._slots.release()
            if writer is not None:
                writer.close()

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection of an earlier request that the server has not closed: every HTTP client
        looks before it uses one again."""
        while self._free:
            reader, writer = self._free.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return None

    async def _fresh(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port)

    @staticmethod
    async def _exchange(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> tuple[int, bytes]:
        body = b'{"name":"%d"}' % number
        writer.write(
            b"POST /helloworld/call HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
            if number & 1
            else b"GET /helloworld?name=%d HTTP/1.1\r\nhost: t\r\n\r\n" % number
        )
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, await reader.readexactly(length)
