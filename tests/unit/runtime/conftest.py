"""A platform with a state folder and a driver of real processes; whatever a test starts must be
gone when it ends."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest

from micro_ray.network.network import Network
from micro_ray.runtime import Driver, Replica, Runtime, State, Status, Workload, source
from micro_ray.runtime import process as process_module
from micro_ray.runtime.archives import Archives
from micro_ray.runtime.keeper import Patience
from micro_ray.runtime.logs import Reader
from micro_ray.runtime.process import ProcessDriver
from micro_ray.runtime.reconcile import Reconciler
from micro_ray.sdk.testing import Here
from micro_ray.settings import Pools, load, service_environ
from micro_ray.settings import Runtime as RuntimeSettings
from micro_ray.store import Store
from micro_ray.wire import runtime as face
from tests.fixtures.processes import marked
from tests.fixtures.wait import eventually

SERVICE = """
import os
from micro_ray import Service

service = Service("{name}")

@service.endpoint
async def call() -> dict[str, str]:
    return {{"said": "{said}", "id": os.environ["MICRO_INSTANCE"]}}

{more}

service.run()
"""


def service_source(name: str, said: str = "one", more: str = "") -> str:
    """A ``main.py`` that serves."""
    return SERVICE.format(name=name, said=said, more=more)


@dataclass
class Shop:
    """Where tests of the runtime work."""

    here: Here
    state: Path
    network: Network
    count: int = field(default=0)

    def driver(self, **options: Any) -> ProcessDriver:
        """A driver on this state; a further one is a further life of the runtime."""
        boot = self.here.bootstrap
        settings = load({"MICRO_STATE": str(self.state), "MICRO_RUN": str(boot.run)})
        given: dict[str, Any] = {
            "environ": service_environ(boot, settings),
            "known": self.network.table.has,
            "anchor": os.getpid(),
            "grace": 2.0,
            **options,
        }
        return ProcessDriver(self.state, **given)

    async def unpacked(self, main: str, **files: str) -> str:
        """A source where the driver finds it; its digest."""
        archives = Archives(self.here.store, self.state, namespace="micro", limit=2**20)
        digest = await archives.keep(self.pack(main, **files), "micro")
        await archives.unpacked("micro", digest)
        return digest

    def pack(self, main: str, **files: str) -> bytes:
        """A folder with ``main.py`` and others, packed."""
        with tempfile.TemporaryDirectory() as name:
            for file, text in {"main.py": main, **files}.items():
                if text:
                    (Path(name) / file).write_text(text)
            return source.pack(Path(name))

    @asynccontextmanager
    async def runtime(
        self, *, store: Store | None = None, driver: Driver | None = None, **options: Any
    ) -> AsyncIterator[Reconciler]:
        """A life of the runtime. Left, its replicas go on, as after a kill."""
        drivers = {"process": driver or self.driver()}
        given: dict[str, Any] = {
            "patience": Patience(start=20, drain=2, backoff=(0.1, 1.0), gate=0.02, resync=0.2),
            "gate": face.gate(self.network),
            **options,
        }
        kept = store or self.here.store
        most = given.get("settings", RuntimeSettings()).max_source
        clock = given.get("clock", time.monotonic)
        archives = Archives(kept, self.state, namespace="micro", limit=most, clock=clock)
        async with Reconciler(kept, drivers, self.state, archives=archives, **given) as runtime:
            yield runtime

    def replica(self, workload: Workload) -> Replica:
        self.count += 1
        return Replica(
            id=f"{workload.name}-{self.count}",
            namespace=workload.namespace,
            workload=workload.name,
            generation=workload.generation,
            state=State.STARTING,
        )

    def log(self, name: str = "w", namespace: str = "micro") -> list[str]:
        """All that replicas of a workload have said."""
        lines = Reader(self.state / "logs" / namespace / name).tail(10_000)
        return [line.text for line in lines]

    def processes(self) -> list[int]:
        """All processes of this state, shims included."""
        return marked("MICRO_STATE", str(self.state))

    def left(self) -> set[str]:
        """What replicas have left in folders of the living."""
        sockets = {p.name for p in self.here.bootstrap.run.iterdir()}
        platform = {f"{pool.name}-0.sock" for pool in fields(Pools)} | {"certs", "events"}
        status = self.state / "processes"
        return (sockets - platform) | {p.name for p in status.glob("*")}


def command(*words: str, **fields: Any) -> Workload:
    """A workload that runs a command; ``sh`` takes a script."""
    return replace(Workload(name="w", command=words, driver="process"), **fields)


def sh(script: str, **fields: Any) -> Workload:
    return command("sh", "-c", script, **fields)


async def until(runtime: Runtime, name: str, state: State, namespace: str = "micro") -> Status:
    """Wait until a workload is in a state, with all replicas that it should have then."""

    async def there() -> Status | None:
        (status,) = await runtime.read(name, namespace)
        return status if status.state is state else None

    status = await eventually(there, within=15)
    assert status is not None
    return status


@pytest.fixture(autouse=True)
def short_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command need not live for two seconds to count as running, and the platform itself, which
    nobody calls when it goes, does not wait for its callers. Replicas do, in their processes."""
    monkeypatch.setattr(process_module, "LIVES", 0.08)
    monkeypatch.setattr("micro_ray.wire.host.LEAVING", 0.001)


@pytest.fixture
def state() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mr-") as name:
        yield Path(os.path.realpath(name))


@pytest.fixture
async def shop(here: Here, state: Path) -> AsyncIterator[Shop]:
    shop = Shop(here, state, await here.network())
    yield shop
    try:
        await eventually(lambda: not shop.processes())
        assert shop.left() == set()
    finally:
        for pid in shop.processes():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def driver(shop: Shop) -> ProcessDriver:
    return shop.driver()


@pytest.fixture
async def runtime(shop: Shop) -> AsyncIterator[Reconciler]:
    async with shop.runtime() as runtime:
        yield runtime
        await runtime.halt(0)
