"""A word for what guards follow as it is: who has the same has the same word, whoever told him.

With it a follower whose line broke goes on with another source, which looks the word up among
those of its last changes and tells what has come since. It is a sum of keyed hashes, one a record,
so that a change costs one; the key comes from what is sealed, so that nobody who makes rules can
aim at a word.
"""

from __future__ import annotations

import hashlib

__all__ = ["Marks"]

SIZE = 16


class Marks:
    def __init__(self) -> None:
        self._secret = b""
        self._values: dict[str, bytes] = {}
        self._sum = 0

    @property
    def mark(self) -> str:
        return f"{self._sum % 2 ** (8 * SIZE):0{2 * SIZE}x}"

    def key(self, secret: bytes) -> None:
        """From now on with this secret, of which nobody is told."""
        self._secret = hashlib.blake2b(secret).digest()
        self._sum = sum(self._hash(key, value) for key, value in self._values.items())

    def put(self, key: str, value: bytes) -> None:
        self.remove(key)
        self._values[key] = hashlib.blake2b(value, digest_size=SIZE).digest()
        self._sum += self._hash(key, self._values[key])

    def remove(self, key: str) -> None:
        value = self._values.pop(key, None)
        if value is not None:
            self._sum -= self._hash(key, value)

    def _hash(self, key: str, value: bytes) -> int:
        made = hashlib.blake2b(value + key.encode(), digest_size=SIZE, key=self._secret)
        return int.from_bytes(made.digest(), "big")
