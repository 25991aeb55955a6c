"""A door's gate, supplied: its line to the limiter and the rules of its namespaces, kept by
themselves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator
from typing import cast

from micro_ray.config import Version
from micro_ray.errors import MicroError
from micro_ray.limits.gate import Gate
from micro_ray.limits.rules import ROOT, Rules
from micro_ray.limits.stored import standing
from micro_ray.network import Stream
from micro_ray.wire.config import RemoteConfig
from micro_ray.wire.limits import MAX_ASKS, NAME, Granted, Said
from micro_ray.wire.remote import Caller, from_json, to_json

__all__ = ["Supply"]

log = logging.getLogger(__name__)

#: Seconds between attempts to reach the limiter or config: first, and at most.
BACKOFF = (0.02, 0.5)
#: Seconds without an answer after which the limiter is taken for gone.
LATE = 1.0


class Supply:
    """An ``async with`` around a gate. It never raises: without a limiter in reach the gate is
    alone and attempts go on, without config the rules that were good last hold. The limiter is not
    called before there is a rule.

    ``own`` is the namespace whose rules are followed from the start.
    """

    def __init__(self, gate: Gate, caller: Caller, *, own: str = "micro") -> None:
        self._gate = gate
        self._caller = caller
        self._config = RemoteConfig(caller)
        self._own = own
        self._tasks: list[asyncio.Task[None]] = []
        self._following: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Supply:
        self._gate.follow(self._own)
        self._tasks = [asyncio.create_task(self._attach()), asyncio.create_task(self._enter())]
        return self

    async def __aexit__(self, *exc: object) -> None:
        tasks = [*self._tasks, *self._following.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- the limiter -------------------------------------------------------------------------------

    async def _attach(self) -> None:
        await self._gate.ruled.wait()
        pause = BACKOFF[0]
        while True:
            try:
                async with await self._caller.open(NAME, "Limits.Lend") as stream:
                    await self._send(stream, Said(asks=tuple(self._gate.joined())))
                    pause = BACKOFF[0]
                    await self._borrow(stream)
            except (MicroError, TimeoutError) as error:
                if not self._gate.stale:
                    log.warning("limits are this door's own part for now: %s", error)
            except Exception:
                log.exception("the line to the limiter")
            self._gate.alone()
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, BACKOFF[1])

    async def _borrow(self, stream: Stream) -> None:
        """Speak and hear until the line ends. Raises what ends it."""
        asked: list[float] = []
        both = [
            asyncio.create_task(self._hear(stream, asked)),
            asyncio.create_task(self._speak(stream, asked)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in both:
                if task.done():
                    task.result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _hear(self, stream: Stream, asked: list[float]) -> None:
        while (message := await stream.receive()) is not None:
            asked.clear()
            granted = from_json(message, Granted, NAME)
            self._gate.hear(granted.doors, granted.grants)

    async def _speak(self, stream: Stream, asked: list[float]) -> None:
        while True:
            asks = await self._gate.words()
            now = time.monotonic()
            if asked and now > asked[0] + LATE:
                raise TimeoutError(f"the limiter has not answered for {LATE:g} s")
            for first in range(0, len(asks), MAX_ASKS):
                asked.append(now)
                await self._send(stream, Said(asks=tuple(asks[first : first + MAX_ASKS])))

    async def _send(self, stream: Stream, said: Said) -> None:
        async with asyncio.timeout(LATE):
            await stream.send(to_json(said))

    # -- the rules ---------------------------------------------------------------------------------

    async def _enter(self) -> None:
        while True:
            namespace = await self._gate.entered()
            for left in [n for n in self._following if not self._gate.follows(n)]:
                self._following.pop(left).cancel()
            old = self._following.get(namespace)
            if old is None or old.done():
                self._following[namespace] = asyncio.create_task(self._follow(namespace))

    async def _follow(self, namespace: str) -> None:
        pause, said = BACKOFF[0], ""
        while True:
            try:
                document = await self._config.version(namespace=namespace)
                await self._read(namespace)
                pause, said = BACKOFF[0], ""
                watch = self._config.watch(ROOT, version=document, namespace=namespace)
                versions = cast("AsyncGenerator[Version, None]", watch)
                async with contextlib.aclosing(versions):
                    async for _ in versions:
                        await self._read(namespace)
            except MicroError as error:
                if str(error) != said:
                    said = str(error)
                    log.info("the limits of %s are not followed for now: %s", namespace, error)
            except Exception:
                log.exception("the limits of %s", namespace)
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(pause * 2, BACKOFF[1])

    async def _read(self, namespace: str) -> None:
        """The rules as they are now; what cannot be is said, and those before stay."""
        now = await standing(self._config, namespace)
        self._gate.rule(namespace, Rules(now.rules, now.version, now.store, now.events))
        if now.problem:
            log.warning("limits of %s in config that are not in force: %s", namespace, now.problem)
