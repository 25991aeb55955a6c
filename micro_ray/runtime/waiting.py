"""Waiting for what must not be left half done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["in_thread", "to_its_end"]

T = TypeVar("T")


async def to_its_end(future: asyncio.Future[Any]) -> None:
    """Wait until it has ended, however it does. Who is cancelled meanwhile waits on, also when that
    happens several times, and is cancelled then."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def in_thread(do: Callable[..., T], *args: Any) -> T:
    """Run in a thread. Who is cancelled meanwhile waits for its end: what it opens must be known
    before it can be closed."""
    running = asyncio.ensure_future(asyncio.to_thread(do, *args))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await to_its_end(running)
        running.exception()
        raise
