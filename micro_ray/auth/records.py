"""The records of auth in a store, all in the platform's own namespace: tenants, who may read the
stores of theirs, do not come by them.

Database ``auth``. Tables: ``accounts`` by ``<namespace>/<id>``; ``names``, whose values are ids;
``sessions``; ``failures`` of logins; ``audit`` in order of time; and ``shared``, what guards
follow: ``keys`` (one document), ``rule/<namespace>/<id>`` and ``revoked/...``. What changes
something puts its audit entry in the same transaction.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import msgspec

from micro_ray.auth import Account, Audit, Identity, Key, Revocation
from micro_ray.errors import InternalError, NotFound
from micro_ray.store import Change, Operation, Put, Record, Store

__all__ = [
    "AccountRow",
    "Records",
    "Ring",
    "RingKey",
    "Session",
    "encoded",
    "parted",
    "revoked_key",
]

T = TypeVar("T")

DATABASE = "auth"
ACCOUNTS, NAMES, SESSIONS = "accounts", "names", "sessions"
FAILURES, AUDIT, SHARED = "failures", "audit", "shared"
KEYS, RULE, REVOKED = "keys", "rule/", "revoked/"
#: Records that are read at a time.
PAGE = 1000


class AccountRow(msgspec.Struct, frozen=True, kw_only=True):
    """``since``: tokens and sessions from before are void."""

    account: Account
    hash: str
    since: float = 0.0


class RingKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key with its sealed private half."""

    key: Key
    sealed: str


class Ring(msgspec.Struct, frozen=True, kw_only=True):
    keys: tuple[RingKey, ...] = ()


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What a refresh token stands for; ``hash`` is of the one that is good now. ``created`` is when
    its account was: another one of the same id, made after that was deleted, is not meant."""

    namespace: str
    id: str
    created: float = 0.0
    started: float
    expires: float
    hash: str


def encoded(value: Any) -> bytes:
    return msgspec.json.encode(value)


def parted(key: str) -> tuple[str, str]:
    """``<namespace>/<id>`` of the end of a key."""
    namespace, _, id = key.partition("/")
    return namespace, id


def revoked_key(revoked: Revocation) -> str:
    """Where a revocation is among what guards follow."""
    what = f"token/{revoked.token}" if revoked.token else f"account/{revoked.account}"
    return f"{REVOKED}{what}"


class Records:
    """``space`` is the namespace of the store that holds them."""

    def __init__(self, store: Store, space: str, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._space = space
        self._clock = clock

    async def get(self, table: str, key: str, kind: type[T]) -> tuple[T, int] | None:
        """A value and its version; None when it is not there."""
        try:
            record = await self._store.read(
                key, database=DATABASE, table=table, namespace=self._space
            )
        except NotFound:
            return None
        return self.decode(record, kind), record.version

    def decode(self, record: Record, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(record.value, type=kind)
        except msgspec.MsgspecError as error:
            raise InternalError("auth", f"the record {record.key} is damaged: {error}") from None

    async def write(self, *operations: Operation) -> list[int]:
        """All or none; the versions given. Raises Conflict when one expects another version."""
        return await self._store.transact(operations, database=DATABASE, namespace=self._space)

    async def page(
        self, table: str, prefix: str = "", *, limit: int = PAGE, offset: int = 0
    ) -> list[Record]:
        return await self._store.query(
            prefix=prefix,
            limit=limit,
            offset=offset,
            database=DATABASE,
            table=table,
            namespace=self._space,
        )

    async def every(self, table: str, prefix: str = "") -> AsyncIterator[Record]:
        offset = 0
        while True:
            records = await self.page(table, prefix, offset=offset)
            for record in records:
                yield record
            if len(records) < PAGE:
                return
            offset += PAGE

    async def count(self, table: str, prefix: str) -> int:
        keys = await self._store.keys(
            prefix=prefix, database=DATABASE, table=table, namespace=self._space
        )
        return len(keys)

    async def revision(self) -> int:
        return await self._store.revision(namespace=self._space)

    def follow(self, revision: int) -> AsyncIterator[Change]:
        """Changes of what guards follow."""
        return self._store.watch(
            revision=revision, database=DATABASE, table=SHARED, namespace=self._space
        )

    # -- what goes along with others -------------------------------------------------------------

    def audit(
        self,
        action: str,
        by: Identity | None,
        namespace: str,
        subject: str = "",
        *,
        allowed: bool = True,
        detail: Mapping[str, Any] | None = None,
    ) -> Put:
        """An entry of what was done, to be put with it."""
        whom = "" if by is None else f"{by.namespace}/{by.id}"
        now = self._clock()
        return self.entry(
            Audit(
                id="",
                time=now,
                action=action,
                by=whom,
                namespace=namespace,
                subject=subject,
                allowed=allowed,
                detail=dict(detail or {}),
            )
        )

    def entry(self, audit: Audit) -> Put:
        id = f"{int(audit.time * 1_000_000):020d}-{os.urandom(6).hex()}"
        return Put(key=id, table=AUDIT, value=encoded(replace(audit, id=id)))

    def revocation(self, revoked: Revocation) -> Put:
        """Kept a little longer than it is needed."""
        left = max(1.0, revoked.until - self._clock() + 60.0)
        return Put(key=revoked_key(revoked), table=SHARED, value=encoded(revoked), expiry=left)
