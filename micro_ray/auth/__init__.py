"""auth: who somebody is, and what he may do.

**Accounts** belong to a namespace and have scopes. Whoever proves to be one gets **tokens**: a
short access token, which anybody verifies with the public **keys** and without asking, and a
refresh token that is good for one use. **Rules** of a namespace say who may call what; without a
rule that says so nobody may. Doors and services decide by themselves, from a :class:`Guard`
(``guard.py``) that is kept up to date by :meth:`Auth.follow`.

Kept in the store (``stored.py``).
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any

__all__ = [
    "Access",
    "Account",
    "Audit",
    "Auth",
    "Caller",
    "Created",
    "Decision",
    "Identity",
    "Key",
    "Kind",
    "Resource",
    "Revocation",
    "Rule",
    "Tokens",
    "Update",
]

DEFAULT = "micro"
#: Limits, in characters, bytes or counts.
MAX_ID = 128
MAX_SCOPES, MAX_SCOPE = 64, 128
MAX_METADATA, MAX_METADATA_BYTES = 32, 4096
MAX_SECRET = 1024
MIN_SECRET = 8
MAX_RULES, MAX_PATTERNS = 10_000, 200
MAX_ACCOUNTS = 100_000
MAX_PRIORITY = 2**31 - 1
#: Bytes of a token; a longer one is refused before it is looked at.
MAX_TOKEN = 8192
#: Scopes with a meaning: of who administers a namespace, and of what runs in it.
ADMIN, SERVICE = "admin", "service"
#: The topic of events in each namespace to which what was done in it is published.
AUDIT = "auth.audit"
#: The scope of the platform's own processes.
PLATFORM = "platform"


class Kind(StrEnum):
    USER = "user"
    SERVICE = "service"
    ADMIN = "admin"


class Access(StrEnum):
    GRANTED = "granted"
    DENIED = "denied"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """``id`` is for ever, ``name`` (default: the id) is what one logs in with as well and may be
    changed. ``created`` is in seconds since 1970. The secret is never shown."""

    id: str
    kind: Kind = Kind.USER
    namespace: str = DEFAULT
    name: str = ""
    scopes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    enabled: bool = True
    created: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """A new account with its secret, which is not told again."""

    account: Account
    secret: str


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who calls, as a verified token says. ``token`` is the token's id; times are in seconds since
    1970. ``key`` is the public half of the key that a process has proved to have (``x`` of a JWK),
    blank for who has none."""

    id: str
    kind: Kind = Kind.USER
    namespace: str = DEFAULT
    scopes: tuple[str, ...] = ()
    token: str = ""
    issued: float = 0.0
    expires: float = 0.0
    key: str = ""

    @cached_property
    def grants(self) -> tuple[str, frozenset[str]]:
        """What rules look at: the namespace, and the scopes in lower case."""
        scopes = {scope.lower() for scope in self.scopes}
        if self.kind is Kind.ADMIN:
            scopes.add(ADMIN)
        return self.namespace, frozenset(scopes)

    @property
    def admin(self) -> bool:
        """Whether he administers his namespace."""
        return ADMIN in self.grants[1]

    @property
    def entrusted(self) -> bool:
        """Whether what is secret in his namespace is his to know: he administers it, or runs in
        it."""
        return not self.grants[1].isdisjoint((ADMIN, SERVICE))

    @cached_property
    def platform(self) -> bool:
        """Whether it is one of the platform's own processes."""
        own = self.namespace == DEFAULT and self.kind is Kind.SERVICE
        return own and PLATFORM in self.grants[1]

    @cached_property
    def everywhere(self) -> bool:
        """Whether he may act in every namespace: who administers the platform, and its own
        processes."""
        return self.platform or (self.namespace == DEFAULT and self.admin)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """What is called: ``type`` is "service" for what services do; ``endpoint`` is
    ``Handler.Method``. In a rule each may be a pattern: ``*`` is anything, and of parts between
    slashes, or between dots where it has no slash, ``*`` is one, or, as the last, one or more
    (``Greeter.*``, ``/users/*``).
    Letters match without regard to case."""

    type: str = "service"
    name: str = "*"
    endpoint: str = "*"

    def __str__(self) -> str:
        return f"{self.type}:{self.name}:{self.endpoint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """``scope`` is whom it is about: "" everybody, also without a token; ``*`` any account of this
    namespace; ``+`` any account; else the accounts of this namespace with that scope."""

    id: str
    scope: str = ""
    resource: Resource = Resource()
    access: Access = Access.GRANTED
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """``rule`` decided, or none did; ``why`` says it in words."""

    allowed: bool
    rule: Rule | None
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """``access`` is good until ``expires``, ``refresh`` once, until ``refresh_expires`` (seconds
    since 1970). The identity of a process has no ``refresh``."""

    access: str
    expires: float
    refresh: str = ""
    refresh_expires: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key that signs tokens, its public half: ``x`` is the 32 bytes of Ed25519 in base64url, as
    in a JWK (RFC 8037). ``state`` is "next", "active" or "retired"; a retired one verifies until
    ``until`` (seconds since 1970; 0: as long as it is there)."""

    id: str
    x: str
    state: str
    created: float = 0.0
    until: float = 0.0

    def jwk(self) -> dict[str, str]:
        """As RFC 7517 has it."""
        return {
            "kty": "OKP",
            "crv": "Ed25519",
            "x": self.x,
            "kid": self.id,
            "use": "sig",
            "alg": "EdDSA",
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """Tokens that are void though their time is not over: the one with the id ``token``, or all of
    ``account`` (``namespace/id``) issued before ``before``. Needed until ``until``, when the last
    of them would have ended."""

    token: str = ""
    account: str = ""
    before: float = 0.0
    until: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What a guard learns: ``full`` is everything at ``revision``, else what has changed since the
    update before. ``rules`` were made or changed, ``gone`` are (namespace, id) of those that are no
    more; ``keys`` are all keys, or None for no change. ``stale`` says that the source is out of
    reach: what is known may be old, until everything comes again; one that is ``full`` too is what
    its sender knew last. ``more``: it is a part, and the rest comes with the next.

    ``mark`` is a word for all that is known after it: who says it when he follows again is told
    what has changed since, if that is still known, and then ``resumed``: he has everything.
    """

    revision: int
    full: bool = False
    stale: bool = False
    keys: tuple[Key, ...] | None = None
    rules: tuple[tuple[str, Rule], ...] = ()
    gone: tuple[tuple[str, str], ...] = ()
    revoked: tuple[Revocation, ...] = ()
    more: bool = False
    mark: str = ""
    resumed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """Something that was done or refused. ``id`` orders them."""

    id: str
    time: float
    action: str
    by: str
    namespace: str
    subject: str = ""
    allowed: bool = True
    detail: Mapping[str, Any] = field(default_factory=dict)


#: Who asks: his access token, or, within one process, the identity that was verified there; None is
#: nobody.
Caller = Identity | str | None


class Auth(abc.ABC):
    """The interface; an ``async with`` that opens and closes it.

    ``by`` is who asks; nobody may log in and refresh. Common to all verbs: BadRequest
    for names and values that cannot be, Unauthorized for nobody where somebody is needed, Forbidden
    for who may not, Unavailable when the store cannot be reached. Who administers the namespace
    ``micro``, and the platform's processes, may act in every namespace; others in their own. Nobody
    gives a scope or a kind that he does not hold himself.
    """

    async def __aenter__(self) -> Auth:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @abc.abstractmethod
    async def close(self) -> None:
        """Followers end with Unavailable. Idempotent."""

    # -- accounts --------------------------------------------------------------------------------

    @abc.abstractmethod
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
        """Make an account; a random secret when none is given. For who administers. Raises Conflict
        when the id or the name is taken."""

    @abc.abstractmethod
    async def accounts(
        self, *, namespace: str = DEFAULT, by: Caller, limit: int = 0, offset: int = 0
    ) -> list[Account]:
        """By id. For who administers. At most 10,000 at a time."""

    @abc.abstractmethod
    async def account(self, id: str, *, namespace: str = DEFAULT, by: Caller) -> Account:
        """One, by id or name. For itself and who administers. Raises NotFound."""

    @abc.abstractmethod
    async def delete(self, id: str, *, namespace: str = DEFAULT, by: Caller) -> None:
        """Remove an account; its tokens are void. For who administers. Raises NotFound; BadRequest
        for one's own, and for the last that administers ``micro``."""

    @abc.abstractmethod
    async def change_secret(
        self,
        id: str,
        *,
        old: str = "",
        new: str = "",
        namespace: str = DEFAULT,
        by: Caller,
    ) -> str:
        """Change a secret and give the new one, a random one when none is given; all tokens of the
        account are void. Its own needs the old one, and another's is for who administers. Raises
        Unauthorized when the old one is wrong."""

    @abc.abstractmethod
    async def enable(
        self, id: str, enabled: bool, *, namespace: str = DEFAULT, by: Caller
    ) -> Account:
        """Let an account log in, or not: then its tokens are void. For who administers. Raises
        BadRequest for one's own."""

    # -- tokens ----------------------------------------------------------------------------------

    @abc.abstractmethod
    async def token(
        self, id: str, secret: str, *, namespace: str = DEFAULT, source: str = ""
    ) -> Tokens:
        """Log in, with id or name. ``source`` is the address one comes from. Raises Unauthorized,
        the same for what is wrong and for who is not there or not enabled; TooManyRequests after
        too many failures, for the account or the source."""

    @abc.abstractmethod
    async def refresh(self, token: str) -> Tokens:
        """New tokens for a refresh token, which is used up. One that was used before ends the whole
        session: somebody else has it. Raises Unauthorized."""

    @abc.abstractmethod
    async def issue(
        self,
        id: str,
        *,
        scopes: Sequence[str] = (SERVICE,),
        namespace: str = DEFAULT,
        by: Caller,
    ) -> Tokens:
        """An access token for a process, which has no account. For the platform's processes and who
        administers ``micro``."""

    @abc.abstractmethod
    async def inspect(self, token: str) -> Identity:
        """Whose access token this is. Raises Unauthorized that says what is wrong with it."""

    @abc.abstractmethod
    async def revoke(
        self, *, token: str = "", account: str = "", namespace: str = DEFAULT, by: Caller
    ) -> None:
        """Make void a token (access, refresh, or the id of one) or all of an account. One's own, or
        for who administers."""

    # -- rules -----------------------------------------------------------------------------------

    @abc.abstractmethod
    async def create_rule(self, rule: Rule, *, namespace: str = DEFAULT, by: Caller) -> None:
        """For who administers. Raises Conflict when there is one with this id. One with the id of a
        default rule takes its place."""

    @abc.abstractmethod
    async def delete_rule(self, id: str, *, namespace: str = DEFAULT, by: Caller) -> None:
        """For who administers. Raises NotFound, also for a default rule: grant or deny by a rule of
        higher priority, or one with its id."""

    @abc.abstractmethod
    async def rules(self, *, namespace: str = DEFAULT, by: Caller) -> list[Rule]:
        """In the order in which they are tried, with the default ones. For any account of the
        namespace."""

    @abc.abstractmethod
    async def explain(
        self,
        resource: Resource,
        *,
        account: str = "",
        namespace: str = DEFAULT,
        by: Caller,
    ) -> Decision:
        """Whether an account (blank: nobody) may call something, and by which rule. Of oneself for
        any account, of others for who administers."""

    # -- keys ------------------------------------------------------------------------------------

    @abc.abstractmethod
    async def keys(self) -> list[Key]:
        """All that verify now, the newest last."""

    @abc.abstractmethod
    async def rotate(self, *, by: Caller) -> list[Key]:
        """Sign with the next key from now on, and publish another next one. For who administers
        ``micro``. Raises Conflict while the next has not been published for long enough to be known
        to all."""

    # -- following, and what was done ------------------------------------------------------------

    @abc.abstractmethod
    def follow(
        self, namespace: str | None = None, *, mark: str = "", by: Caller
    ) -> AsyncIterator[Update]:
        """Everything, or what has changed since a ``mark`` of an update, then what changes, for
        ever; everything again after a gap. Of a namespace other than ``micro``: its rules, all
        keys, all revocations. For the platform's processes and who administers ``micro``; a service
        of another namespace, or who administers it, gets what is of its own."""

    @abc.abstractmethod
    async def ensure_admin(self, id: str = "admin") -> str:
        """Make the first account of ``micro`` that administers, when there is none, and give its
        random secret; "" when there is one. Of many who ask at once one is told."""

    @abc.abstractmethod
    async def note(self, *entries: Audit, by: Caller) -> None:
        """Enter denials of doors and services among what was done, so many a second of each
        namespace, the rest as a count; their ids are given here. For the platform's processes, as
        the two that follow; a service of a namespace enters what it has refused there."""

    @abc.abstractmethod
    async def audits(self, *, limit: int = 100, by: Caller) -> list[Audit]:
        """The oldest that are not settled, in order."""

    @abc.abstractmethod
    async def settle(self, *ids: str, by: Caller) -> None:
        """Forget entries that are kept elsewhere."""
