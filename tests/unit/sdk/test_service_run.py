"""``python main.py`` with ``service.run()`` at its end: signals, exit codes and what is printed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from micro_ray.sdk.testing import Here
from micro_ray.settings import Bootstrap
from tests.fixtures.wait import PROMPT, eventually

MAIN = """
import asyncio
from micro_ray import Service

service = Service("w")

@service.endpoint
async def call() -> str:
    return "here"

@service.endpoint
async def slow() -> str:
    print("called", flush=True)
    await asyncio.sleep(0.4)
    return "finished"

@service.on_stop
async def last() -> None:
    print("stopped", flush=True)

{more}

if __name__ == "__main__":
    service.run()
"""


@asynccontextmanager
async def running(
    boot: Bootstrap, folder: Path, more: str = ""
) -> AsyncIterator[asyncio.subprocess.Process]:
    """``main.py`` as a process of its own that finds the platform by its environment."""
    (folder / "main.py").write_text(MAIN.format(more=more))
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MICRO_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "main.py",
        cwd=folder,
        env=clean
        | {
            "MICRO_REGISTRY": ",".join(boot.registry),
            "MICRO_ROUTER": ",".join(boot.routers),
            "MICRO_RUN": str(boot.run),
            "MICRO_STATE": str(folder),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def end(process: asyncio.subprocess.Process) -> tuple[int, list[str], list[str]]:
    """Exit code, standard output and standard error."""
    async with asyncio.timeout(20):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode().splitlines(), err.decode().splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_end_it_well(here: Here, tmp_path: Path, number: int) -> None:
    """It leaves the registry, finishes its calls, runs its hooks, and exits with 0."""
    async with running(here.bootstrap, tmp_path) as process:
        await here.known("w")
        assert await here.client.call("w") == "here"
        calling = asyncio.create_task(here.client.call("w", "slow"))
        assert process.stdout is not None
        assert await process.stdout.readline() == b"called\n"
        process.send_signal(number)
        await eventually(lambda: not here.client.table.lookup("micro", "w"))
        assert await calling == "finished"
        code, out, err = await end(process)
    assert (code, out) == (0, ["stopped"])
    assert len(err) == 1
    assert err[0].startswith("INFO w: serving as w-")


async def test_a_second_signal_is_no_hurry(here: Here, tmp_path: Path) -> None:
    """Whoever is impatient has KILL; calls are finished all the same."""
    async with running(here.bootstrap, tmp_path) as process:
        await here.known("w")
        calling = asyncio.create_task(here.client.call("w", "slow"))
        assert process.stdout is not None
        await process.stdout.readline()
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
        assert await calling == "finished"
        assert (await end(process))[0] == 0


async def test_kill_9_is_known_at_once(here: Here, tmp_path: Path) -> None:
    async with running(here.bootstrap, tmp_path) as process:
        await here.known("w")
        process.kill()
        await eventually(lambda: not here.client.table.lookup("micro", "w"), within=PROMPT)


async def test_a_hook_that_raises(here: Here, tmp_path: Path) -> None:
    """The traceback is of the author's own code, without the platform's frames."""
    more = "@service.on_start\nasync def begin() -> None:\n    import json\n    json.loads('{')\n"
    async with running(here.bootstrap, tmp_path, more) as process:
        code, _, err = await end(process)
    assert code == 1
    assert err[0] == "Traceback (most recent call last):"
    assert err[-1].startswith("json.decoder.JSONDecodeError: ")
    assert any("in begin" in line for line in err)
    for others in ("micro_ray", "uvloop", "asyncio", "contextlib"):
        assert not any(others in line for line in err), err


async def test_a_stop_hook_that_raises(here: Here, tmp_path: Path) -> None:
    more = "@service.on_stop\nasync def end() -> None:\n    raise RuntimeError('not clean')\n"
    async with running(here.bootstrap, tmp_path, more) as process:
        await here.known("w")
        process.terminate()
        code, out, err = await end(process)
    assert (code, out) == (1, ["stopped"])
    assert err[-1] == "RuntimeError: not clean"


async def test_what_the_platform_says(here: Here, tmp_path: Path) -> None:
    """No traceback of ours: one line that says what is wrong."""
    boot = replace(here.bootstrap, registry=(f"unix:{tmp_path}/nobody.sock",))
    more = "import micro_ray.sdk.service as s\ns.REGISTER = 0.2\n"
    async with running(boot, tmp_path, more) as process:
        code, _, err = await end(process)
    assert code == 1
    assert err[-1] == (
        f"micro_ray.errors.Unavailable: w: no registry answers at unix:{tmp_path}/nobody.sock; "
        "start the platform with `micro server`"
    )
    assert not any("Traceback" in line for line in err)


async def test_a_signal_while_it_waits_for_a_registry(here: Here, tmp_path: Path) -> None:
    """It would wait for half a minute; told to end it ends, and well."""
    boot = replace(here.bootstrap, registry=(f"unix:{tmp_path}/nobody.sock",))
    more = "@service.on_start\nasync def begin() -> None:\n    print('begun', flush=True)\n"
    async with running(boot, tmp_path, more) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begun\n"
        process.terminate()
        code, out, _ = await end(process)
    assert (code, out) == (0, ["stopped"])


async def test_the_registry_comes_later(here: Here, tmp_path: Path) -> None:
    """A service that was started first is found as soon as there is a platform to find it."""
    later = tmp_path / "later.sock"
    boot = replace(here.bootstrap, registry=(f"unix:{later}",))
    async with running(boot, tmp_path) as process:
        await eventually(lambda: any(p.name.startswith("w-") for p in here.bootstrap.run.iterdir()))
        later.symlink_to(here.bootstrap.registry[0].removeprefix("unix:"))
        await here.known("w")
        process.terminate()
        assert (await end(process))[0] == 0


async def test_settings_that_cannot_be(here: Here, tmp_path: Path) -> None:
    more = "import os\nos.environ['MICRO_NAMESPACE'] = '../x'\n"
    async with running(here.bootstrap, tmp_path, more) as process:
        code, _, err = await end(process)
    assert code == 1
    assert len(err) == 1
    assert "namespace '../x'" in err[0]
