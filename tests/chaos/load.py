"""Steady HTTP load with every answer checked: so many requests per second whatever the answers
take, over keep-alive connections.

What counts as what:

- The load sends each request **once**. Whatever is not the right answer with status 200 within ten
  seconds is a **failure**: another status, a connection that is refused, reset or ends within the
  answer, a timeout. A failure is not sent again; it is counted under its method and its cause.
- An answer with status 200 that is not the right one is **wrong**: another greeting, or a read of
  the store that lacks what a write was acknowledged for before.
- A connection that the server has closed while nothing was sent on it is left out, as every HTTP
  client does; that is no retry, as there was no request.
- The door tries a **GET** again by itself on another node when the node died with it (decision
  0005; none of the endpoints called here says that it is idempotent, or that it is not). A
  **POST** that was sent to a node is not tried again by anybody: when its node dies under it, it is
  answered with 502, a failure. So POSTs are counted apart; they are half of the load.
"""

from __future__ import annotations

import asyncio
import collections
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["Ask", "Load", "Mixed", "Outcome", "Tally", "hello"]

#: Seconds that a request has.
PATIENCE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request, and whether the body of an answer with status 200 is right."""

    method: str
    sent: bytes
    right: Callable[[bytes], bool]


def _ask(method: str, path: str, body: object, right: Callable[[bytes], bool]) -> Ask:
    head = f"{method} {path} HTTP/1.1\r\nhost: t\r\n"
    if method == "GET":
        return Ask(method=method, sent=f"{head}\r\n".encode(), right=right)
    data = json.dumps(body, separators=(",", ":"))
    head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    return Ask(method=method, sent=f"{head}{data}".encode(), right=right)


def hello(number: int) -> Ask:
    """helloworld, by POST and GET in turn."""
    expected = b'{"message":"Hello %d"}' % number
    if number & 1:
        return _ask("POST", "/helloworld/call", {"name": str(number)}, expected.__eq__)
    return _ask("GET", f"/helloworld?name={number}", None, expected.__eq__)


class Mixed:
    """Of ten requests five are POSTs: three to helloworld, one to caller, which calls helloworld,
    and one that writes to the store. Five are GETs: four to helloworld, and one that reads from the
    store what was acknowledged some time before."""

    def __init__(self, choose: random.Random) -> None:
        self._choose = choose
        self._kept: list[int] = []

    def __call__(self, number: int) -> Ask:
        turn = number % 10
        if turn == 1:
            expected = b'{"messages":["Hello %d"]}' % number
            return _ask("POST", "/caller/call", {"names": [str(number)]}, expected.__eq__)
        if turn == 3:
            return _ask("POST", "/store/write", _record(number), lambda body: self._keep(number))
        if turn == 4 and self._kept:
            record = _record(self._choose.choice(self._kept))
            path = f"/store/read?key={record['key']}"
            return _ask("GET", path, None, lambda body: _holds(body, record))
        return hello(number)

    def _keep(self, number: int) -> bool:
        self._kept.append(number)
        return True


def _record(number: int) -> dict[str, str]:
    return {"key": f"chaos-{number}", "value": f"value {number}"}


def _holds(body: bytes, record: dict[str, str]) -> bool:
    rows = json.loads(body)["records"]
    return [{"key": row["key"], "value": row["value"]} for row in rows] == [record]


@dataclass(frozen=True, slots=True)
class Tally:
    """How many were sent, and how many of them were answered rightly."""

    sent: int = 0
    good: int = 0

    @property
    def success(self) -> float:
        return self.good / self.sent if self.sent else 1.0

    @property
    def lost(self) -> int:
        return self.sent - self.good

    def __str__(self) -> str:
        return f"{self.sent} sent, {self.lost} lost ({self.success:.5f} good)"

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.sent + other.sent, self.good + other.good)

    def __sub__(self, other: Tally) -> Tally:
        return Tally(self.sent - other.sent, self.good - other.good)


@dataclass
class Outcome:
    """What became of the requests. ``failures`` counts by method and cause, ``wrong`` are bad
    answers, ``seconds`` is how long the load has run."""

    gets: Tally = Tally()
    posts: Tally = Tally()
    wrong: list[bytes] = field(default_factory=list)
    failures: collections.Counter[str] = field(default_factory=collections.Counter)
    slowest: float = 0.0
    seconds: float = 0.0

    @property
    def all(self) -> Tally:
        return self.gets + self.posts

    @property
    def good(self) -> int:
        return self.all.good

    def count(self, method: str, tally: Tally) -> None:
        if method == "GET":
            self.gets += tally
        else:
            self.posts += tally


class Load:
    """``async with Load(port, rate=500) as outcome``: runs until the block is left, then waits for
    what is under way. ``ask`` makes the request of a number."""

    def __init__(
        self,
        port: int,
        *,
        rate: float,
        ask: Callable[[int], Ask] = hello,
        connections: int = 32,
    ) -> None:
        self._port = port
        self._rate = rate
        self._ask = ask
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._slots = asyncio.Semaphore(connections * 8)
        self._tasks: set[asyncio.Task[None]] = set()
        self._number = 0
        self._pace: asyncio.Task[None] | None = None
        self.outcome = Outcome()

    async def __aenter__(self) -> Outcome:
        self.go_on()
        return self.outcome

    async def __aexit__(self, *exc: object) -> None:
        await self.pause()

    def go_on(self) -> None:
        """Send, at the rate."""
        assert self._pace is None
        self._pace = asyncio.create_task(self._run())

    async def pause(self) -> None:
        """Send no more, wait for what is under way, close all connections."""
        pace, self._pace = self._pace, None
        if pace is not None:
            pace.cancel()
            await asyncio.gather(pace, return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._free:
            self._free.pop()[1].close()

    async def _run(self) -> None:
        begun, first = time.monotonic(), self._number
        before = self.outcome.seconds
        while True:
            self._number += 1
            delay = begun + (self._number - first) / self._rate - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            await self._slots.acquire()
            self.outcome.seconds = before + time.monotonic() - begun
            task = asyncio.create_task(self._one(self._ask(self._number)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _one(self, ask: Ask) -> None:
        outcome, begun = self.outcome, time.monotonic()
        writer = None
        good = False
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = self._kept() or await self._fresh()
                status, body = await self._exchange(reader, writer, ask)
            if status != 200:
                said = body[:200].decode(errors="replace")
                outcome.failures[f"{ask.method} {status} {said}"] += 1
            elif not ask.right(body):
                outcome.wrong.append(ask.sent + body)
            else:
                good = True
            self._free.append((reader, writer))
            writer = None
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            outcome.failures[f"{ask.method} {type(error).__name__}"] += 1
        finally:
            outcome.count(ask.method, Tally(1, int(good)))
            outcome.slowest = max(outcome.slowest, time.monotonic() - begun)
            self._slots.release()
            if writer is not None:
                writer.close()

    def _kept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection of an earlier request that the server has not closed."""
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
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ask: Ask
    ) -> tuple[int, bytes]:
        writer.write(ask.sent)
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, await reader.readexactly(length)
