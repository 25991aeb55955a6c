"""A new life of the runtime takes over what lives of the one before, and ends the rest."""

from __future__ import annotations

import asyncio
import json
import os
import signal

import psutil
import pytest

from micro_ray.errors import Unavailable
from micro_ray.runtime import State, Workload
from micro_ray.runtime.machine import Machine
from micro_ray.runtime.process import ProcessDriver
from tests.fixtures.processes import alive
from tests.fixtures.wait import eventually
from tests.unit.runtime.conftest import Shop, command, service_source, sh


async def test_what_lives_is_taken_over(driver: ProcessDriver, shop: Shop) -> None:
    """The same processes, with what was known of them; they are watched and stopped as before."""
    workload = command("sleep", "1000", generation=7, namespace="tenant")
    first, second = [await driver.start(shop.replica(workload), workload) for _ in range(2)]
    await driver.close()
    assert alive(first.pid)
    anew = shop.driver()
    found = {replica.id: replica for replica in await anew.adopt()}
    assert set(found) == {first.id, second.id}
    again = found[first.id]
    assert (again.pid, again.namespace, again.workload, again.generation, again.state) == (
        first.pid, "tenant", "w", 7, State.RUNNING,
    )  # fmt: skip
    assert abs(again.started - first.started) < 5
    ended = asyncio.ensure_future(anew.ended(again))
    await anew.stop(again, 5)
    assert (await ended).endswith("killed by SIGTERM")
    os.kill(second.pid, signal.SIGKILL)
    assert await anew.ended(found[second.id]) == "killed by SIGKILL"
    assert await anew.adopt() == []


async def test_what_ended_meanwhile(driver: ProcessDriver, shop: Shop) -> None:
    """Is not there, and nothing of it stays: also when its shim was killed with it."""
    workload = sh("sleep 1000 & sleep 1000")
    first, second = [await driver.start(shop.replica(workload), workload) for _ in range(2)]
    await driver.close()
    for replica, whom in ((first, "process"), (second, "shim")):
        process = psutil.Process(replica.pid)
        shim = process.parent()
        assert shim is not None
        (process if whom == "process" else shim).kill()
        await eventually(lambda shim=shim: not alive(shim.pid))
    assert await shop.driver().adopt() == []
    assert shop.left() == set()
    assert shop.processes() == []


async def test_what_was_being_started(driver: ProcessDriver, shop: Shop) -> None:
    """Nobody knows whether it would have come up: it is ended, and will be started anew."""
    digest = await shop.unpacked(
        service_source("w", more="print('begun'); import time; time.sleep(1000)")
    )
    workload = Workload(name="w", digest=digest, driver="process")
    starting = asyncio.create_task(driver.start(shop.replica(workload), workload))
    await eventually(lambda: "begun" in shop.log())
    found = await shop.driver().adopt()  # as if the first runtime had been killed
    assert found == []
    with pytest.raises(Unavailable):
        await starting


async def test_what_belongs_to_a_platform_that_has_ended(driver: ProcessDriver, shop: Shop) -> None:
    """A server that is started again at once finds processes that are about to end."""
    workload = command("sleep", "1000")
    replica = await driver.start(shop.replica(workload), workload)
    assert await shop.driver(anchor=1).adopt() == []
    assert not alive(replica.pid)


async def test_status_files_that_mean_nothing(driver: ProcessDriver, shop: Shop) -> None:
    """They are removed; no process is touched because of them."""
    bystander = await asyncio.create_subprocess_exec("sleep", "1000")
    folder = shop.state / "processes"
    folder.mkdir()
    place = {"namespace": "micro", "workload": "w", "generation": 1, "anchor": os.getpid()}
    amount = {"cpu": 0, "gpu": 0, "memory": 0, "devices": []}
    for name, content in {
        "empty": "",
        "torn": '{"id": "w-1", "pid"',
        "list": "[]",
        "little": json.dumps({"pid": bystander.pid}),
        # A pid that was given to somebody else meanwhile.
        "used": json.dumps(
            {"id": "used", **place, "amount": amount, "pid": bystander.pid, "start": 1,
             "child": bystander.pid}
        ),
    }.items():  # fmt: skip
        (folder / f"{name}.json").write_text(content)
    assert await driver.adopt() == []
    assert list(folder.iterdir()) == []
    assert bystander.returncode is None
    assert alive(bystander.pid)
    bystander.kill()
    await bystander.wait()


async def test_without_any(driver: ProcessDriver) -> None:
    assert await driver.adopt() == []


async def test_the_books_go_on(shop: Shop) -> None:
    """What lives has what it had asked for."""

    def machine() -> Machine:
        return Machine(cpu=1, memory=0, devices=[0])

    workload = command("sleep", "1000", cpu=1, gpu=0.5)
    replica = await (driver := shop.driver(machine=machine())).start(
        shop.replica(workload), workload
    )
    await driver.close()
    anew = shop.driver(machine=machine())
    (found,) = await anew.adopt()
    with pytest.raises(Unavailable, match="0 are free"):
        await anew.start(shop.replica(workload), workload)
    await anew.stop(found, 0)
    again = await anew.start(shop.replica(workload), workload)
    assert again.pid != replica.pid
    await anew.stop(again, 0)


async def test_one_that_registers_is_known_to(driver: ProcessDriver, shop: Shop) -> None:
    """What takes its place must register as well, in this life too."""
    digest = await shop.unpacked(service_source("w"))
    service = Workload(name="w", digest=digest, driver="process")
    await driver.start(shop.replica(service), service)
    anew = shop.driver()
    (found,) = await anew.adopt()
    late = service_source("w").replace(
        "service.run()", "import time; time.sleep(0.5)\nservice.run()"
    )
    plain = command("python", "main.py", digest=await shop.unpacked(late))
    second = await anew.start(shop.replica(plain), plain)
    assert shop.network.table.has("micro", second.id)
    for replica in (found, second):
        await anew.stop(replica, 5)
