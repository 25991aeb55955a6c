"""A service that has one of everything a caller may meet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from micro_ray import Context, Service, errors


@dataclass
class Item:
    name: str
    count: int = 1


class Everything:
    """``service`` and what its handlers saw."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.seen: list[object] = []
        self.contexts: list[Context] = []
        self.service = service = Service("every-thing", version="v1")
        for handler in (
            self.call, self.item, self.raises, self.dies, self.slow, self.raw, self.where,
            self.count, self.total, self.double, self.breaks, self.endless,
        ):  # fmt: skip
            service.endpoint(handler)

    async def call(self, name: str = "World") -> dict[str, str]:
        return {"message": f"Hello {name}"}

    async def item(self, item: Item) -> Item:
        return Item(item.name * 2, item.count + 1)

    async def raises(self, code: int, detail: str = "as asked") -> None:
        raise errors.make(code, "", detail, 2.5)

    async def dies(self) -> None:
        raise ZeroDivisionError("oh no")

    async def slow(self, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "at last"

    async def raw(self, body: bytes) -> bytes:
        return body[::-1]

    async def where(self, context: Context) -> dict[str, str]:
        self.contexts.append(context)
        return {"node": self.service.node}

    async def count(self, to: int, pause: float = 0) -> AsyncIterator[Item]:
        try:
            for number in range(1, to + 1):
                yield Item("n", number)
                await asyncio.sleep(pause)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise

    async def total(self, items: AsyncIterator[Item]) -> int:
        total = 0
        async for item in items:
            self.seen.append(item)
            total += item.count
        return total

    async def double(self, items: AsyncIterator[Item]) -> AsyncIterator[Item]:
        async for item in items:
            yield Item(item.name, item.count * 2)

    async def breaks(self, after: int) -> AsyncIterator[int]:
        for number in range(after):
            yield number
        raise errors.PreconditionFailed("", "it broke")

    async def endless(self) -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000
