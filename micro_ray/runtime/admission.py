"""How a replica that is being started comes to its identity: for TLS with a ticket for its own
name, for its calls with a token of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace

from micro_ray.runtime import Replica
from micro_ray.settings import Bootstrap

__all__ = ["Admission", "Admit", "admitted", "variables"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What a replica is given: a ticket, and the roots (PEM) of who takes it, where TCP is TLS; and
    the token and key by which it is known as a caller, where everybody is asked. Blank where it
    needs none."""

    ticket: str = field(default="", repr=False)
    roots: str = field(default="", repr=False)
    identity: str = field(default="", repr=False)


#: Lets a replica in, as a node of the service that is named as its workload is. Raises Unavailable.
Admit = Callable[[Replica], Awaitable[Admission]]


async def admitted(boot: Bootstrap, replica: Replica, admit: Admit | None) -> Bootstrap:
    """``boot`` with what a replica needs."""
    return boot if admit is None else replace(boot, **asdict(await admit(replica)))


async def variables(replica: Replica, admit: Admit | None) -> dict[str, str]:
    """The same for the environment of a process."""
    given = {} if admit is None else asdict(await admit(replica))
    return {f"MICRO_{name.upper()}": value for name, value in given.items() if value}
