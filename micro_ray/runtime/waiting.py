"""Waiting for what must not be left half done."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["to_its_end"]


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
