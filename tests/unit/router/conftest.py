"""A registry behind a real socket, which can be taken away, and a router that follows it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from micro_ray.router.derive import Router
from micro_ray.wire.dialer import WireDialer
from micro_ray.wire.registry import RemoteRegistry
from tests.fixtures.lines import RegistryPlace, registry_at
from tests.fixtures.registries import Clock
from tests.fixtures.wait import eventually


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: the name of a Unix socket must be short.
    with TemporaryDirectory(prefix="ro-") as name:
        yield Path(name)


@pytest.fixture
async def place(folder: Path) -> AsyncIterator[RegistryPlace]:
    async with registry_at(folder / "registry.sock") as place:
        yield place


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Following:
    """A router with what tests ask of it."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.table = router.table

    def ids(self, service: str = "greeter", namespace: str = "micro") -> list[str]:
        return [r.id for r in self.table.lookup(namespace, service)]

    async def has(self, *ids: str, service: str = "greeter") -> None:
        """Wait until the table has these routes of a service, and no other."""
        await eventually(lambda: self.ids(service) == sorted(ids))

    async def stale(self, wanted: bool = True) -> None:
        await eventually(lambda: self.table.stale is wanted)


Follow = Callable[..., Any]


@pytest.fixture
async def follow(place: RegistryPlace, clock: Clock) -> AsyncIterator[Follow]:
    """Start a router on the registry's place; ``options`` are the router's."""
    async with AsyncExitStack() as stack:

        async def follow(**options: Any) -> Following:
            remote = RemoteRegistry(WireDialer(), [place.address])
            stack.push_async_callback(remote.close)
            options.setdefault("clock", clock)
            router = await stack.enter_async_context(Router(remote, **options))
            return Following(router)

        yield follow
