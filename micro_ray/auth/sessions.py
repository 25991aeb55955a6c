"""Tokens: logging in, refreshing, revoking.

A refresh token is ``mr_<session>.<secret>``, opaque; the store has the secret's SHA-256 alone. Each
is good for one use, compared and replaced in one step of the store. One that is used a second time
is in two hands, and which of them is the thief's nobody can tell: the session ends (RFC 9700,
4.14). There is no time of grace: a client that lost the answer logs in again.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Callable

from micro_ray.auth import MAX_TOKEN, Identity, Kind, Revocation, Tokens, checks
from micro_ray.auth.accounts import Accounts
from micro_ray.auth.records import (
    ACCOUNTS,
    SESSIONS,
    SHARED,
    AccountRow,
    Records,
    Session,
    encoded,
    revoked_key,
)
from micro_ray.auth.ring import KeyRing
from micro_ray.auth.throttle import Throttle
from micro_ray.auth.tokens import LEEWAY, Verifier
from micro_ray.errors import BadRequest, Conflict, Forbidden, NotFound, Unauthorized
from micro_ray.settings import Auth as Settings
from micro_ray.store import Check, Delete, Put

__all__ = ["Sessions"]

log = logging.getLogger(__name__)

_REFRESH = re.compile(r"mr_([0-9a-f]{32})\.([A-Za-z0-9_-]{43})")
_TOKEN_ID = re.compile(r"[0-9a-f]{32}")


class Sessions:
    def __init__(
        self,
        records: Records,
        accounts: Accounts,
        ring: KeyRing,
        settings: Settings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._records = records
        self._accounts = accounts
        self._ring = ring
        self._settings = settings
        self._throttle = Throttle(records, settings.attempts, clock)
        self._clock = clock

    async def login(self, id: str, secret: str, namespace: str, source: str) -> Tokens:
        try:
            found = await self._accounts.find(id, namespace)
        except NotFound:
            found = None
        # By whichever of its names one comes, its attempts are one account's.
        place = f"{namespace}/{id if found is None else found[0].account.id}"
        await self._throttle.begin(place, source)
        version = await self._accounts.proved(found, secret)
        if found is None or version is None:
            await self._failed(found, place, source)
            raise Unauthorized("auth", "the account or its secret is not correct")
        row = found[0]
        await self._throttle.succeeded(place, source)
        now = max(self._clock(), row.since)
        session, text = os.urandom(16).hex(), secrets.token_urlsafe(32)
        kept = Session(
            namespace=namespace,
            id=row.account.id,
            created=row.account.created,
            started=now,
            expires=now + self._settings.refresh_ttl,
            hash=_hash(text),
        )
        key = f"{namespace}/{row.account.id}"
        try:
            await self._records.write(
                Check(key=key, table=ACCOUNTS, expected=version),
                self._put(session, kept, 0),
                self._records.audit(
                    "login", _of(row), namespace, row.account.id, detail={"source": source}
                ),
            )
        except Conflict:
            raise Unauthorized("auth", "the account has just been changed: log in again") from None
        return await self._tokens(row, now, f"mr_{session}.{text}", kept.expires)

    async def _failed(self, found: tuple[AccountRow, int] | None, place: str, source: str) -> None:
        """Enter a failure of an account; one of nobody is only logged, since anybody can make any
        number of them."""
        if found is None:
            log.warning("a login of nobody: %s from %s", place, source or "somewhere")
            return
        account = found[0].account
        await self._records.write(
            self._records.audit(
                "login",
                None,
                account.namespace,
                account.id,
                allowed=False,
                detail={"source": source},
            )
        )

    async def refresh(self, token: str) -> Tokens:
        found = _REFRESH.fullmatch(token) if len(token) <= MAX_TOKEN else None
        if found is None:
            raise Unauthorized("auth", "this is no refresh token: log in")
        session, secret = found.groups()
        there = await self._records.get(SESSIONS, session, Session)
        if there is None:
            raise Unauthorized("auth", "the session has ended: log in again")
        kept, version = there
        if not hmac.compare_digest(kept.hash, _hash(secret)):
            raise await self._used_before(session, kept)
        row = await self._account(session, kept)
        now = max(self._clock(), row.since)
        text = secrets.token_urlsafe(32)
        made = Session(
            namespace=kept.namespace,
            id=kept.id,
            created=kept.created,
            started=kept.started,
            expires=now + self._settings.refresh_ttl,
            hash=_hash(text),
        )
        try:
            await self._records.write(self._put(session, made, version))
        except Conflict:
            raise await self._used_before(session, kept) from None
        return await self._tokens(row, now, f"mr_{session}.{text}", made.expires)

    async def _account(self, session: str, kept: Session) -> AccountRow:
        """Whose session it is, if it may go on."""
        try:
            row, _ = await self._accounts.find(kept.id, kept.namespace)
        except NotFound:
            row = None
        if (
            row is None
            or (row.account.id, row.account.created) != (kept.id, kept.created)
            or not row.account.enabled
            or kept.started < row.since
            or kept.expires < self._clock()
        ):
            await self._records.write(Delete(key=session, table=SESSIONS))
            raise Unauthorized("auth", "the session has ended: log in again")
        return row

    async def _used_before(self, session: str, kept: Session) -> Unauthorized:
        await self._records.write(
            Delete(key=session, table=SESSIONS),
            self._records.audit("refresh.reuse", None, kept.namespace, kept.id, allowed=False),
        )
        return Unauthorized(
            "auth", "this refresh token was used before: the session is ended, log in again"
        )

    def _put(self, session: str, kept: Session, version: int) -> Put:
        left = max(1.0, kept.expires - self._clock())
        return Put(key=session, table=SESSIONS, value=encoded(kept), expected=version, expiry=left)

    async def _tokens(self, row: AccountRow, now: float, refresh: str, until: float) -> Tokens:
        identity = _of(row, now, self._settings.access_ttl)
        signer = await self._ring.signer()
        return Tokens(
            access=signer.sign(identity),
            expires=identity.expires,
            refresh=refresh,
            refresh_expires=until,
        )

    async def issue(self, id: str, scopes: tuple[str, ...], namespace: str) -> Tokens:
        """For a process."""
        now = self._clock()
        identity = Identity(
            id=id,
            kind=Kind.SERVICE,
            namespace=namespace,
            scopes=scopes,
            token=os.urandom(16).hex(),
            issued=now,
            expires=math.ceil(now + self._settings.process_ttl),
        )
        signer = await self._ring.signer()
        return Tokens(access=signer.sign(identity), expires=identity.expires)

    async def inspect(self, token: str) -> Identity:
        settings = self._settings
        verifier = Verifier(
            await self._ring.keys(), settings.issuer, settings.audience, self._clock
        )
        identity = verifier.verify(token)
        voids = Revocation(token=identity.token)
        revoked = await self._records.get(SHARED, revoked_key(voids), Revocation)
        voids = Revocation(account=f"{identity.namespace}/{identity.id}")
        account = await self._records.get(SHARED, revoked_key(voids), Revocation)
        if revoked is not None or (account is not None and identity.issued < account[0].before):
            raise Unauthorized("auth", "the token is refused: it was revoked; log in again")
        return identity

    async def revoke(self, token: str, namespace: str, by: Identity) -> None:
        """A refresh token, an access token, or the id of one."""
        found = _REFRESH.fullmatch(token) if len(token) <= MAX_TOKEN else None
        if found is not None:
            await self._end(found.group(1), by)
            return
        if _TOKEN_ID.fullmatch(token):
            if not by.everywhere:
                raise Forbidden("auth", "whose token that id is cannot be told: give the token")
            longest = max(self._settings.access_ttl, self._settings.process_ttl)
            id, until = token, self._clock() + longest
        else:
            identity = await self.inspect(token)
            if (identity.namespace, identity.id) != (by.namespace, by.id):
                checks.administers(by, identity.namespace)
            id, until = identity.token, identity.expires
        await self._records.write(
            self._records.revocation(Revocation(token=id, until=until + 2 * LEEWAY)),
            self._records.audit("token.revoke", by, namespace, id),
        )

    async def _end(self, session: str, by: Identity) -> None:
        there = await self._records.get(SESSIONS, session, Session)
        if there is None:
            return
        kept = there[0]
        if (kept.namespace, kept.id) != (by.namespace, by.id):
            checks.administers(by, kept.namespace)
        await self._records.write(
            Delete(key=session, table=SESSIONS),
            self._records.audit("session.end", by, kept.namespace, kept.id),
        )


def _of(row: AccountRow, now: float = 0.0, ttl: float = 0.0) -> Identity:
    account = row.account
    return Identity(
        id=account.id,
        kind=account.kind,
        namespace=account.namespace,
        scopes=account.scopes,
        token=os.urandom(16).hex(),
        issued=math.ceil(now * 1000) / 1000,
        expires=math.ceil(now + ttl),
    )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def checked_secret(secret: str) -> str:
    """What is offered as one. Raises BadRequest for what none can be, before it is hashed."""
    if not isinstance(secret, str) or not 0 < len(secret) <= 1024:
        raise BadRequest("auth", "credentials are required: an id and its secret")
    return secret
