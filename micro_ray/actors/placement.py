"""Where the members of the pools run on a Ray of several machines.

What keeps its data in memory or in files of the state folder has them on the server's machine, and
runs there. What keeps it elsewhere, or has none, is spread: registry, routers and auth in turn, so
that their well-known ports are on machines that are known from the start, and auth caches so that
each machine has one; the others as Ray likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from micro_ray.settings import Settings
from micro_ray.wire.address import Address

__all__ = ["Machine", "machine_of", "with_addresses"]

#: Machines of a platform that have an auth cache of their own, at most; on others auth is followed.
MOST_CACHES = 64


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
    if service in ("registry", "router", "auth", "authcache"):
        return machines[index % len(machines)], False
    return None, False


def with_addresses(settings: Settings, machines: Sequence[Machine]) -> Settings:
    """The settings with the addresses at which other machines reach registry, routers, certs and
    auth, and with an auth cache for each machine."""

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
            auth_addresses=addresses("auth", pools.auth, network.auth_port),
            certs_addresses=addresses("certs", pools.certs, network.certs_port),
        ),
        pools=replace(pools, authcache=max(pools.authcache, min(len(machines), MOST_CACHES))),
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
    # What secrets are sealed with: of config, and of the keys that sign tokens.
    sealed = {"config": settings.config.key_file, "auth": settings.auth.key_file}
    if service in sealed:
        return sealed[service].is_relative_to(settings.state)
    # The runtime has sources, logs and processes of its machine, certs the authority's key.
    return service in ("runtime", "certs")
