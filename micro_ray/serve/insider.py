"""What makes a door one of the platform: how it is known inside, and how it knows who comes."""

from __future__ import annotations

import contextlib

from micro_ray.actors.member import limits_of
from micro_ray.api.visitors import Visitors
from micro_ray.auth.passes import PrivateKey, platform
from micro_ray.settings import Settings, bootstrap
from micro_ray.wire.client import WireDialer
from micro_ray.wire.trust import Trust

__all__ = ["insider"]


async def insider(
    stack: contextlib.AsyncExitStack, settings: Settings, service: str
) -> tuple[WireDialer, Visitors]:
    """The dialer and the visitors of a door, kept up to date as long as ``stack`` is open."""
    namespace, domain = settings.namespace, settings.api.domain
    if not settings.key:
        return WireDialer(limits=limits_of(settings)), Visitors(namespace=namespace, domain=domain)
    key = PrivateKey(settings.key)
    passes = platform(key, service)
    dialer = WireDialer(limits=limits_of(settings), credentials=passes.itself)
    boot = bootstrap(settings, {})
    trust = Trust(dialer, boot.auths, settings.auth, platform=key.public)
    await stack.enter_async_context(trust)
    visitors = Visitors(
        trust.guard, passes, namespace=namespace, domain=domain, denials=trust.denials
    )
    return dialer, visitors
