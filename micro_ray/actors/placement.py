"""Where the members of the pools run on a Ray of several machines.

What keeps its data in memory or in files of the state folder has them on the server's machine, and
runs there. What keeps it elsewhere, or has none, is spread: registry and routers in turn, so that
their well-known ports are on machines that are known from the start, the others as Ray likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from micro_ray.settings import Settings
from micro_ray.wire.address import Address

__all__ = ["Machine", "machine_of", "with_addresses"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A node of Ray: its id there and its IP address."""

    id: str
    address: str


def machine_of(
    settings: Settings, service: str, index: int, machines: Sequence[Machine]
) -> tuple[Machine | None, bool]:
    """The machine of a member, None for any, and whether it must stay there. ``machines`` begins
    with the server's."""
    if _bound(settings, service):
        return machines[0], True
    if service in ("registry", "router"):
        return machines[index % len(machines)], False
    return None, False


def with_addresses(settings: Settings, machines: Sequence[Machine]) -> Settings:
    """The settings with the addresses at which other machines reach registry, routers and certs."""

    def addresses(service: str, count: int, port: int) -> tuple[str, ...]:
        places = [machine_of(settings, service, index, machines)[0] for index in range(count)]
        return tuple(
            str(Address(host=place.address, port=port + index))
            for index, place in enumerate(places)
            if place is not None
        )

    network, pools = settings.network, settings.pools
    return replace(
        settings,
        network=replace(
            network,
            registry_addresses=addresses("registry", pools.registry, network.registry_port),
            router_addresses=addresses("router", pools.router, network.router_port),
            certs_addresses=addresses("certs", pools.certs, network.certs_port),
        ),
    )


def _bound(settings: Settings, service: str) -> bool:
    """Whether a service's data is on the server's machine only."""
    embedded = {
        "registry": settings.registry.url,
        "store": settings.store.url,
        "broker": settings.broker.url,
        "events": settings.events.url,
    }
    if service in embedded:
        return embedded[service].startswith(("memory:", "sqlite:"))
    # The runtime has sources, logs and processes of its machine, certs the authority's key; config
    # the keys of its secrets.
    return service in ("runtime", "certs") or (
        service == "config" and settings.config.key_file.is_relative_to(settings.state)
    )
