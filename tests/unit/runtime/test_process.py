"""Processes started, watched and stopped for real."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from micro_ray.errors import BadRequest, InternalError, Unavailable
from micro_ray.runtime import Replica, State, Workload
from micro_ray.runtime.machine import Machine
from micro_ray.runtime.process import ProcessDriver
from tests.fixtures.processes import alive
from tests.fixtures.wait import eventually
from tests.unit.runtime.conftest import Shop, command, service_source, sh


async def start(driver: ProcessDriver, shop: Shop, workload: Workload) -> Replica:
    return await driver.start(shop.replica(workload), workload)


async def fails(driver: ProcessDriver, shop: Shop, workload: Workload) -> str:
    """Why it does not start. Nothing of it is left then."""
    with pytest.raises(Unavailable) as caught:
        await start(driver, shop, workload)
    assert shop.left() == set()
    assert shop.processes() == []
    return caught.value.detail


async def test_a_command(driver: ProcessDriver, shop: Shop) -> None:
    """It runs until it is stopped: TERM, then gone with all that was kept of it."""
    running = await start(driver, shop, sh("echo hello; echo oops >&2; exec sleep 60"))
    assert running.state is State.RUNNING
    assert psutil.Process(running.pid).cmdline() == ["sleep", "60"]
    assert sorted(shop.log()) == ["hello", "oops"]
    ended = asyncio.ensure_future(driver.ended(running))
    await driver.stop(running, 5)
    assert (await ended).endswith("\nkilled by SIGTERM")
    assert not alive(running.pid)
    assert shop.left() == set()
    await driver.stop(running, 5)  # idempotent


async def test_a_python_service(driver: ProcessDriver, shop: Shop) -> None:
    """It runs once it has registered, under the replica's own id, and leaves in good order."""
    digest = await shop.unpacked(service_source("greeter"))
    workload = Workload(name="w", digest=digest, driver="process", version="v7")
    running = await start(driver, shop, workload)
    assert shop.network.table.has("micro", running.id)
    await shop.here.known("greeter")
    assert (await shop.here.client.call("greeter"))["id"] == running.id
    (entry,) = [e for e in await shop.here.client.entries() if e.service == "greeter"]
    assert entry.version == "v7"
    assert (await shop.here.client.call("greeter", "Debug.Stats"))["pid"] == running.pid
    assert {f"{running.id}.sock", f"{running.id}.json", f"{running.id}.up"} == shop.left()
    ended = asyncio.ensure_future(driver.ended(running))
    await driver.stop(running, 5)
    assert (await ended).endswith("exited with status 0")


async def test_a_service_of_another_name(driver: ProcessDriver, shop: Shop) -> None:
    """The workload's name is the runtime's; what it serves is its own affair."""
    digest = await shop.unpacked(service_source("shared-name"))
    workload = Workload(name="canary", digest=digest, driver="process")
    running = await start(driver, shop, workload)
    await shop.here.known("shared-name")
    assert (await shop.here.client.call("shared-name"))["id"] == running.id == "canary-1"
    await driver.stop(running, 5)


async def test_the_environment(driver: ProcessDriver, shop: Shop) -> None:
    """A clean one: what was asked for, where the platform is, who it is, and nothing of ours."""
    os.environ["MICRO_TEST_SECRET"] = "ours"
    try:
        driver = shop.driver()
        # Of a failure's last words thirty lines are told.
        workload = command(
            "sh", "-c", "env | grep -v -e _WIRE_ -e _NETWORK_",
            env={"MOOD": "good\nbad", "HOME": "/nowhere", "PATH": "/mine:/bin:/usr/bin"},
        )  # fmt: skip
        said = await fails(driver, shop, workload)
    finally:
        del os.environ["MICRO_TEST_SECRET"]
    lines = said.split("\n")
    assert "MICRO_TEST_SECRET" not in said
    for line in (
        "MOOD=good", "bad", "HOME=/nowhere", "MICRO_INSTANCE=w-1", "MICRO_NAMESPACE=micro",
        "MICRO_SERVICE_NAME=w", "MICRO_SERVICE_VERSION=latest", f"MICRO_STATE={shop.state}",
        f"MICRO_RUN={shop.here.bootstrap.run}",
        f"MICRO_ROUTER={shop.here.bootstrap.routers[0]}",
        # The platform's own Python comes first, so that `python main.py` finds what it needs.
        f"PATH={Path(sys.executable).parent}:/mine:/bin:/usr/bin",
    ):  # fmt: skip
        assert line in lines


