"""Auth kept in a store. Any number of instances, in any processes, may stand on one store."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing

from micro_ray.auth import (
    ADMIN,
    DEFAULT,
    MAX_PATTERNS,
    MAX_RULES,
    SERVICE,
    Account,
    Audit,
    Auth,
    Caller,
    Created,
    Decision,
    Identity,
    Key,
    Kind,
    Resource,
    Rule,
    Tokens,
    Update,
    checks,
)
from micro_ray.auth.accounts import Accounts, account_of, new_secret
from micro_ray.auth.denials import Entering
from micro_ray.auth.feed import Feed
from micro_ray.auth.guard import Guard
from micro_ray.auth.passwords import Passwords
from micro_ray.auth.records import AUDIT, RULE, SHARED, Records, encoded
from micro_ray.auth.refusals import Refusals, refusing
from micro_ray.auth.ring import KeyRing
from micro_ray.auth.rules import DEFAULTS, Rules, loose
from micro_ray.auth.sessions import Sessions, checked_secret
from micro_ray.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    MicroError,
    NotFound,
    TooManyRequests,
    Unavailable,
)
from micro_ray.sealing import KeyFile
from micro_ray.settings import Auth as Settings
from micro_ray.store import Delete, Put, Store

__all__ = ["StoredAuth"]

#: Entries of what was done that one asks for or settles at a time.
PAGE = 100
#: End of the time that an entry may have, in seconds since 1970: the year 5138.
MAX_TIME = 1e11


class StoredAuth(Auth):
    """``space`` is the namespace of the store that holds all of it; ``clock`` is wall-clock
    seconds; ``passwords`` are closed with it."""

    def __init__(
        self,
        store: Store,
        sealing: KeyFile,
        *,
        settings: Settings | None = None,
        space: str = DEFAULT,
        passwords: Passwords | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        settings = settings or Settings()
        self._clock = clock
        self._passwords = passwords or Passwords(
            memory=settings.password_memory, passes=settings.password_passes
        )
        self._records = Records(store, space, clock)
        self._ring = KeyRing(self._records, sealing, settings, clock)
        self._accounts = Accounts(self._records, self._passwords, settings, clock)
        self._sessions = Sessions(self._records, self._accounts, self._ring, settings, clock)
        guard = Guard(settings.issuer, settings.audience, clock)
        self._feed = Feed(self._records, guard, clock)
        self._refusals = Refusals(self._records, clock)
        self._entering = Entering(clock)
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        await self._feed.close()
        self._passwords.close()

    def _open(self, namespace: str = DEFAULT) -> None:
        if self._closed:
            raise Unavailable("auth", "auth is closed")
        checks.namespace_of(namespace)

    async def _who(self, by: Caller) -> Identity | None:
        """Raises Unauthorized for a token that is none."""
        return await self._sessions.inspect(by) if isinstance(by, str) else by

    async def refused(
        self, action: str, by: Caller, namespace: str, subject: str, error: MicroError
    ) -> None:
        """Enter what was refused to somebody who is known; of nobody there is nothing to say."""
        with contextlib.suppress(MicroError):
            whom = await self._who(by)
            if whom is not None:
                await self._refusals.note(action, whom, namespace, subject, error.detail)

    async def _of_platform(self, by: Caller) -> Identity:
        account = checks.somebody(await self._who(by))
        if not account.everywhere:
            raise Forbidden("auth", f"{account.id} does not act for the platform ({DEFAULT})")
        return account

    # -- accounts --------------------------------------------------------------------------------

    @refusing("account.create")
    async def generate(
        self,
        id: str,
        *,
        kind: Kind = Kind.USER,
        name: str = "",
        scopes: Sequence[str] = (),
        secret: str = "",
        metadata: Mapping[str, str] | None = None,
        namespace: str = DEFAULT,
        by: Caller,
    ) -> Created:
        self._open(namespace)
        account = account_of(id, kind, namespace, name, scopes, metadata, self._clock())
        giver = checks.administers(await self._who(by), namespace)
        checks.grants(giver, kind, account.scopes)
        return await self._accounts.make(account, secret, giver)

    async def accounts(
        self, *, namespace: str = DEFAULT, by: Caller, limit: int = 0, offset: int = 0
    ) -> list[Account]:
        self._open(namespace)
        checks.administers(await self._who(by), namespace)
        if limit < 0 or offset < 0:
            raise BadRequest("auth", "limit and offset are 0 or more")
        return await self._accounts.page(namespace, limit, offset)

    async def account(self, id: str, *, namespace: str = DEFAULT, by: Caller) -> Account:
        self._open(namespace)
        await self._may_act_on(id, namespace, by)
        row, _ = await self._accounts.find(checks.id_of("account", id), namespace)
        return row.account

    async def _may_act_on(self, id: str, namespace: str, by: Caller) -> Identity:
        """Itself, or who administers."""
        account = checks.within(await self._who(by), namespace)
        if (account.namespace, account.id) != (namespace, id):
            checks.administers(account, namespace)
        return account

    @refusing("account.delete")
    async def delete(self, id: str, *, namespace: str = DEFAULT, by: Caller) -> None:
        self._open(namespace)
        giver = checks.administers(await self._who(by), namespace)
        await self._accounts.delete(checks.id_of("account", id), namespace, giver)

    @refusing("account.secret")
    async def change_secret(
        self,
        id: str,
        *,
        old: str = "",
        new: str = "",
        namespace: str = DEFAULT,
        by: Caller,
    ) -> str:
        self._open(namespace)
        giver = await self._may_act_on(id, namespace, by)
        own = (giver.namespace, giver.id) == (namespace, id)
        if own and giver.kind is Kind.SERVICE and not old:
            raise Forbidden("auth", "a process has no secret to change")
        checks.id_of("account", id)
        proof = checked_secret(old) if own else None
        return await self._accounts.change_secret(id, proof, new, namespace, giver)

    @refusing("account.enable")
    async def enable(
        self, id: str, enabled: bool, *, namespace: str = DEFAULT, by: Caller
    ) -> Account:
        self._open(namespace)
        giver = checks.administers(await self._who(by), namespace)
        return await self._accounts.enable(checks.id_of("account", id), enabled, namespace, giver)

    # -- tokens ----------------------------------------------------------------------------------

    async def token(
        self, id: str, secret: str, *, namespace: str = DEFAULT, source: str = ""
    ) -> Tokens:
        self._open(namespace)
        checks.id_of("account", id)
        return await self._sessions.login(id, checked_secret(secret), namespace, source)

    async def refresh(self, token: str) -> Tokens:
        self._open()
        return await self._sessions.refresh(token)

    @refusing("token.issue")
    async def issue(
        self,
        id: str,
        *,
        scopes: Sequence[str] = (SERVICE,),
        namespace: str = DEFAULT,
        by: Caller,
    ) -> Tokens:
        self._open(namespace)
        giver = await self._of_platform(by)
        given = checks.scopes_of(scopes)
        if not giver.admin and any(scope.lower() == ADMIN for scope in given):
            raise Forbidden("auth", f"{giver.id} does not administer, and cannot give that")
        return await self._sessions.issue(checks.id_of("process", id), given, namespace)

    async def inspect(self, token: str) -> Identity:
        self._open()
        return await self._sessions.inspect(token)

    @refusing("token.revoke")
    async def revoke(
        self, *, token: str = "", account: str = "", namespace: str = DEFAULT, by: Caller
    ) -> None:
        self._open(namespace)
        if bool(token) == bool(account):
            raise BadRequest("auth", "give a token or an account to revoke")
        if token:
            await self._sessions.revoke(token, namespace, checks.somebody(await self._who(by)))
        else:
            giver = await self._may_act_on(account, namespace, by)
            await self._accounts.void(checks.id_of("account", account), namespace, giver)

    # -- rules -----------------------------------------------------------------------------------

    @refusing("rule.create")
    async def create_rule(self, rule: Rule, *, namespace: str = DEFAULT, by: Caller) -> None:
        self._open(namespace)
        checks.rule_of(rule)
        giver = checks.administers(await self._who(by), namespace)
        if await self._records.count(SHARED, f"{RULE}{namespace}/") >= MAX_RULES:
            raise TooManyRequests("auth", f"{namespace} has {MAX_RULES} rules: delete some")
        await self._check_patterns(rule, namespace)
        key = f"{RULE}{namespace}/{rule.id}"
        detail = {
            "scope": rule.scope,
            "resource": str(rule.resource),
            "access": rule.access,
            "priority": rule.priority,
        }
        try:
            await self._records.write(
                Put(key=key, table=SHARED, value=encoded(rule), expected=0),
                self._records.audit("rule.create", giver, namespace, rule.id, detail=detail),
            )
        except Conflict:
            raise Conflict("auth", f"a rule {rule.id!r} already exists: delete it first") from None

    async def _check_patterns(self, rule: Rule, namespace: str) -> None:
        """Rules whose type or name is a pattern are tried one by one in every decision that is not
        remembered: they are bounded."""
        if not loose(rule.resource):
            return
        rules = (await self._rules_of(namespace)).ordered
        if sum(loose(other.resource) for other in rules) >= MAX_PATTERNS:
            raise TooManyRequests(
                "auth",
                f"{namespace} has {MAX_PATTERNS} rules whose type or name is a pattern: name the "
                "services, or delete some",
            )

    @refusing("rule.delete")
    async def delete_rule(self, id: str, *, namespace: str = DEFAULT, by: Caller) -> None:
        self._open(namespace)
        giver = checks.administers(await self._who(by), namespace)
        key = f"{RULE}{namespace}/{checks.id_of('rule', id)}"
        found = await self._records.get(SHARED, key, Rule)
        if found is None:
            hint = ""
            if any(rule.id == id for rule in DEFAULTS):
                hint = ": it is a default one, which a rule with its id takes the place of"
            raise NotFound("auth", f"there is no rule {id!r} in {namespace}{hint}")
        await self._records.write(
            Delete(key=key, table=SHARED, expected=found[1]),
            self._records.audit("rule.delete", giver, namespace, id),
        )

    async def rules(self, *, namespace: str = DEFAULT, by: Caller) -> list[Rule]:
        self._open(namespace)
        checks.within(await self._who(by), namespace)
        return (await self._rules_of(namespace)).ordered

    async def _rules_of(self, namespace: str) -> Rules:
        rows = self._records.every(SHARED, f"{RULE}{namespace}/")
        return Rules(namespace, [self._records.decode(row, Rule) async for row in rows])

    async def explain(
        self,
        resource: Resource,
        *,
        account: str = "",
        namespace: str = DEFAULT,
        by: Caller,
    ) -> Decision:
        self._open(namespace)
        giver = checks.within(await self._who(by), namespace)
        whom: Identity | None = None
        if account:
            space, _, id = account.rpartition("/")
            space = space or namespace
            if (space, id) == (giver.namespace, giver.id):
                whom = giver
            else:
                checks.administers(giver, space)
                row, _ = await self._accounts.find(checks.id_of("account", id), space)
                found = row.account
                if not found.enabled:
                    why = f"the account {found.id} is disabled"
                    return Decision(allowed=False, rule=None, why=why)
                whom = Identity(id=found.id, kind=found.kind, namespace=space, scopes=found.scopes)
        if whom is not None and whom.everywhere:
            return Decision(allowed=True, rule=None, why=f"it acts for the platform ({DEFAULT})")
        return (await self._rules_of(namespace)).decide(whom, resource)

    # -- keys, following, and what was done ------------------------------------------------------

    async def keys(self) -> list[Key]:
        self._open()
        return await self._ring.keys()

    @refusing("keys.rotate")
    async def rotate(self, *, by: Caller) -> list[Key]:
        self._open()
        giver = checks.administers(await self._who(by), DEFAULT)
        await self._ring.rotate(giver)
        return await self._ring.keys()

    async def follow(
        self, namespace: str | None = None, *, mark: str = "", by: Caller
    ) -> AsyncIterator[Update]:
        self._open(namespace or DEFAULT)
        whom = self._feed.verify(by) if isinstance(by, str) else by
        if whom is None:
            whom = await self._who(by)
        if not self._feed.live:
            await self._ring.keys()  # made at first use, so that a guard never waits for a login
        space = checks.followed(whom, namespace)
        async with aclosing(self._feed.follow(space, mark)) as updates:  # type: ignore[type-var]
            async for update in updates:
                yield update

    async def ensure_admin(self, id: str = "admin") -> str:
        self._open()
        if await self._accounts.has_admin():
            return ""
        account = account_of(id, Kind.ADMIN, DEFAULT, "", (ADMIN,), None, self._clock())
        secret = new_secret()
        try:
            await self._accounts.make(account, secret, None)
        except Conflict:
            return ""
        return secret

    async def note(self, *entries: Audit, by: Caller) -> None:
        self._open()
        teller = checks.somebody(await self._who(by))
        if len(entries) > PAGE:
            raise BadRequest("auth", f"{len(entries)} entries; {PAGE} at a time")
        for entry in entries:
            if not 0 <= entry.time < MAX_TIME:
                raise BadRequest("auth", f"entry at {entry.time:g}: seconds since 1970")
        kept = self._entering.few(self._entering.said(teller, entries))
        if kept:
            await self._records.write(*(self._records.entry(entry) for entry in kept))

    async def audits(self, *, limit: int = PAGE, by: Caller) -> list[Audit]:
        self._open()
        await self._of_platform(by)
        if not 0 < limit <= PAGE:
            raise BadRequest("auth", f"limit {limit}: 1 to {PAGE}")
        rows = await self._records.page(AUDIT, limit=limit)
        return [self._records.decode(row, Audit) for row in rows]

    async def settle(self, *ids: str, by: Caller) -> None:
        self._open()
        await self._of_platform(by)
        if len(ids) > PAGE:
            raise BadRequest("auth", f"{len(ids)} entries; {PAGE} at a time")
        if ids:
            await self._records.write(*(Delete(key=id, table=AUDIT) for id in ids))
