"""Logins that fail make the next ones wait: for an account, and for an address that tries many.

Kept in the store, so that replicas share it and a restart forgets nothing. An attempt is counted
before its secret is looked at, so that a thousand at once are a thousand; one that proves right
takes the account's count away, and its own from the address.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Callable

import msgspec

from micro_ray.auth.records import FAILURES, Records, encoded
from micro_ray.errors import Conflict, TooManyRequests
from micro_ray.store import Delete, Put

__all__ = ["Throttle"]

#: Failures of an address that are free, as many times those of an account.
ADDRESS = 10
#: Seconds that one waits at most, and after which all is forgotten.
LONGEST, FORGOTTEN = 300.0, 3600.0
ATTEMPTS = 20


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    count: int
    until: float


class Throttle:
    """``attempts`` of an account are free."""

    def __init__(
        self, records: Records, attempts: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._records = records
        self._attempts = attempts
        self._clock = clock

    async def begin(self, account: str, source: str) -> None:
        """Count an attempt. Raises TooManyRequests, which says how long to wait."""
        if source:
            await self._count(_source(source), self._attempts * ADDRESS, "this address")
        await self._count(f"account/{account}", self._attempts, "this account")

    async def succeeded(self, account: str, source: str) -> None:
        await self._records.write(Delete(key=f"account/{account}", table=FAILURES))
        key = _source(source)
        found = await self._records.get(FAILURES, key, Failures) if source else None
        if found is not None:
            row = encoded(Failures(count=max(0, found[0].count - 1), until=found[0].until))
            with contextlib.suppress(Conflict):
                await self._records.write(
                    Put(key=key, table=FAILURES, value=row, expected=found[1], expiry=FORGOTTEN)
                )

    async def _count(self, key: str, free: int, what: str) -> None:
        for _ in range(ATTEMPTS):
            found = await self._records.get(FAILURES, key, Failures)
            failures, version = found or (Failures(count=0, until=0.0), 0)
            now = self._clock()
            if failures.until > now:
                left = failures.until - now
                raise TooManyRequests(
                    "auth", f"too many logins of {what} have failed: wait {left:.0f} s", left
                )
            count = failures.count + 1
            wait = 0.0 if count < free else min(LONGEST, 2.0 ** min(count - free, 20))
            row = encoded(Failures(count=count, until=now + wait))
            try:
                await self._records.write(
                    Put(key=key, table=FAILURES, value=row, expected=version, expiry=FORGOTTEN)
                )
            except Conflict:
                continue
            return
        raise TooManyRequests("auth", f"too many logins of {what} at once", 1.0)


def _source(address: str) -> str:
    """The key of an address. Whoever has one of IPv6 has 2**64, which are one here."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return f"source/{address[:64]}"
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return f"source/{ipaddress.ip_network((found, 64), strict=False)}"
    return f"source/{getattr(found, 'ipv4_mapped', None) or found}"
