"""One platform and one door for all tests of the door; a test that needs other settings opens a
door of its own on the same network. All run on uvloop, as the doors do; those of the listener on
asyncio's own loop too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop

from micro_ray.network.network import Network
from micro_ray.sdk.testing import Here, platform
from tests.unit.api import services
from tests.unit.api.door import Door, open_door
from tests.unit.api.services import Probe

HERE = Path(__file__).parent


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.path.name == "test_listener.py":
        return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A signal does not wake an idle uvloop, so that a thread must end what hangs."""
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.timeout(60, method="thread"))


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def probe() -> Probe:
    return Probe()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def town(probe: Probe) -> AsyncIterator[Here]:
    """The platform with its services."""
    async with platform() as here:
        for service in (services.echo(probe), services.streams(probe), services.users()):
            await here.serve(service, f"{service.name}-1")
        yield here


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def network(town: Here) -> Network:
    """What the doors call by."""
    found = await town.network()
    while not found.table.known("micro", "users"):
        await found.table.changed()
    return found


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def door(network: Network) -> AsyncIterator[Door]:
    async with open_door(network) as up:
        yield up
