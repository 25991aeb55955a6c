"""The platform for tests: quick, whole, and gone without a trace; in async code and in any."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from micro_ray import AsyncClient, Client, Service
from micro_ray.errors import BadRequest, NotFound, Unavailable
from micro_ray.sdk import testing
from micro_ray.sdk.testing import Here, platform
from micro_ray.sdk.town import Town
from tests.fixtures.wait import PROMPT


def greeter(name: str = "greeter") -> Service:
    service = Service(name)

    @service.endpoint
    async def call(name: str = "World") -> dict[str, str]:
        return {"message": f"Hello {name}"}

    return service


async def test_it_is_up_at_once() -> None:
    """Well under a second on an idle machine; more is for one that is not."""
    begun = time.monotonic()
    async with platform() as here:
        assert "store" in await here.client.services()
        await here.serve(greeter())
        assert await here.client.call("greeter") == {"message": "Hello World"}
        assert time.monotonic() - begun < PROMPT


async def test_it_is_whole(here: Here) -> None:
    """The platform's services are called as any other: over frames, by name."""
    call = here.client.call
    assert set(await here.client.services()) == {
        "broker", "certs", "config", "events", "limits", "network", "registry", "router", "store",
    }  # fmt: skip
    await call("store", "Store.Write", {"key": "a", "value": "b"})
    assert (await call("store", "Store.List"))["keys"] == ["a"]
    assert (await here.store.read("a")).value == b"b"
    services = await call("registry", "Registry.ListServices")
    assert {service["name"] for service in services} == set(await here.client.services())
    routes = await call("router", "Table.Read")
    assert {route["service"] for route in routes} == set(await here.client.services())
    for service in await here.client.services():
        assert (await call(service, "Debug.Health"))["status"] == "ok"


async def test_platforms_are_apart() -> None:
    async with platform() as one, platform() as two:
        await one.serve(greeter())
        with pytest.raises(NotFound):
            await two.client.call("greeter")


async def test_nothing_is_left() -> None:
    """No task, file, socket, descriptor or thread, whatever was served and called."""

    runs: list[Path] = []

    async def live() -> None:
        async with platform() as here:
            runs.append(here.bootstrap.run)
            await here.serve(greeter())
            await here.client.call("greeter")
            network = await here.network()
            await network.call("greeter", "Greeter.Call", b"{}")

    await live()
    gc.collect()
    process = psutil.Process()
    tasks, threads, files = asyncio.all_tasks(), _threads(), process.num_fds()
    for _ in range(3):
        await live()
    gc.collect()
    assert asyncio.all_tasks() <= tasks
    assert process.num_fds() <= files
    assert _threads() <= threads
    assert [run for run in runs if run.exists()] == []


def _threads() -> int:
    """But for those of the loop's own pool: it keeps them, and may make one more for a call that
    follows upon another."""
    return sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate())


async def test_a_service_that_does_not_start(here: Here) -> None:
    service = greeter()

    @service.on_start
    async def fail() -> None:
        raise LookupError("no database")

    with pytest.raises(LookupError):
        await here.serve(service)
    await here.serve(greeter("other"))


async def test_what_does_not_appear(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that waits for what never comes fails, and says what there is."""
    monkeypatch.setattr(testing, "WAIT", 0.05)
    with pytest.raises(
        Unavailable, match="nobody did not appear; there is broker, certs, config, ev"
    ):
        await here.known("nobody")


async def test_an_error_in_the_test_is_the_tests_own() -> None:

    async def fails() -> None:
        async with platform() as here:
            await here.serve(greeter())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fails()


async def test_clients_of_ones_own(here: Here) -> None:
    await here.serve(greeter())
    async with AsyncClient(here.bootstrap) as client:
        assert await client.call("greeter") == {"message": "Hello World"}


# -- without await ---------------------------------------------------------------------------------


def test_a_town() -> None:
    with Town() as town:
        town.serve(greeter(), "node-1")
        assert town.call("greeter", "call", {"name": "you"}) == {"message": "Hello you"}
        assert town.client.call("greeter", node="node-1") == {"message": "Hello World"}
        with Client(town.bootstrap) as client:
            assert client.call("greeter") == {"message": "Hello World"}
        assert town.run(lambda here: here.store.revision()) == 0


def test_a_town_that_fails_to_serve() -> None:
    service = greeter()

    @service.on_start
    async def fail() -> None:
        raise LookupError("no database")

    with Town() as town, pytest.raises(LookupError, match="no database"):
        town.serve(service)


def test_after_a_town() -> None:
    with Town() as town:
        pass
    with pytest.raises(BadRequest, match="it has been closed"):
        town.serve(greeter())
    with pytest.raises(BadRequest, match="it has been closed"):
        town.call("greeter")


TEST = """
from main import service
import pytest

def test_hello(micro):
    micro.serve(service)
    assert micro.call("greeter", "call", {"name": "Alice"}) == {"message": "Hello Alice"}

def test_each_has_its_own(micro):
    assert "greeter" not in micro.client.services()
    micro.serve(service)
    assert [n for n in micro.stream("greeter", "count", {"to": 3})] == [1, 2, 3]

@pytest.mark.parametrize("name", ["a", "b"])
def test_many(micro, name):
    micro.serve(service)
    assert micro.call("greeter", "call", {"name": name})["message"] == f"Hello {name}"

def test_without_it():
    import sys
    assert True
"""

MAIN = """
from collections.abc import AsyncIterator
from micro_ray import Service

service = Service("greeter")

@service.endpoint
async def call(name: str = "World") -> dict[str, str]:
    return {"message": f"Hello {name}"}

@service.endpoint
async def count(to: int) -> AsyncIterator[int]:
    for number in range(1, to + 1):
        yield number
"""


def run_pytest(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MICRO_", "PYTEST_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env=clean,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_the_fixture(tmp_path: Path) -> None:
    """In a project of somebody's own that has done nothing but install micro-ray: the fixture is
    there, without a line of configuration and without a further plugin, and warnings are errors."""
    (tmp_path / "main.py").write_text(MAIN)
    (tmp_path / "test_main.py").write_text(TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    done = run_pytest(tmp_path, "-p", "no:asyncio", "-p", "no:timeout")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
    listed = run_pytest(tmp_path, "--fixtures", "-p", "no:asyncio", "-p", "no:timeout")
    assert "micro" in listed.stdout
    assert "A whole platform in this process, gone with the test" in listed.stdout


def test_the_plugin_costs_nothing(tmp_path: Path) -> None:
    """Every pytest run where micro-ray is installed loads it: it imports nothing before a test asks
    for the fixture."""
    (tmp_path / "test_other.py").write_text(
        "import sys\n"
        "def test_other():\n"
        "    loaded = [n for n in sys.modules if n.startswith('micro_ray')]\n"
        "    assert sorted(loaded) == ['micro_ray', 'micro_ray.sdk', 'micro_ray.sdk.fixture']\n"
        "    assert 'msgspec' not in sys.modules\n"
    )
    done = run_pytest(tmp_path, "-p", "no:asyncio", "-p", "no:hypothesispytest")
    assert done.returncode == 0, done.stdout + done.stderr
