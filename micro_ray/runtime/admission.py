"""How a replica that is being started comes to its identity: with a ticket for its own name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from micro_ray.runtime import Replica
from micro_ray.settings import Bootstrap

__all__ = ["Admission", "Admit", "admitted", "variables"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What a replica is given: a ticket, and the roots (PEM) of who takes it."""

    ticket: str = field(repr=False)
    roots: str = field(repr=False)


#: Lets a replica in, as a node of the service that is named as its workload is. Raises Unavailable.
Admit = Callable[[Replica], Awaitable[Admission]]


async def admitted(boot: Bootstrap, replica: Replica, admit: Admit | None) -> Bootstrap:
    """``boot`` with what a replica needs."""
    if admit is None:
        return boot
    given = await admit(replica)
    return replace(boot, ticket=given.ticket, roots=given.roots)


async def variables(replica: Replica, admit: Admit | None) -> dict[str, str]:
    """The same for the environment of a process."""
    if admit is None:
        return {}
    given = await admit(replica)
    return {"MICRO_TICKET": given.ticket, "MICRO_ROOTS": given.roots}
