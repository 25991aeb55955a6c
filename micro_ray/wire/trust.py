"""What a process knows of who calls it, and how it is known itself.

:class:`Trust` is of every process that serves: a guard that is kept up to date, and what it refused
told to auth. :class:`Holder` is the identity of a replica: a key of its own, and an access token
that names the key and is renewed while the replica lives. Processes of the platform have the
platform's key instead, and renew nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence

import jwt

from micro_ray.auth import DEFAULT, Identity, Kind
from micro_ray.auth.callers import Callers
from micro_ray.auth.denials import Denials
from micro_ray.auth.guard import Guard
from micro_ray.auth.passes import Passes, PrivateKey
from micro_ray.errors import BadRequest, Forbidden, MicroError, Unauthorized
from micro_ray.network import Dialer
from micro_ray.settings import PLATFORM
from micro_ray.settings import Auth as Settings
from micro_ray.wire.guarding import Informer
from micro_ray.wire.remote import Direct

__all__ = ["Holder", "Trust"]

log = logging.getLogger(__name__)

#: Seconds between looks for what was refused, and entries that are told at a time.
TELL, AT_ONCE = 1.0, 100
#: Seconds between attempts to renew a token: first, and at most.
BACKOFF = (0.5, 30.0)
#: The part of its life after which a token is renewed.
RENEW = 1 / 3


class Trust:
    """An ``async with``: entered, the guard is being kept up to date from ``addresses`` (auth
    caches and auth). ``platform`` is the public half of the platform's key; ``namespace`` is whose
    rules are needed (None: of all)."""

    def __init__(
        self,
        dialer: Dialer,
        addresses: Sequence[str],
        settings: Settings,
        *,
        platform: str,
        namespace: str | None = None,
    ) -> None:
        self.guard = Guard(settings.issuer, settings.audience, platform=platform)
        self.denials = Denials()
        self._platform = platform
        self._dialer = dialer
        self._members = [address for address in addresses if "authcache" not in address]
        self.informer = Informer(dialer, addresses, self.guard, namespace=namespace)
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Trust:
        await self._stack.enter_async_context(self.informer)
        if self._members:
            telling = asyncio.create_task(self._tell_denials(), name="denials")
            self._stack.callback(telling.cancel)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def callers(self, service: str, namespace: str = DEFAULT) -> Callers:
        """Who decides for a service."""
        return Callers(
            self.guard,
            service=service,
            namespace=namespace,
            platform=self._platform,
            shared=namespace == DEFAULT and service in PLATFORM,
            denials=self.denials,
        )

    async def _tell_denials(self) -> None:
        """Tell auth what was refused, for ever. What cannot be told is told the next time, as long
        as it is among the newest; what auth does not take is gone."""
        direct = Direct(self._dialer, self._members, "auth")
        try:
            while True:
                await asyncio.sleep(TELL * random.uniform(0.5, 1))
                entries = self.denials.take(AT_ONCE)
                if not entries:
                    await direct.close()  # auth holds no line to all who have nothing to say
                    continue
                try:
                    await direct.call("Auth.Note", {"entries": entries}, object)
                except (BadRequest, Forbidden, Unauthorized) as error:
                    log.info("%d denials are not entered: %s", len(entries), error)
                except MicroError as error:
                    log.info("%d denials are not told yet: %s", len(entries), error)
                    self.denials.put_back(entries)
                    await direct.elsewhere()
        finally:
            await direct.close()


class Holder:
    """``text`` is a replica's access token and its private key, separated by a blank, as the
    runtime has given them. An ``async with`` renews the token at the caches of ``addresses``.

    Raises BadRequest for a text that is none.
    """

    def __init__(self, text: str, clock: Callable[[], float] = time.time) -> None:
        self.token, _, key = text.rpartition(" ")
        self._clock = clock
        try:
            private = PrivateKey(key)
            self.identity = _said(self.token)
        except (ValueError, KeyError, jwt.PyJWTError):
            raise BadRequest("settings", "MICRO_IDENTITY: this is no identity") from None
        self.passes = Passes(private, self.identity, token=lambda: self.token)

    @contextlib.asynccontextmanager
    async def renewed(self, dialer: Dialer, addresses: Sequence[str]) -> AsyncIterator[Holder]:
        """Renew the token as long as this lasts."""
        caches = [address for address in addresses if "authcache" in address]
        renewing = asyncio.create_task(self._renew(Direct(dialer, caches, "authcache")))
        try:
            yield self
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _renew(self, direct: Direct) -> None:
        pause = BACKOFF[0]
        try:
            while True:
                life = self.identity.expires - self.identity.issued
                due = self.identity.issued + life * RENEW - self._clock()
                await asyncio.sleep(max(due, pause) * random.uniform(0.8, 1))
                try:
                    found = await direct.call("AuthCache.Renew", {}, dict[str, str])
                    self.identity, self.token = _said(found["access"]), found["access"]
                    self.passes.forget()
                    pause = BACKOFF[0]
                except (MicroError, KeyError, jwt.PyJWTError) as error:
                    left = self.identity.expires - self._clock()
                    log.warning("this identity, good for %d s, is not renewed: %s", left, error)
                    await direct.elsewhere()
                    pause = min(pause * 2, BACKOFF[1])
        finally:
            await direct.close()


def _said(token: str) -> Identity:
    """What one's own token says of oneself."""
    claims = jwt.decode(token, options={"verify_signature": False})
    return Identity(
        id=claims["sub"],
        kind=Kind(claims["kind"]),
        namespace=claims["namespace"],
        scopes=tuple(claims["scope"].split()),
        token=claims["jti"],
        issued=float(claims["iat"]),
        expires=float(claims["exp"]),
    )