async def test_where_the_runtime_was_started_does_not_matter(
    driver: ProcessDriver, shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the folder that happens to be named as one of Python's is not run."""
    (tmp_path / "json.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    running = await start(driver, shop, command("sleep", "60"))
    await driver.stop(running, 0)


async def test_namespaces_are_apart(driver: ProcessDriver, shop: Shop) -> None:
    """Its namespace is in its environment, its logs and its folders."""
    workload = sh("echo $MICRO_NAMESPACE; pwd; exec sleep 60", namespace="tenant")
    running = await start(driver, shop, workload)
    assert shop.log(namespace="tenant") == ["tenant", f"{shop.state}/work/tenant/w"]
    assert shop.log(namespace="micro") == []
    await driver.stop(running, 0)


async def test_folders(driver: ProcessDriver, shop: Shop) -> None:
    """A source's own folder, or an empty one of the workload's."""
    digest = await shop.unpacked("", data="here\n")
    running = await start(driver, shop, sh("pwd; cat data; exec sleep 60", digest=digest))
    there = [f"{shop.state}/sources/micro/{digest}", "here"]
    await eventually(lambda: shop.log() == there)
    await driver.stop(running, 0)
    bare = sh("pwd; ls -A; touch kept; exec sleep 60", name="bare")
    for kept in ([], ["kept"]):
        running = await start(driver, shop, bare)
        expected = [f"{shop.state}/work/micro/bare", *kept]
        await eventually(lambda e=expected: shop.log("bare")[-len(e) :] == e)  # type: ignore[misc]
        await driver.stop(running, 0)


# -- what does not start ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no-such-command"], "cannot run 'no-such-command': No such file or directory"),
        (["./plain"], "cannot run './plain': Permission denied"),
        (["/"], "cannot run '/': Permission denied"),
        (["./data"], "cannot run './data': Exec format error"),
    ],
)
async def test_what_cannot_be_run(
    driver: ProcessDriver, shop: Shop, words: list[str], said: str
) -> None:
    digest = await shop.unpacked("", data="\x7fELF no program", plain="x")
    os.chmod(shop.state / "sources" / "micro" / digest / "data", 0o700)
    assert await fails(driver, shop, command(*words, digest=digest)) == f"{said}\n{said}"
    assert shop.log()[-1] == said


@pytest.mark.parametrize(
    ("main", "last"),
    [
        ("import nowhere_to_be_found\n", "ModuleNotFoundError: No module named 'nowhere_to_be_f"),
        ("def f(:\n", "SyntaxError: "),
        ("import sys; sys.exit('I will not')\n", "I will not"),
        ("1/0\n", "ZeroDivisionError: division by zero"),
        ("import os; os.abort()\n", ""),
        ("raise SystemExit('nothing to serve')\n", "nothing to serve"),
    ],
)
async def test_a_source_that_does_not_come_up(
    driver: ProcessDriver, shop: Shop, main: str, last: str
) -> None:
    """The error is the user's own traceback, and how the process ended."""
    workload = Workload(name="w", digest=await shop.unpacked(main), driver="process")
    said = await fails(driver, shop, workload)
    assert last in said
    end = "killed by SIGABRT" if "abort" in main else "exited with status 1"
    assert said.endswith(end)
    if "Error" in last:
        assert "Traceback (most recent call last):\n" in said or 'File "' in said


async def test_two_services_in_one_file(driver: ProcessDriver, shop: Shop) -> None:
    """The one whose ``run()`` is called is served, and by it the replica is known."""
    main = service_source("second").replace(
        "@service.endpoint", "first = Service('first')\n\n@service.endpoint", 1
    )
    digest = await shop.unpacked(main)
    running = await start(driver, shop, Workload(name="w", digest=digest, driver="process"))
    await shop.here.known("second", running.id)
    assert "first" not in await shop.here.client.services()
    await driver.stop(running, 5)


