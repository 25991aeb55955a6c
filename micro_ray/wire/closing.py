"""Leaving what a backend's generator gives."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar, cast

__all__ = ["closing"]

T = TypeVar("T")


def closing(items: AsyncIterator[T]) -> contextlib.aclosing[AsyncGenerator[T, None]]:
    """What a backend's generator holds is released as soon as nobody reads on. Its interface
    promises an iterator; all of ours are generators."""
    return contextlib.aclosing(cast("AsyncGenerator[T, None]", items))
