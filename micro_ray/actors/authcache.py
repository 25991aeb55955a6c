"""An auth cache's actor: ``ray.get_actor("authcache", namespace="micro")``. One on each machine
tells its guards what auth says, so that auth has one follower per machine."""

from __future__ import annotations

from collections.abc import AsyncIterator

from micro_ray.actors.auth import token_of
from micro_ray.actors.member import Member
from micro_ray.actors.streams import streamed
from micro_ray.auth import Caller, Update
from micro_ray.auth.cache import Cache, Status
from micro_ray.auth.guard import Guard
from micro_ray.auth.passes import Issuer
from micro_ray.wire import authcache as face
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.guarding import Credential, Line, members
from micro_ray.wire.runtime import lives
from micro_ray.wire.schema import MSGPACK

__all__ = ["AuthCacheActor"]


class AuthCacheActor(Member):
    """What guards follow, and how it stands."""

    service = "authcache"
    unasked = frozenset(("follow",))

    async def open(self) -> Endpoints:
        self._network, _ = await self.network()
        settings, credential = self.settings, self.credential()
        addresses = [address for address in self.bootstrap.auths if "authcache" not in address]
        self.backend = await self._stack.enter_async_context(
            Cache(
                members(self.dialer(), addresses, credential, lambda: self._elsewhere(credential)),
                keep=settings.state / f"auth-cache-{self.index}.snapshot",
                guard=Guard(settings.auth.issuer, settings.auth.audience),
            )
        )
        issuer = None
        if self.passes is not None:
            issuer = Issuer.of(self.passes.key, settings.auth)
        return face.endpoints(self.backend, self.passes, issuer, lives(self._network))

    def credential(self) -> Credential | None:
        """Who the cache is to auth."""
        return None

    async def _elsewhere(self, credential: Credential | None) -> AsyncIterator[Update]:
        """Auth where the table of routes has it."""
        metadata = {} if credential is None else credential()
        opened = self._network.open("auth", "Auth.Follow", content=MSGPACK, metadata=metadata)
        async with await opened as stream:
            line = Line(stream)
            await line.ask({})
            while (update := await line.receive()) is not None:
                yield update

    @streamed()
    def follow(
        self, namespace: str | None = None, *, mark: str = "", by: Caller
    ) -> AsyncIterator[Update]:
        """A stream, for ever: end it with ``ray.cancel``."""
        return self.backend.follow(namespace, mark=mark, by=token_of(by))

    async def status(self) -> Status:
        return await self.backend.status()