async def test_without_any_service(driver: ProcessDriver, shop: Shop) -> None:
    """A script that does its work and ends is no service; it has a command's driver for that."""
    digest = await shop.unpacked("print('my work is done')\n")
    said = await fails(driver, shop, Workload(name="w", digest=digest, driver="process"))
    assert said == "my work is done\nexited with status 0"


async def test_a_hook_that_raises(driver: ProcessDriver, shop: Shop) -> None:
    more = "@service.on_start\nasync def begin() -> None:\n    raise LookupError('no database')\n"
    digest = await shop.unpacked(service_source("w", more=more))
    said = await fails(driver, shop, Workload(name="w", digest=digest, driver="process"))
    assert "in begin\n" in said
    assert "LookupError: no database" in said


async def test_without_a_main(driver: ProcessDriver, shop: Shop) -> None:
    digest = await shop.unpacked("", other="")
    workload = Workload(name="w", digest=digest, driver="process")
    with pytest.raises(BadRequest, match=r"no main\.py in the source; a service needs one"):
        await start(driver, shop, workload)


async def test_one_that_never_registers(driver: ProcessDriver, shop: Shop) -> None:
    """A Python service does not run before it has; who waits may give up, and nothing is left."""
    main = "import time\nprint('hanging', flush=True)\ntime.sleep(60)\n"
    workload = Workload(name="w", digest=await shop.unpacked(main), driver="process")
    starting = asyncio.create_task(start(driver, shop, workload))
    await eventually(lambda: shop.log() == ["hanging"])
    assert not starting.done()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert shop.processes() == []
    assert shop.left() == set()


@pytest.mark.parametrize("times", [1, 3])
async def test_given_up_at_any_moment(driver: ProcessDriver, shop: Shop, times: int) -> None:
    """Also before the shim is known, and while it begins; and once more while that is under way, as
    when a replica is replaced and then all are to go."""
    for delay in (0, 0.001, 0.01, 0.03, 0.06, 0.1, 0.15):
        starting = asyncio.create_task(start(driver, shop, command("sleep", "60")))
        await asyncio.sleep(delay)  # not a wait: the moment is what is tried
        for _ in range(times):
            starting.cancel()
            await asyncio.sleep(0)
        (outcome,) = await asyncio.gather(starting, return_exceptions=True)
        if isinstance(outcome, Replica):
            await driver.stop(outcome, 0)  # it was up before that
        else:
            assert isinstance(outcome, asyncio.CancelledError)
        assert shop.processes() == []
        assert shop.left() == set()


async def test_a_state_that_cannot_be_written(driver: ProcessDriver, shop: Shop) -> None:
    (shop.state / "logs").write_text("in the way")
    with pytest.raises(InternalError, match=r"the shim failed: .*Not a directory"):
        await start(driver, shop, command("sleep", "60"))
    assert shop.processes() == []


async def test_what_is_asked_for_is_there_or_it_does_not_start(shop: Shop) -> None:
    """The books are kept over starts, ends and failures."""
    driver = shop.driver(machine=Machine(cpu=1, memory=0, devices=[3]))
    half = command("sleep", "60", cpu=0.5)
    first, second = [await start(driver, shop, half) for _ in range(2)]
    with pytest.raises(Unavailable, match=r"0\.5 cpu asked for; of 1 .* 0 are free"):
        await start(driver, shop, half)
    await driver.stop(first, 0)
    for _ in range(3):
        with pytest.raises(Unavailable, match="No such file"):
            await start(driver, shop, command("no-such-command", cpu=0.5))
    third = await start(driver, shop, half)
    os.kill(third.pid, signal.SIGKILL)
    await driver.ended(third)
    fourth = await start(driver, shop, half)
    with_gpu = sh("echo $CUDA_VISIBLE_DEVICES; exec sleep 60", name="gpu", gpu=0.5)
    fifth = await start(driver, shop, with_gpu)
    assert shop.log("gpu") == ["3"]
    for replica in (second, fourth, fifth):
        await driver.stop(replica, 0)


