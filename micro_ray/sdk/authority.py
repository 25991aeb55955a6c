"""Auth for the platform of tests (``testing.py``): accounts, rules and tokens as they really are,
with secrets that are hashed as cheaply as argon2 lets."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from micro_ray.auth import ADMIN, Identity, Kind, Tokens
from micro_ray.auth.cache import Cache
from micro_ray.auth.passes import Issuer, Passes, PrivateKey, platform
from micro_ray.auth.passwords import Passwords
from micro_ray.auth.stored import StoredAuth
from micro_ray.sealing import KeyFile
from micro_ray.settings import Auth as Settings
from micro_ray.settings import Bootstrap
from micro_ray.store import Store
from micro_ray.wire import auth as auth_face
from micro_ray.wire import authcache as cache_face
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.endpoints import Endpoints
from micro_ray.wire.trust import Trust

__all__ = ["Authority"]

#: Who the platform of a test is to its own auth.
ITSELF = Identity(id="platform", kind=Kind.ADMIN, scopes=(ADMIN,))


class Authority:
    """An ``async with`` around what :class:`~micro_ray.sdk.testing.Here` does not have by itself.
    ``auth`` is the interface; accounts and rules may be made with ``by=ITSELF``."""

    def __init__(self, store: Store, folder: Path, settings: Settings) -> None:
        self.key = PrivateKey()
        self.auth = StoredAuth(
            store,
            KeyFile(folder / "auth.keys", "auth"),
            settings=settings,
            passwords=Passwords(memory=8, passes=1),
        )
        self.issuer = Issuer.of(self.key, settings)
        self.cache = Cache(lambda: self.auth.follow(by=ITSELF))
        self._settings = settings
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Authority:
        await self._stack.enter_async_context(self.auth)
        await self._stack.enter_async_context(self.cache)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def passes(self, service: str) -> Passes:
        """By which a part of the platform is known."""
        return platform(self.key, service)

    def dialer(self, service: str) -> WireDialer:
        """What calls as that part."""
        return WireDialer(credentials=self.passes(service).itself)

    def trust(self, boot: Bootstrap) -> Trust:
        """What the parts know of who calls."""
        return Trust(self.dialer("platform"), boot.auths, self._settings, platform=self.key.public)

    def faces(self) -> dict[str, Endpoints]:
        """The services ``auth`` and ``authcache``."""
        return {
            "auth": auth_face.endpoints(self.auth),
            "authcache": cache_face.endpoints(self.cache, self.passes("authcache"), self.issuer),
        }

    async def login(
        self, id: str, namespace: str = "micro", *, scopes: Sequence[str] = ()
    ) -> Tokens:
        """The tokens of a new account."""
        kind = Kind.ADMIN if ADMIN in scopes else Kind.USER
        made = await self.auth.generate(
            id, kind=kind, scopes=scopes, namespace=namespace, by=ITSELF
        )
        return await self.auth.token(id, made.secret, namespace=namespace)
