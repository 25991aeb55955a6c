"""The identities of what the platform itself starts: it asks certs over the handle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from micro_ray.certs import Credential, Identity, Issued, Ticket
from micro_ray.context import DEFAULT_NAMESPACE
from micro_ray.errors import MicroError, Unavailable
from micro_ray.runtime import Replica
from micro_ray.runtime.admission import Admission
from micro_ray.settings import RAY_NAMESPACE, Settings, bootstrap
from micro_ray.wire.enrolment import covers, enrolled
from micro_ray.wire.identity import Secured

__all__ = ["admit", "identified", "needed"]

log = logging.getLogger(__name__)

#: Seconds between attempts to reach certs, and that an answer may take.
PAUSE, ANSWER = 0.25, 10.0


def needed(settings: Settings) -> bool:
    """Whether what listens on the address of the settings needs an identity."""
    return covers(settings.network.tls, bootstrap(settings, {}).address)


@asynccontextmanager
async def identified(
    settings: Settings, service: str, node: str = ""
) -> AsyncIterator[Secured | None]:
    """The identity of a member or a door, kept fresh; None where none is needed. Waits for certs,
    however long that takes to come up."""
    if not needed(settings):
        yield None
        return
    who = Identity(
        namespace=DEFAULT_NAMESPACE,
        service=service,
        node=node or f"{service}-{os.urandom(8).hex()}",
    )
    said = False
    while not await _there():
        if not said:
            log.info("%s waits for certs", who.node)
        said = True

    async def ask(request: bytes, _: Credential | None) -> Issued:
        issued: Issued = await _call("issue", request, who)
        return issued

    async with enrolled(bootstrap(settings, {}), who, first=ask) as own:
        yield own.secured


async def admit(replica: Replica) -> Admission:
    """Let a replica in that is being started. Raises Unavailable when certs is away."""
    who = Identity(namespace=replica.namespace, service=replica.workload, node=replica.id)
    made: Ticket = await _call("ticket", who)
    return Admission(ticket=made.secret, roots=made.trusted.decode())


async def _there() -> bool:
    """Whether certs answers; a moment later when it does not."""
    with contextlib.suppress(MicroError):
        await _call("ping")
        return True
    await asyncio.sleep(PAUSE)
    return False


async def _call(verb: str, *args: Any) -> Any:
    try:
        handle = await asyncio.to_thread(ray.get_actor, "certs", namespace=RAY_NAMESPACE)
        async with asyncio.timeout(ANSWER):
            return await getattr(handle, verb).remote(*args)
    except RayTaskError as error:
        if isinstance(error.cause, MicroError):
            raise error.cause from None
        raise Unavailable("certs", f"certs failed: {error.cause}") from None
    except (RayError, ValueError, TimeoutError) as error:  # ValueError: it is not there
        why = str(error).partition("\n")[0] or type(error).__name__
        raise Unavailable("certs", f"certs is away: {why[:200]}") from None
