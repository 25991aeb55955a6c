"""Who a client is: whoever is logged in here, with an access token that is renewed when it is old.

A token is told to the platform's own services alone. For others a client gets a pass for each, from
an auth cache, and remembers it for half of its life.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from micro_ray.context import AUTHORIZATION
from micro_ray.errors import MicroError, Unauthorized
from micro_ray.network import Dialer
from micro_ray.sdk.logins import Login, Logins
from micro_ray.settings import PLATFORM, Bootstrap
from micro_ray.wire.remote import Direct

__all__ = ["Account", "Ask", "directly"]

log = logging.getLogger(__name__)

#: Asks a service of the platform, that of an endpoint's handler, with metadata (None: as nobody).
Ask = Callable[[str, Any, Mapping[str, str] | None], Awaitable[dict[str, Any]]]

#: An access token with fewer seconds left is replaced before it is used.
FRESH = 60.0
#: Passes that are remembered; more, and it begins anew.
REMEMBERED = 1000


def directly(boot: Bootstrap, dialer: Dialer) -> Ask:
    """Asks auth, or an auth cache, where it listens."""

    async def ask(
        endpoint: str, request: Any, metadata: Mapping[str, str] | None
    ) -> dict[str, Any]:
        service = endpoint.partition(".")[0].lower()
        wanted = service == "authcache"
        places = [a for a in boot.auths if ("authcache" in a) is wanted]
        direct = Direct(dialer, places, service)
        try:
            return await direct.call(
                endpoint, request, dict[str, Any], metadata=metadata or {AUTHORIZATION: ""}
            )
        finally:
            await direct.close()

    return ask


class Account:
    """``boot`` says where logins are kept; its ``token`` wins over those. ``ask`` reaches auth and
    its caches."""

    def __init__(self, boot: Bootstrap, ask: Ask) -> None:
        self._boot = boot
        self._ask = ask
        self._logins = Logins(boot.credentials) if boot.credentials != Path() else None
        self._known: Login | None = None
        self._looked = False
        #: By the token that they are of, too: a pass ends with it.
        self._passes: dict[tuple[str, str, str], tuple[float, dict[str, str]]] = {}
        self._turn = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None

    @property
    def namespace(self) -> str:
        """That of the account, blank for nobody's."""
        return "" if self._known is None else self._known.namespace

    async def look(self) -> str:
        """The access token, good for a while; blank for nobody. Raises PreconditionFailed for a
        file of logins that others may read, or that is damaged."""
        if self._boot.token:
            return self._boot.token
        known = self._known
        if known is not None and known.expires - time.time() > FRESH:
            return known.access
        if self._logins is None or (self._looked and known is None):
            return ""
        async with self._turn:
            known = await asyncio.to_thread(self._logins.read, self._boot.place)
            if known is not None and known.expires - time.time() <= FRESH:
                known = await self._refreshed(self._logins)
            self._known, self._looked = known, True
            return "" if known is None else known.access

    async def _refreshed(self, logins: Logins) -> Login | None:
        """With new tokens, by whichever client comes first; None when the session has ended. Who
        cannot reach auth goes on with what there is."""
        lock = logins.locked()
        await asyncio.to_thread(lock.__enter__)
        try:
            known = await asyncio.to_thread(logins.read, self._boot.place)
            if known is None or known.expires - time.time() > FRESH:
                return known
            try:
                tokens = await self._ask("Auth.Refresh", {"token": known.refresh}, None)
            except Unauthorized:
                await asyncio.to_thread(logins.write, self._boot.place, None)
                return None
            except MicroError:
                return known
            made = Login(
                id=known.id,
                namespace=known.namespace,
                access=tokens["access"],
                expires=tokens["expires"],
                refresh=tokens["refresh"],
            )
            await asyncio.to_thread(logins.write, self._boot.place, made)
            return made
        finally:
            await asyncio.to_thread(lock.__exit__, None, None, None)

    def itself(self, namespace: str, service: str) -> dict[str, str]:
        """What is said to a service of the platform that is called without asking first. A token
        that is old is renewed meanwhile, for the next time: streams end with theirs, and who opens
        them again (a follower of routes, say) may be the only one who speaks."""
        known = self._known
        if known is not None and known.expires - time.time() <= FRESH and self._renewing is None:
            self._renewing = asyncio.create_task(self._renew(), name="account")
        token = self._boot.token or ("" if self._known is None else self._known.access)
        return {AUTHORIZATION: f"Bearer {token}"} if token and service in PLATFORM else {}

    async def _renew(self) -> None:
        try:
            await self.look()
        except MicroError as error:
            log.debug("this login is not renewed: %s", error)
        finally:
            self._renewing = None

    async def close(self) -> None:
        """Give up what is under way."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)

    async def to(self, namespace: str, service: str) -> dict[str, str]:
        """The metadata with which a service is called."""
        token = await self.look()
        if not token:
            return {}
        bearer = {AUTHORIZATION: f"Bearer {token}"}
        service = service.lower()
        if service in PLATFORM:
            return bearer
        place = (token, namespace, service)
        found = self._passes.get(place)
        if found is None or found[0] < time.time():
            request = {"namespace": namespace, "service": service}
            given = await self._ask("AuthCache.Pass", request, bearer)
            found = (float(given["renew"]), dict(given["metadata"]))
            if len(self._passes) >= REMEMBERED:
                self._passes.clear()
            self._passes[place] = found
        return dict(found[1])
