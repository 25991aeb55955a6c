"""The keys that sign, in one document: an active one, the next, and those that are retired while
their tokens live.

The next is published while the active one still signs: everybody has it before he meets it.
Private halves are sealed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from micro_ray.auth import Identity, Key
from micro_ray.auth.records import KEYS, SHARED, Records, Ring, RingKey, encoded
from micro_ray.auth.tokens import LEEWAY, Signer, public_of
from micro_ray.errors import Conflict, Unavailable
from micro_ray.sealing import KeyFile
from micro_ray.settings import Auth as Settings
from micro_ray.store import Put

__all__ = ["KeyRing"]

#: How often a change is tried over what another replica has just changed.
ATTEMPTS = 10


class KeyRing:
    def __init__(
        self,
        records: Records,
        sealing: KeyFile,
        settings: Settings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._sealing = sealing
        self._settings = settings
        self._clock = clock
        self._signer: Signer | None = None

    async def keys(self) -> list[Key]:
        """All that verify now; made at first use."""
        ring, _ = await self._ring()
        now = self._clock()
        return [row.key for row in ring.keys if not 0 < row.key.until < now]

    async def signer(self) -> Signer:
        """What signs now. A key that is over its time is replaced first."""
        ring, _ = await self._ring()
        row = _of(ring, "active")
        if row.key.created + self._settings.key_ttl < self._clock():
            ring = await self.rotate(None, due=row.key.id)
            row = _of(ring, "active")
        if self._signer is None or self._signer.key != row.key.id:
            keys = await self._sealing.keys()
            private = Ed25519PrivateKey.from_private_bytes(
                keys.open("micro", f"key/{row.key.id}", row.sealed)
            )
            self._signer = Signer(
                private, row.key.id, self._settings.issuer, self._settings.audience
            )
        return self._signer

    async def rotate(self, by: Identity | None, due: str = "") -> Ring:
        """The next key signs from now on, and there is another next. With ``due`` only if that one
        is still active. A next one that was not published for long enough does not sign: Conflict
        says how long to wait."""
        for _ in range(ATTEMPTS):
            ring, version = await self._ring()
            if due and _of(ring, "active").key.id != due:
                return ring
            now = self._clock()
            left = _of(ring, "next").key.created + self._settings.publish - now
            if left > 0:
                if due:
                    return ring  # the one that is due signs on until then
                raise Conflict(
                    "auth",
                    f"the next key was published only just, and guards may lack it: wait "
                    f"{math.ceil(left)} s",
                    left,
                )
            longest = max(self._settings.access_ttl, self._settings.process_ttl)
            until = now + longest + 2 * LEEWAY
            kept = []
            for row in ring.keys:
                key = row.key
                if key.state == "active":
                    key = replace(key, state="retired", until=until)
                elif key.state == "next":
                    key = replace(key, state="active", created=now)
                if not 0 < key.until < now:
                    kept.append(RingKey(key=key, sealed=row.sealed))
            made = Ring(keys=(*kept, await self._new("next")))
            try:
                await self._write(made, version, by)
            except Conflict:
                continue
            return made
        raise Unavailable("auth", "others change the keys all the time", 1.0)

    async def _ring(self) -> tuple[Ring, int]:
        for _ in range(ATTEMPTS):
            found = await self._records.get(SHARED, KEYS, Ring)
            if found is not None:
                return found
            made = Ring(keys=(await self._new("active"), await self._new("next")))
            try:
                await self._write(made, 0, None)
            except Conflict:
                continue
        raise Unavailable("auth", "others change the keys all the time", 1.0)

    async def _write(self, ring: Ring, version: int, by: Identity | None) -> None:
        await self._records.write(
            Put(key=KEYS, table=SHARED, value=encoded(ring), expected=version),
            self._records.audit("keys.rotate", by, "micro", _of(ring, "active").key.id),
        )

    async def _new(self, state: str) -> RingKey:
        private = Ed25519PrivateKey.generate()
        x = public_of(private)
        id = x[:16]
        raw = private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        sealing = await self._sealing.keys()
        return RingKey(
            key=Key(id=id, x=x, state=state, created=self._clock()),
            sealed=sealing.seal("micro", f"key/{id}", raw),
        )


def _of(ring: Ring, state: str) -> RingKey:
    return next(row for row in ring.keys if row.key.state == state)
