"""The auth's actor: ``ray.get_actor("auth", namespace="micro")``. Who asks is known by his access
token: that a verb came over the handle proves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from micro_ray.actors.member import Member
from micro_ray.actors.streams import streamed
from micro_ray.auth import (
    AUDIT,
    DEFAULT,
    PLATFORM,
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
from micro_ray.auth.stored import StoredAuth
from micro_ray.errors import BadRequest, MicroError
from micro_ray.events import Events
from micro_ray.sealing import KeyFile
from micro_ray.wire import auth as face
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.events import RemoteEvents
from micro_ray.wire.store import RemoteStore

__all__ = ["AuthActor", "token_of"]

log = logging.getLogger(__name__)

#: Who the actor is to itself.
SELF = Identity(id="auth", kind=Kind.SERVICE, namespace=DEFAULT, scopes=(PLATFORM,))
#: Seconds between looks for what was done.
LOOK = 1.0


class AuthActor(Member):
    """The verbs of :class:`~micro_ray.auth.Auth`. ``by`` is an access token."""

    service = "auth"
    #: Its backend asks itself, by ``by``; what it does not is for everybody, and the first account
    #: for who owns the machine.
    asks = False

    async def open(self) -> Endpoints:
        settings = self.settings
        network, _ = await self.network()
        self.backend = await self._stack.enter_async_context(
            StoredAuth(
                RemoteStore(network),
                KeyFile(settings.auth.key_file, "auth"),
                settings=settings.auth,
                space=settings.namespace,
            )
        )
        publishing = asyncio.create_task(publish(self.backend, RemoteEvents(network)))
        self._stack.callback(publishing.cancel)
        return face.endpoints(self.backend)

    async def generate(self, id: str, *, by: Caller, **options: Any) -> Created:
        return await self.backend.generate(id, by=token_of(by), **options)

    async def accounts(self, *, by: Caller, **options: Any) -> list[Account]:
        return await self.backend.accounts(by=token_of(by), **options)

    async def account(self, id: str, *, by: Caller, **options: Any) -> Account:
        return await self.backend.account(id, by=token_of(by), **options)

    async def delete(self, id: str, *, by: Caller, **options: Any) -> None:
        await self.backend.delete(id, by=token_of(by), **options)

    async def change_secret(self, id: str, *, by: Caller, **options: Any) -> str:
        return await self.backend.change_secret(id, by=token_of(by), **options)

    async def enable(self, id: str, enabled: bool, *, by: Caller, **options: Any) -> Account:
        return await self.backend.enable(id, enabled, by=token_of(by), **options)

    async def token(self, id: str, secret: str, **options: Any) -> Tokens:
        return await self.backend.token(id, secret, **options)

    async def refresh(self, token: str) -> Tokens:
        return await self.backend.refresh(token)

    async def issue(self, id: str, *, by: Caller, **options: Any) -> Tokens:
        return await self.backend.issue(id, by=token_of(by), **options)

    async def inspect(self, token: str) -> Identity:
        return await self.backend.inspect(token)

    async def revoke(self, *, by: Caller, **options: Any) -> None:
        await self.backend.revoke(by=token_of(by), **options)

    async def create_rule(self, rule: Rule, *, by: Caller, **options: Any) -> None:
        await self.backend.create_rule(rule, by=token_of(by), **options)

    async def delete_rule(self, id: str, *, by: Caller, **options: Any) -> None:
        await self.backend.delete_rule(id, by=token_of(by), **options)

    async def rules(self, *, by: Caller, **options: Any) -> list[Rule]:
        return await self.backend.rules(by=token_of(by), **options)

    async def explain(self, resource: Resource, *, by: Caller, **options: Any) -> Decision:
        return await self.backend.explain(resource, by=token_of(by), **options)

    async def keys(self) -> list[Key]:
        return await self.backend.keys()

    async def rotate(self, *, by: Caller) -> list[Key]:
        return await self.backend.rotate(by=token_of(by))

    @streamed()
    def follow(
        self, namespace: str | None = None, *, mark: str = "", by: Caller
    ) -> AsyncIterator[Update]:
        """A stream, for ever: end it with ``ray.cancel``."""
        return self.backend.follow(namespace, mark=mark, by=token_of(by))

    async def ensure_admin(self, id: str = "admin") -> str:
        return await self.backend.ensure_admin(id)

    async def note(self, *entries: Audit, by: Caller) -> None:
        await self.backend.note(*entries, by=token_of(by))

    async def audits(self, *, limit: int = 100, by: Caller) -> list[Audit]:
        return await self.backend.audits(limit=limit, by=token_of(by))

    async def settle(self, *ids: str, by: Caller) -> None:
        await self.backend.settle(*ids, by=token_of(by))


def token_of(by: Caller) -> str | None:
    if by is not None and not isinstance(by, str):
        raise BadRequest("auth", "over a handle one is known by his access token")
    return by


async def publish(auth: Auth, events: Events) -> None:
    """Publish what was done to events, for ever. An entry is settled when the stream has it; one
    that another member publishes too has the same id, and is there once."""
    while True:
        with contextlib.suppress(MicroError):  # tried again: entries stay where they are
            while entries := await auth.audits(by=SELF):
                for entry in entries:
                    await _publish_one(events, entry)
                await auth.settle(*(entry.id for entry in entries), by=SELF)
        await asyncio.sleep(LOOK)


async def _publish_one(events: Events, entry: Audit) -> None:
    """To its namespace, or to the platform's where that refuses it: one that is full must not hold
    up what others have done."""
    body = msgspec.json.encode(entry)
    try:
        await events.publish(AUDIT, body, id=entry.id, namespace=entry.namespace)
    except MicroError as error:
        if error.code >= 500:
            raise
        log.warning("events of %s refuse an audit entry: %s", entry.namespace, error)
        await events.publish(AUDIT, body, id=entry.id, namespace=DEFAULT)
