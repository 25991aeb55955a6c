"""The three kinds of streams: of answers, of requests, and of both."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from micro_ray import Service

service = Service("streaming", description="Counts, sums and echoes")


@dataclass
class Number:
    value: int


@service.endpoint
async def count(to: int = 3, pause: float = 0.0) -> AsyncIterator[Number]:
    """Count from 1, with a pause in seconds between the numbers."""
    for value in range(1, to + 1):
        yield Number(value)
        await asyncio.sleep(pause)


@service.endpoint
async def sum(numbers: AsyncIterator[Number]) -> Number:
    """Add up what comes."""
    total = 0
    async for number in numbers:
        total += number.value
    return Number(total)


@service.endpoint
async def double(numbers: AsyncIterator[Number]) -> AsyncIterator[Number]:
    """Answer each number with twice as much."""
    async for number in numbers:
        yield Number(number.value * 2)


if __name__ == "__main__":
    service.run()
