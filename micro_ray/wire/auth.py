"""Auth's face on frames, and the interface over a caller. Who asks is known by his access token,
which travels as ``authorization: Bearer ...`` and is verified here, in each call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from micro_ray.auth import (
    DEFAULT,
    SERVICE,
    Access,
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
)
from micro_ray.auth.callers import bearer_of
from micro_ray.auth.known import join, split
from micro_ray.context import AUTHORIZATION, current
from micro_ray.errors import BadRequest
from micro_ray.wire.closing import closing
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.remote import Caller as Line
from micro_ray.wire.remote import from_json, to_json

__all__ = ["RemoteAuth", "bearer", "endpoints"]

T = TypeVar("T")

NAME = "auth"


def bearer() -> Caller:
    """Who makes the call being served: as it was verified, or where nobody has asked by his access
    token. Raises Unauthorized for another scheme."""
    context = current()
    if context.reach is not None:
        identity: Identity | None = context.identity
        return identity
    given = context.metadata.get(AUTHORIZATION, "")
    return bearer_of(given) if given else None


class _Auth:
    """``Auth.*``."""

    def __init__(self, auth: Auth) -> None:
        self._auth = auth

    async def generate(
        self,
        id: str,
        kind: Kind = Kind.USER,
        name: str = "",
        scopes: list[str] = [],  # noqa: B006 - copied by the struct, never changed
        secret: str = "",
        metadata: dict[str, str] = {},  # noqa: B006 - the same
        namespace: str = DEFAULT,
    ) -> Created:
        """Make an account; a random secret when none is given."""
        return await self._auth.generate(
            id,
            kind=kind,
            name=name,
            scopes=scopes,
            secret=secret,
            metadata=metadata,
            namespace=namespace,
            by=bearer(),
        )

    async def token(
        self,
        id: str = "",
        secret: str = "",
        refresh_token: str = "",
        namespace: str = DEFAULT,
    ) -> Tokens:
        """Log in by an id or name and its secret, or by a refresh token."""
        if refresh_token:
            return await self._auth.refresh(refresh_token)
        context = current()
        source = context.metadata.get("micro-source", "") if context.trusted else ""
        return await self._auth.token(id, secret, namespace=namespace, source=source)

    async def refresh(self, token: str) -> Tokens:
        """New tokens for a refresh token, which is used up."""
        return await self._auth.refresh(token)

    async def issue(
        self,
        id: str,
        scopes: list[str] | None = None,
        namespace: str = DEFAULT,
    ) -> Tokens:
        """An access token for a process; its scope is service when none is given."""
        given = (SERVICE,) if scopes is None else scopes
        return await self._auth.issue(id, scopes=given, namespace=namespace, by=bearer())

    async def inspect(self, token: str) -> Identity:
        """Whose access token this is."""
        return await self._auth.inspect(token)

    async def revoke(self, token: str = "", account: str = "", namespace: str = DEFAULT) -> None:
        """Make void a token, or all of an account."""
        await self._auth.revoke(token=token, account=account, namespace=namespace, by=bearer())

    async def keys(self) -> dict[str, Any]:
        """The keys that verify tokens, as a JWK set (RFC 7517)."""
        keys = await self._auth.keys()
        return {"keys": [key.jwk() for key in keys], "details": keys}

    async def rotate(self) -> list[Key]:
        """Sign with the next key from now on."""
        return await self._auth.rotate(by=bearer())

    async def follow(self, namespace: str | None = None, mark: str = "") -> AsyncIterator[Update]:
        """Keys, rules and revocations, then what changes; large ones in parts."""
        async with closing(self._auth.follow(namespace, mark=mark, by=bearer())) as updates:
            async for update in updates:
                for part in split(update):
                    yield part

    async def note(self, entries: list[Audit]) -> None:
        """Enter denials among what was done."""
        await self._auth.note(*entries, by=bearer())

    async def audits(self, limit: int = 100) -> list[Audit]:
        """The oldest entries of what was done that are not settled."""
        return await self._auth.audits(limit=limit, by=bearer())

    async def settle(self, ids: list[str]) -> None:
        """Forget entries that are kept elsewhere."""
        await self._auth.settle(*ids, by=bearer())


class _Accounts:
    """``Accounts.*``."""

    def __init__(self, auth: Auth) -> None:
        self._auth = auth

    async def list(
        self, namespace: str = DEFAULT, limit: int = 0, offset: int = 0
    ) -> list[Account]:
        """The accounts of a namespace, by id."""
        return await self._auth.accounts(
            namespace=namespace, limit=limit, offset=offset, by=bearer()
        )

    async def read(self, id: str, namespace: str = DEFAULT) -> Account:
        """An account, by id or name."""
        return await self._auth.account(id, namespace=namespace, by=bearer())

    async def delete(self, id: str, namespace: str = DEFAULT) -> None:
        """Remove an account; its tokens are void."""
        await self._auth.delete(id, namespace=namespace, by=bearer())

    async def change_secret(
        self, id: str, old_secret: str = "", new_secret: str = "", namespace: str = DEFAULT
    ) -> dict[str, str]:
        """Change a secret, to a random one when none is given; all tokens are void."""
        secret = await self._auth.change_secret(
            id, old=old_secret, new=new_secret, namespace=namespace, by=bearer()
        )
        return {"secret": secret}

    async def enable(self, id: str, enabled: bool = True, namespace: str = DEFAULT) -> Account:
        """Let an account log in, or not."""
        return await self._auth.enable(id, enabled, namespace=namespace, by=bearer())


class _Rules:
    """``Rules.*``."""

    def __init__(self, auth: Auth) -> None:
        self._auth = auth

    async def create(
        self,
        id: str,
        scope: str = "",
        resource: Resource = Resource(),  # noqa: B008 - frozen
        access: Access = Access.GRANTED,
        priority: int = 0,
        namespace: str = DEFAULT,
    ) -> None:
        """Make a rule."""
        rule = Rule(id=id, scope=scope, resource=resource, access=access, priority=priority)
        await self._auth.create_rule(rule, namespace=namespace, by=bearer())

    async def delete(self, id: str, namespace: str = DEFAULT) -> None:
        """Remove a rule."""
        await self._auth.delete_rule(id, namespace=namespace, by=bearer())

    async def list(self, namespace: str = DEFAULT) -> list[Rule]:
        """The rules in the order in which they are tried."""
        return await self._auth.rules(namespace=namespace, by=bearer())

    async def explain(
        self, resource: Resource, account: str = "", namespace: str = DEFAULT
    ) -> Decision:
        """Whether an account (blank: nobody) may call something, and by which rule."""
        return await self._auth.explain(resource, account=account, namespace=namespace, by=bearer())


def endpoints(auth: Auth) -> Endpoints:
    """Service ``auth``."""
    table = Endpoints(NAME)
    own, accounts, rules = _Auth(auth), _Accounts(auth), _Rules(auth)
    for name in (
        "generate", "token", "refresh", "issue", "inspect", "revoke", "keys", "rotate", "follow",
        "note", "audits", "settle",
    ):  # fmt: skip
        table.add(f"Auth.{name.title()}", getattr(own, name))
    for name, verb in (
        ("List", accounts.list),
        ("Read", accounts.read),
        ("Delete", accounts.delete),
        ("ChangeSecret", accounts.change_secret),
        ("Enable", accounts.enable),
    ):
        table.add(f"Accounts.{name}", verb)
    for name in ("create", "delete", "list", "explain"):
        table.add(f"Rules.{name.title()}", getattr(rules, name))
    return table


class RemoteAuth(Auth):
    """The interface over a caller. ``by`` is an access token: an identity is of one process."""

    def __init__(self, caller: Line) -> None:
        self._caller = caller

    async def close(self) -> None:
        """The caller is not ours."""

    async def _ask(
        self,
        endpoint: str,
        request: Mapping[str, Any],
        kind: type[T],
        by: Caller = None,
        along: Mapping[str, str] | None = None,
    ) -> T:
        try:
            body = to_json(request)
        except (TypeError, ValueError, msgspec.MsgspecError) as error:
            raise BadRequest(NAME, f"the request cannot be sent: {error}") from None
        answer = await self._caller.call(
            NAME, endpoint, body, metadata={**_from(by), **(along or {})}
        )
        return from_json(answer, kind, NAME)

    # -- accounts --------------------------------------------------------------------------------

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
        request = {
            "id": id,
            "kind": kind,
            "name": name,
            "scopes": scopes,
            "secret": secret,
            "metadata": metadata or {},
            "namespace": namespace,
        }
        return await self._ask("Auth.Generate", request, Created, by)

    async def accounts(
        self, *, namespace: str = DEFAULT, by: Caller, limit: int = 0, offset: int = 0
    ) -> list[Account]:
        request = {"namespace": namespace, "limit": limit, "offset": offset}
        return await self._ask("Accounts.List", request, list[Account], by)

    async def account(self, id: str, *, namespace: str = DEFAULT, by: Caller) -> Account:
        return await self._ask("Accounts.Read", {"id": id, "namespace": namespace}, Account, by)

    async def delete(self, id: str, *, namespace: str = DEFAULT, by: Caller) -> None:
        await self._ask("Accounts.Delete", {"id": id, "namespace": namespace}, object, by)

    async def change_secret(
        self,
        id: str,
        *,
        old: str = "",
        new: str = "",
        namespace: str = DEFAULT,
        by: Caller,
    ) -> str:
        request = {"id": id, "old_secret": old, "new_secret": new, "namespace": namespace}
        return (await self._ask("Accounts.ChangeSecret", request, dict[str, str], by))["secret"]

    async def enable(
        self, id: str, enabled: bool, *, namespace: str = DEFAULT, by: Caller
    ) -> Account:
        request = {"id": id, "enabled": enabled, "namespace": namespace}
        return await self._ask("Accounts.Enable", request, Account, by)

    # -- tokens ----------------------------------------------------------------------------------

    async def token(
        self, id: str, secret: str, *, namespace: str = DEFAULT, source: str = ""
    ) -> Tokens:
        request = {"id": id, "secret": secret, "namespace": namespace}
        along = {"micro-source": source} if source else {}
        return await self._ask("Auth.Token", request, Tokens, along=along)

    async def refresh(self, token: str) -> Tokens:
        return await self._ask("Auth.Refresh", {"token": token}, Tokens)

    async def issue(
        self,
        id: str,
        *,
        scopes: Sequence[str] = (SERVICE,),
        namespace: str = DEFAULT,
        by: Caller,
    ) -> Tokens:
        request = {"id": id, "scopes": scopes, "namespace": namespace}
        return await self._ask("Auth.Issue", request, Tokens, by)

    async def inspect(self, token: str) -> Identity:
        return await self._ask("Auth.Inspect", {"token": token}, Identity)

    async def revoke(
        self, *, token: str = "", account: str = "", namespace: str = DEFAULT, by: Caller
    ) -> None:
        request = {"token": token, "account": account, "namespace": namespace}
        await self._ask("Auth.Revoke", request, object, by)

    # -- rules -----------------------------------------------------------------------------------

    async def create_rule(self, rule: Rule, *, namespace: str = DEFAULT, by: Caller) -> None:
        await self._ask("Rules.Create", {**_fields(rule), "namespace": namespace}, object, by)

    async def delete_rule(self, id: str, *, namespace: str = DEFAULT, by: Caller) -> None:
        await self._ask("Rules.Delete", {"id": id, "namespace": namespace}, object, by)

    async def rules(self, *, namespace: str = DEFAULT, by: Caller) -> list[Rule]:
        return await self._ask("Rules.List", {"namespace": namespace}, list[Rule], by)

    async def explain(
        self,
        resource: Resource,
        *,
        account: str = "",
        namespace: str = DEFAULT,
        by: Caller,
    ) -> Decision:
        request = {"resource": resource, "account": account, "namespace": namespace}
        return await self._ask("Rules.Explain", request, Decision, by)

    # -- keys, following, and what was done ------------------------------------------------------

    async def keys(self) -> list[Key]:
        found = await self._ask("Auth.Keys", {}, dict[str, Any])
        return msgspec.convert(found["details"], list[Key])

    async def rotate(self, *, by: Caller) -> list[Key]:
        return await self._ask("Auth.Rotate", {}, list[Key], by)

    async def follow(
        self, namespace: str | None = None, *, mark: str = "", by: Caller
    ) -> AsyncIterator[Update]:
        """Raises what the line raises when it breaks: follow again."""
        async with await self._caller.open(NAME, "Auth.Follow", metadata=_from(by)) as stream:
            await stream.send(to_json({"namespace": namespace, "mark": mark}))
            await stream.end()
            parts: list[Update] = []
            async for message in stream:
                parts.append(from_json(message, Update, NAME))
                if not parts[-1].more:
                    update, parts = join(parts), []
                    yield update

    async def ensure_admin(self, id: str = "admin") -> str:
        """Raises BadRequest: it is for who owns the machine."""
        raise BadRequest(NAME, "the first account is made where the platform runs")

    async def note(self, *entries: Audit, by: Caller) -> None:
        await self._ask("Auth.Note", {"entries": entries}, object, by)

    async def audits(self, *, limit: int = 100, by: Caller) -> list[Audit]:
        return await self._ask("Auth.Audits", {"limit": limit}, list[Audit], by)

    async def settle(self, *ids: str, by: Caller) -> None:
        await self._ask("Auth.Settle", {"ids": ids}, object, by)


def _fields(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "scope": rule.scope,
        "resource": rule.resource,
        "access": rule.access,
        "priority": rule.priority,
    }


def _from(by: Caller) -> dict[str, str]:
    if by is None:
        return {}
    if not isinstance(by, str):
        raise BadRequest(NAME, "over frames one is known by his access token")
    return {AUTHORIZATION: f"Bearer {by}"}
