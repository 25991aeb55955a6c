"""Accounts: who there is, and how one proves to be it."""

from __future__ import annotations

import contextlib
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from micro_ray.auth import (
    DEFAULT,
    MAX_ACCOUNTS,
    Account,
    Created,
    Identity,
    Kind,
    Revocation,
    checks,
)
from micro_ray.auth.passwords import Passwords
from micro_ray.auth.records import ACCOUNTS, NAMES, AccountRow, Records, encoded
from micro_ray.auth.tokens import LEEWAY
from micro_ray.errors import BadRequest, Conflict, NotFound, TooManyRequests, Unauthorized
from micro_ray.settings import Auth as Settings
from micro_ray.store import Check, Delete, Operation, Put

__all__ = ["Accounts", "new_secret"]


#: Seconds that clocks of replicas may differ for a revocation to hold for what each has issued. New
#: tokens are dated as much later, which is within the leeway of who verifies.
SKEW = 2.0


def new_secret() -> str:
    """256 random bits, as text."""
    return secrets.token_urlsafe(32)


class Accounts:
    def __init__(
        self,
        records: Records,
        passwords: Passwords,
        settings: Settings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._passwords = passwords
        self._settings = settings
        self._clock = clock

    async def find(self, id: str, namespace: str) -> tuple[AccountRow, int]:
        """By id or name. Raises NotFound."""
        found = await self._records.get(ACCOUNTS, f"{namespace}/{id}", AccountRow)
        if found is None:
            named = await self._records.get(NAMES, f"{namespace}/{id}", str)
            if named is not None:
                found = await self._records.get(ACCOUNTS, f"{namespace}/{named[0]}", AccountRow)
        if found is None:
            raise NotFound("auth", f"there is no account {id!r} in {namespace}")
        return found

    async def make(
        self,
        account: Account,
        secret: str,
        by: Identity | None,
    ) -> Created:
        place = f"{account.namespace}/{account.id}"
        if await self._records.count(ACCOUNTS, f"{account.namespace}/") >= MAX_ACCOUNTS:
            raise TooManyRequests("auth", f"{account.namespace} has {MAX_ACCOUNTS} accounts")
        given = checks.secret_of(secret) if secret else new_secret()
        row = AccountRow(account=account, hash=await self._passwords.hash(given))
        # A name is nobody's id, and an id nobody's name.
        taken = await self._records.get(NAMES, place, str)
        if taken is not None and taken[0] != account.id:
            raise Conflict("auth", f"{account.id!r} is the name of another account")
        other = f"{account.namespace}/{account.name}"
        if account.name != account.id and (
            await self._records.get(ACCOUNTS, other, AccountRow) is not None
        ):
            raise Conflict("auth", f"{account.name!r} is the id of another account")
        try:
            await self._records.write(
                Put(key=place, table=ACCOUNTS, value=encoded(row), expected=0),
                Put(key=other, table=NAMES, value=encoded(account.id), expected=0),
                self._records.audit(
                    "account.create",
                    by,
                    account.namespace,
                    account.id,
                    detail={"kind": account.kind, "scopes": list(account.scopes)},
                ),
            )
        except Conflict as error:
            what = "name" if f"/{NAMES}/" in f"/{error.detail}" else "id"
            raise Conflict("auth", f"an account with this {what} already exists") from None
        return Created(account=account, secret=given)

    async def page(self, namespace: str, limit: int, offset: int) -> list[Account]:
        limit = limit or 10_000
        rows = await self._records.page(
            ACCOUNTS, f"{namespace}/", limit=min(limit, 10_000), offset=offset
        )
        return [self._records.decode(row, AccountRow).account for row in rows]

    async def proved(self, found: tuple[AccountRow, int] | None, secret: str) -> int | None:
        """The version of an account's record at which it may log in with this secret; None for what
        is wrong, which takes as long when there is no account."""
        row, version = found or (None, 0)
        right, old = await self._passwords.proves(secret, None if row is None else row.hash)
        if row is None or not right or not row.account.enabled:
            return None
        if not old:
            return version
        made = AccountRow(
            account=row.account, hash=await self._passwords.hash(secret), since=row.since
        )
        key = f"{row.account.namespace}/{row.account.id}"
        # One that somebody else has just changed is hashed anew another time.
        with contextlib.suppress(Conflict):
            (version,) = await self._records.write(
                Put(key=key, table=ACCOUNTS, value=encoded(made), expected=version)
            )
        return version

    async def change_secret(
        self, id: str, old: str | None, new: str, namespace: str, by: Identity
    ) -> str:
        """``old`` is None when it need not be proved."""
        row, version = await self.find(id, namespace)
        if old is None and (by.namespace, by.id) == (namespace, row.account.id):
            raise BadRequest("auth", "one's own secret is changed by one's id, with the old one")
        if old is None:
            _no_more_than(by, row.account)
        if old is not None and not (await self._passwords.proves(old, row.hash))[0]:
            raise Unauthorized("auth", "the old secret is not correct")
        secret = checks.secret_of(new) if new else new_secret()
        hashed = await self._passwords.hash(secret)
        await self._put(row, version, by, "account.secret", hash=hashed)
        return secret

    async def enable(self, id: str, enabled: bool, namespace: str, by: Identity) -> Account:
        row, version = await self.find(id, namespace)
        _no_more_than(by, row.account)
        if (by.namespace, by.id) == (namespace, row.account.id):
            raise BadRequest("auth", "one's own account cannot be enabled or disabled")
        others = () if enabled else await self._not_the_last(row.account)
        action = "account.enable" if enabled else "account.disable"
        account = replace(row.account, enabled=enabled)
        return (await self._put(row, version, by, action, *others, account=account)).account

    async def void(self, id: str, namespace: str, by: Identity) -> None:
        """Make its tokens and sessions void."""
        row, version = await self.find(id, namespace)
        await self._put(row, version, by, "account.revoke")

    async def delete(self, id: str, namespace: str, by: Identity) -> None:
        row, version = await self.find(id, namespace)
        account = row.account
        _no_more_than(by, account)
        if (by.namespace, by.id) == (namespace, account.id):
            raise BadRequest("auth", "Can't delete your own account")
        others = await self._not_the_last(account)
        await self._change(
            account,
            self._since(),
            *others,
            Delete(key=f"{namespace}/{account.id}", table=ACCOUNTS, expected=version),
            Delete(key=f"{namespace}/{account.name}", table=NAMES),
            self._records.audit("account.delete", by, namespace, account.id),
        )

    async def _put(
        self,
        row: AccountRow,
        version: int,
        by: Identity,
        action: str,
        *along: Operation,
        account: Account | None = None,
        hash: str = "",
    ) -> AccountRow:
        """The account changed, and what was issued before void."""
        since = self._since()
        made = AccountRow(account=account or row.account, hash=hash or row.hash, since=since)
        place = made.account
        await self._change(
            place,
            since,
            Put(
                key=f"{place.namespace}/{place.id}",
                table=ACCOUNTS,
                value=encoded(made),
                expected=version,
            ),
            self._records.audit(action, by, place.namespace, place.id),
            *along,
        )
        return made

    def _since(self) -> float:
        """From when tokens are good again: later than any replica has dated one so far."""
        return math.ceil((self._clock() + SKEW) * 1000) / 1000

    async def _change(self, account: Account, since: float, *operations: Operation) -> None:
        revoked = Revocation(
            account=f"{account.namespace}/{account.id}",
            before=since,
            until=since + self._settings.access_ttl + 2 * LEEWAY,
        )
        try:
            await self._records.write(*operations, self._records.revocation(revoked))
        except Conflict:
            raise Conflict(
                "auth", f"somebody else has just changed {account.id}: try again"
            ) from None

    async def _not_the_last(self, account: Account) -> tuple[Operation, ...]:
        """What must hold until he has gone: another one administers, who is not taken away by
        somebody else at the same time. Raises BadRequest when there is none."""
        if account.namespace != DEFAULT or not _is_admin(account):
            return ()
        async for row in self._records.every(ACCOUNTS, f"{DEFAULT}/"):
            other = self._records.decode(row, AccountRow).account
            if other.id != account.id and other.enabled and _is_admin(other):
                return (Check(key=row.key, table=ACCOUNTS, expected=row.version),)
        raise BadRequest(
            "auth", f"{account.id} is the last that administers {DEFAULT}: make another first"
        )

    async def has_admin(self) -> bool:
        async for row in self._records.every(ACCOUNTS, f"{DEFAULT}/"):
            account = self._records.decode(row, AccountRow).account
            if account.enabled and _is_admin(account):
                return True
        return False


def _no_more_than(by: Identity, account: Account) -> None:
    """Who administers a namespace does not come into possession of what he does not hold."""
    checks.grants(by, account.kind, account.scopes)


def _is_admin(account: Account) -> bool:
    return account.kind is Kind.ADMIN or "admin" in {s.lower() for s in account.scopes}


def account_of(
    id: str,
    kind: Kind,
    namespace: str,
    name: str,
    scopes: Sequence[str],
    metadata: Mapping[str, str] | None,
    created: float,
) -> Account:
    """What is asked for, checked."""
    return Account(
        id=checks.id_of("account", id),
        kind=kind,
        namespace=checks.namespace_of(namespace),
        name=checks.id_of("name", name or id),
        scopes=checks.scopes_of(scopes),
        metadata=checks.metadata_of(metadata or {}),
        created=created,
    )
