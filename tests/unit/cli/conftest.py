"""One platform for all tests of the command line: services of every kind, and a real runtime that
runs local processes. Tests use names of their own and leave it as they found it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from examples.helloworld import main as helloworld
from micro_ray import Service
from micro_ray.runtime.archives import Archives
from micro_ray.runtime.process import ProcessDriver
from micro_ray.runtime.reconcile import Reconciler
from micro_ray.sdk.testing import Here, platform
from micro_ray.settings import load, service_environ
from micro_ray.wire import runtime as face
from micro_ray.wire.store import RemoteStore
from tests.fixtures.terminal import Terminal, environment
from tests.unit.cli import services


def greeter() -> Service:
    service = Service("helloworld", description="Greets")
    service.endpoint(helloworld.call)
    return service


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def town() -> AsyncIterator[Here]:
    """The platform with its services."""
    async with platform() as here:
        for service in (greeter(), services.toolbox(), services.streams(), services.ailing()):
            await here.serve(service, f"{service.name}-1")
        yield here


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def state(town: Here) -> AsyncIterator[Path]:
    """The state folder, with the runtime that keeps its things there."""
    with tempfile.TemporaryDirectory(prefix="mc-") as name:
        folder = Path(name)
        settings = load(
            {"MICRO_STATE": name, "MICRO_RUN": str(town.bootstrap.run), "MICRO_NAMESPACE": ""}
        )
        network = await town.network()
        store = RemoteStore(network)
        driver = ProcessDriver(
            folder,
            environ=service_environ(town.bootstrap, settings),
            known=network.table.has,
            anchor=os.getpid(),
            grace=2.0,
        )
        archives = Archives(store, folder, namespace="micro", limit=settings.runtime.max_source)
        async with Reconciler(
            store, {"process": driver}, folder, archives=archives, settings=settings.runtime
        ) as runtime:
            await town.host("runtime", face.endpoints(runtime), socket_name="runtime-0")
            await town.known("runtime")
            yield folder
            await runtime.halt(0)


@pytest.fixture
def here_folder() -> Iterator[Path]:
    """An empty folder to be in."""
    with tempfile.TemporaryDirectory(prefix="mf-") as name:
        folder = Path(name) / "folder"
        folder.mkdir()
        yield folder


@pytest.fixture
def terminal(town: Here, state: Path, here_folder: Path) -> Terminal:
    """A terminal that reaches the platform."""
    environ = environment(town.bootstrap, state, MICRO_RUNTIME_DRIVER="process")
    return Terminal(environ, here_folder)


@pytest.fixture
def lonely(here_folder: Path) -> Iterator[Terminal]:
    """A terminal where no server runs."""
    with tempfile.TemporaryDirectory(prefix="ml-") as name:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MICRO_", "_MICRO_"))}
        own = {"MICRO_STATE": os.path.realpath(name), "MICRO_CREDENTIALS": f"{name}/login.json"}
        yield Terminal(clean | own, here_folder)
