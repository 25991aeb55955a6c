"""What an examination of something has found."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

__all__ = ["Examined", "Finding", "Findings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """``check`` names what was looked at, ``text`` says what was found and, when it is not
    ``good``, what to do."""

    check: str
    good: bool
    text: str


#: An examination. It never raises: what hinders it is a finding.
Findings = Callable[[], Awaitable[list[Finding]]]


@runtime_checkable
class Examined(Protocol):
    """A backend that can be examined: one with a server behind it."""

    async def examine(self) -> list[Finding]:
        """Whether the server is reached, what it is, and what is wrong with it."""
