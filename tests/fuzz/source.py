"""Bytes as a source of decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Source:
    """Gives decisions until the bytes are used up; then zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        return self._at < len(self._data)

    def below(self, limit: int) -> int:
        """0 to ``limit`` - 1."""
        value = self._data[self._at] if self.more else 0
        self._at += 1
        return value % limit

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def take(self, limit: int) -> bytes:
        """At most so many bytes as they are."""
        size = self.below(limit + 1)
        found = self._data[self._at : self._at + size]
        self._at += size
        return found