# -- how they end ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("sleep 0.3; exit 7", "exited with status 7"),
        ("sleep 0.3", "exited with status 0"),
        ("sleep 0.3; echo last words; kill -SEGV $$", "last words\nkilled by SIGSEGV"),
        ("sleep 0.3; kill -40 $$", "killed by signal 40"),
        ("sleep 0.3; printf 'no newline'", "no newline\nexited with status 0"),
    ],
)
async def test_how_it_ended(driver: ProcessDriver, shop: Shop, script: str, said: str) -> None:
    running = await start(driver, shop, sh(script))
    assert await driver.ended(running) == said
    assert shop.left() == set()


async def test_kill_9(driver: ProcessDriver, shop: Shop) -> None:
    running = await start(driver, shop, command("sleep", "60"))
    os.kill(running.pid, signal.SIGKILL)
    assert await driver.ended(running) == "killed by SIGKILL"


async def test_the_last_words_are_its_own(driver: ProcessDriver, shop: Shop) -> None:
    """However much another replica of the workload says."""
    loud = await start(driver, shop, sh("while true; do echo noise; sleep 0.001; done"))
    quiet = await start(driver, shop, sh("echo why it failed; sleep 0.5; exit 3"))
    assert await driver.ended(quiet) == "why it failed\nexited with status 3"
    await driver.stop(loud, 0)


async def test_a_kill_9_leaves_no_socket(driver: ProcessDriver, shop: Shop) -> None:
    digest = await shop.unpacked(service_source("w"))
    running = await start(driver, shop, Workload(name="w", digest=digest, driver="process"))
    os.kill(running.pid, signal.SIGKILL)
    assert (await driver.ended(running)).endswith("killed by SIGKILL")
    assert shop.left() == set()


async def test_the_longest_name(driver: ProcessDriver, shop: Shop) -> None:
    """Its socket would have a path that is too long for Linux."""
    name = "n" * 63
    digest = await shop.unpacked(service_source(name))
    workload = Workload(name=name, digest=digest, driver="process")
    replica = replace(shop.replica(workload), id=f"{name}-{'0' * 40}")
    running = await driver.start(replica, workload)
    await shop.here.known(name)
    assert (await shop.here.client.call(name))["id"] == replica.id
    await driver.stop(running, 5)
    assert shop.left() == set()


# -- registering -----------------------------------------------------------------------------------


async def test_a_command_that_serves(
    driver: ProcessDriver, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that registers runs from then on. Once one has, the next must as well before it counts:
    otherwise the old one would go before the new one can be called."""
    slow = service_source("w").replace(
        "service.run()", "import time; time.sleep(0.6)\nservice.run()"
    )
    digest = await shop.unpacked(service_source("w"))
    with monkeypatch.context() as patient:
        patient.setattr("micro_ray.runtime.process.LIVES", 30.0)
        first = await start(driver, shop, command("python", "main.py", digest=digest))
    assert shop.network.table.has("micro", first.id)
    digest = await shop.unpacked(slow)
    second = await start(driver, shop, command("python", "main.py", digest=digest))
    assert shop.network.table.has("micro", second.id)
    for replica in (first, second):
        await driver.stop(replica, 5)


async def test_a_command_that_serves_no_longer(
    driver: ProcessDriver, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for, for a while, and runs then."""
    monkeypatch.setattr("micro_ray.runtime.process.REGISTERS", 0.6)
    digest = await shop.unpacked(service_source("w"))
    with monkeypatch.context() as patient:
        patient.setattr("micro_ray.runtime.process.LIVES", 30.0)
        first = await start(driver, shop, command("python", "main.py", digest=digest))
    begun = asyncio.get_running_loop().time()
    second = await start(driver, shop, command("sleep", "60"))
    assert asyncio.get_running_loop().time() - begun >= 0.6
    for replica in (first, second):
        await driver.stop(replica, 5)
