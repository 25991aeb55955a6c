"""Secrets of accounts, by argon2id: hashed and compared in threads, a few at a time.

The cost is OWASP's least for argon2id (19 MiB, two passes, one lane): some 18 ms of a core, so a
flood of logins must not take them all. ``hash`` values say their own parameters; what was hashed
with others is hashed anew when it is next proved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher, Type
from argon2.exceptions import Argon2Error, InvalidHashError

from micro_ray.errors import Unavailable

__all__ = ["Passwords"]

T = TypeVar("T")

MEMORY_KIB, PASSES, LANES = 19_456, 2, 1
#: Threads that hash, and logins that may wait for them.
THREADS, WAITING = 2, 64


class Passwords:
    """An instance has its threads: close it. ``memory`` is in KiB."""

    def __init__(self, *, memory: int = MEMORY_KIB, passes: int = PASSES) -> None:
        self._hasher = PasswordHasher(
            time_cost=passes, memory_cost=memory, parallelism=LANES, type=Type.ID
        )
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="auth-password")
        self._waiting = 0
        #: Of nobody: what a secret is compared with where there is no account, so that the answer
        #: takes as long.
        self._nobody = self._hasher.hash("nobody's secret")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def hash(self, secret: str) -> str:
        """Raises Unavailable when too many wait."""
        return str(await self._run(self._hasher.hash, secret))

    async def proves(self, secret: str, hashed: str | None) -> tuple[bool, bool]:
        """Whether a secret is the one, and whether it should be hashed anew. ``hashed`` is None for
        an account that is not there: then it is not, as slowly."""
        return await self._run(self._compare, secret, hashed)

    def _compare(self, secret: str, hashed: str | None) -> tuple[bool, bool]:
        try:
            self._hasher.verify(self._nobody if hashed is None else hashed, secret)
        except (Argon2Error, InvalidHashError):
            return False, False
        if hashed is None:
            return False, False
        return True, self._hasher.check_needs_rehash(hashed)

    async def _run(self, job: Callable[..., T], *args: str | None) -> T:
        if self._waiting >= WAITING:
            raise Unavailable("auth", f"{WAITING} logins are waiting", 1.0)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, job, *args)
        finally:
            self._waiting -= 1
